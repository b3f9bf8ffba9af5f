# SPDX-License-Identifier: Apache-2.0
"""What an engine does with a batch: record its scores, weigh its losses, reduce them."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor

from prune_engine.epoch.policy import NO_EXTRAS, Extras
from prune_engine.epoch.run import EpochRun
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.losses.reduce import check_reduction, reduce_losses, refuse_nonfinite
from prune_engine.losses.reducers import Reducer
from prune_engine.ops.checks import (
    INDEX_DTYPES,
    LOSS_DTYPES,
    check_batch,
    check_labels,
    check_vector,
)
from prune_engine.ops.weights import rescale

Reduction = Literal["mean", "sum", "none", "weighted_mean"]
ScoreName = Literal["loss", "el2n", "margin", "least_confidence", "entropy", "forgetting"]


def _check_reducer(reducer: object, losses: object, indices: object, device: torch.device) -> None:
    """Refuse what a reducer would trip over; what it makes is checked as any batch is."""
    if not isinstance(reducer, Reducer):
        raise TypeError(f"reducer must be a Reducer, such as Tokens(mask), got {reducer!r}")
    if not isinstance(losses, Tensor):
        raise TypeError(f"losses must be a tensor, got {type(losses).__name__}")
    if losses.dtype not in LOSS_DTYPES:
        raise TypeError(f"losses must be floating, got {losses.dtype}")
    if losses.device != device:
        raise ValueError(f"losses must be on {device}, got {losses.device}")
    check_vector("indices", indices, INDEX_DTYPES, device=device)


class Observer:
    """The half of ``PruneEngine`` that is called in every step."""

    buffer: ScoreBuffer
    _run: EpochRun

    def observe(
        self,
        losses: Tensor,
        indices: Tensor,
        *,
        score: Tensor | None = None,
        reduction: Reduction = "mean",
        denom: Tensor | float | None = None,
        reducer: Reducer | None = None,
    ) -> Tensor:
        """Record a batch's losses and return the loss to call ``backward`` on.

        ``mean``: ``sum(w_i loss_i) / B``, divided by B and not by the sum of weights (InfoBatch,
        ICLR 2024, eq. 9). One launch, no host sync; the caller's tensors are not changed.

        Args:
            losses: [B] float16 | bfloat16 | float32 | float64, from ``reduction="none"``; of
                another shape with a ``reducer`` that takes it.
            indices: [B] int64 | int32, the dataset positions that came with the batch.
            score: [B], what is recorded instead of the losses: the unsmoothed loss where the loss
                is label-smoothed.
            reduction: ``"mean"``, ``"sum"``, ``"none"`` or ``"weighted_mean"`` (by sum of weights).
            denom: divide the weighted sum by this (a token count) instead of B.
            reducer: makes one loss and one score per sample of losses per token (``Tokens``) or
                pixel (``Pixels``), of mixed pairs (``MixedPairs``), of a scalar (``BatchScalar``).

        Returns:
            A scalar, or [B] in the order of the batch for ``"none"``; in the dtype of ``losses``.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or device does not fit, the loss is a scalar, or both a score and a
                reducer are given.
            IndexError: an index is out of range (on a device it is raised by ``end_epoch``).
            NonFiniteLossError: on the cpu, with ``on_nonfinite="raise"``; nothing is recorded then.
        """
        if torch.compiler.is_compiling():  # no clock runs while a step is being traced
            return self._observe(losses, indices, score, reduction, denom, reducer)
        began = time.perf_counter()
        loss = self._observe(losses, indices, score, reduction, denom, reducer)
        self._run.engine_seconds += time.perf_counter() - began
        return loss

    def _observe(
        self,
        losses: Tensor,
        indices: Tensor,
        score: Tensor | None,
        reduction: Reduction,
        denom: Tensor | float | None,
        reducer: Reducer | None,
    ) -> Tensor:
        run, device = self._run, self.buffer.device
        check_reduction(reduction, denom)
        if isinstance(indices, Tensor) and indices.device != device:  # pyright: ignore[reportUnnecessaryIsInstance]
            indices = indices.to(device, non_blocking=True)
        given = losses
        if reducer is not None:
            if score is not None:
                raise ValueError("score must not be given with a reducer, which makes its own")
            _check_reducer(reducer, losses, indices, device)
            size, last = indices.shape[0], self.buffer.last_scores
            reduced = reducer.reduce(losses, size, lambda: last(indices))
            losses, score = reduced.losses, reduced.score
            if reduction == "mean" and denom is None:
                denom = reduced.denom
        if run.ahead or run.on_nonfinite == "raise":
            check_batch(losses, indices, score, device)
            if run.ahead:
                run.arrive(losses.shape[0])
            if run.on_nonfinite == "raise" and losses.is_cpu:
                refuse_nonfinite(losses if score is None else score, indices)
        watcher = run.watcher
        if watcher is not None:
            watcher.before_record(indices)  # raises before anything is recorded
        rescaled, weights = self.buffer.observe(losses, indices, score=score)
        if watcher is not None:
            seen = losses if score is None else score
            watcher.after_record(indices, losses.detach(), seen.detach(), NO_EXTRAS)
        if reducer is not None and (shared := reducer.share(weights)) is not weights:
            rescaled, weights = rescale(losses, shared), shared
        run.consume(losses.shape[0])
        # A reducer's sums are wide; they are rounded once, after the reduction.
        loss = reduce_losses(rescaled, weights, reduction, denom)
        return loss if reducer is None else loss.to(given.dtype)

    def cross_entropy_observe(
        self,
        logits: Tensor,
        targets: Tensor,
        indices: Tensor,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        score: ScoreName = "loss",
        reduction: Reduction = "mean",
        denom: Tensor | float | None = None,
    ) -> Tensor:
        """Compute the cross-entropy of logits, record its score and return the loss to train on.

        ``observe(F.cross_entropy(logits, targets, reduction="none"), indices)`` in one pass over
        the logits, with any of the scores (formulas and papers: ``pe.scores``), always of the
        unsmoothed and unweighted softmax. ``mean`` divides by B (InfoBatch, ICLR 2024, eq. 9),
        also where targets are ignored or classes weighted: pass ``denom`` for another divisor.

        Args:
            logits: [B, C] float16 | bfloat16 | float32 | float64.
            targets: [B] int64 | int32 in 0..C-1, or ``ignore_index``.
            indices: [B] int64 | int32, the dataset positions that came with the batch.
            label_smoothing: in 0..1.
            ignore_index: a sample with this target has loss 0 and keeps its last score; with
                ``on_nonfinite="raise"`` it is an error, as is any other score that is not a number.
            class_weight: [C] floating, of the loss.
            score: ``"loss"``, ``"el2n"``, ``"margin"``, ``"least_confidence"``, ``"entropy"`` or
                ``"forgetting"``.
            reduction: see ``observe``.
            denom: see ``observe``.

        Returns:
            A scalar, or [B] in the order of the batch for ``"none"``; float32 whatever the dtype of
            the logits, float64 for float64. Differentiable to any order (``create_graph=True``).

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape, device, number or name does not fit.
            IndexError: an index or a target is out of range (on a device ``end_epoch`` raises for
                an index; the loss of such a target is nan).
            NonFiniteLossError: on the cpu, with ``on_nonfinite="raise"``; the batch's other scores
                are recorded by then.
        """
        began = self._run.now()
        run, device = self._run, self.buffer.device
        check_reduction(reduction, denom)
        if isinstance(indices, Tensor) and indices.device != device:  # pyright: ignore[reportUnnecessaryIsInstance]
            indices = indices.to(device, non_blocking=True)
        if run.ahead:
            check_labels(logits, targets, indices, class_weight, label_smoothing, device)
            run.arrive(indices.shape[0])
        watcher = run.watcher
        if watcher is not None:
            watcher.before_record(indices)  # raises before anything is recorded
        rescaled, weights, found = self.buffer.cross_entropy_observe(
            logits,
            targets,
            indices,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            class_weight=class_weight,
            score=score,
        )
        if watcher is not None:
            extras = Extras(logits.detach(), targets.detach())
            watcher.after_record(indices, rescaled.detach() / weights, found.detach(), extras)
        if run.on_nonfinite == "raise" and found.is_cpu:
            refuse_nonfinite(found, indices)
        run.consume(indices.shape[0])
        loss = reduce_losses(rescaled, weights, reduction, denom)
        run.add_seconds(began)
        return loss
