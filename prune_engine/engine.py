# SPDX-License-Identifier: Apache-2.0
"""The engine: composes policies, plans and the score buffer around a training loop."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.data import DataLoader

from prune_engine import ops
from prune_engine.bands import check_fraction
from prune_engine.data.dataset import IndexedDataset
from prune_engine.data.device_loader import Augment, DeviceLoader
from prune_engine.data.sampler import PruneSampler, Resume, own_order
from prune_engine.epoch import ranks, state
from prune_engine.epoch.coverage import MODES
from prune_engine.epoch.fit_policy import check_policy
from prune_engine.epoch.plan import EpochPlan
from prune_engine.epoch.policy import NO_EXTRAS, Extras, Monitor, Policy, PolicyMemory
from prune_engine.epoch.report import EpochReport, History
from prune_engine.epoch.run import EpochRun
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import PruneEngineError
from prune_engine.losses.reduce import check_reduction, reduce_losses, refuse_nonfinite
from prune_engine.losses.reducers import Reducer
from prune_engine.ops.checks import (
    INDEX_DTYPES,
    LOSS_DTYPES,
    check_batch,
    check_labels,
    check_vector,
)
from prune_engine.ops.pick import FLOOR, PickRule
from prune_engine.ops.weights import rescale
from prune_engine.plain import plain
from prune_engine.recording.recorder import MAX_RECORDED, Recorder
from prune_engine.schedule import ProgressOf, RateWatch, VirtualScheduler, peak_of
from prune_engine.sharding.buffer import ShardedBuffer
from prune_engine.sharding.run import ShardedRun, check_divisible

Reduction = Literal["mean", "sum", "none", "weighted_mean"]
Picked = tuple[Tensor, Tensor, Tensor]
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


def _contiguous(given: Any) -> Any:
    """Return a tensor in one piece, and anything else as it is: what is none is refused later."""
    dense = isinstance(given, Tensor) and given.layout == torch.strided
    return given.contiguous() if dense else given


class PruneEngine:
    """Skip the samples a model has already learned, without making the host wait.

    Scores live on the device; each batch records its losses in one launch (``observe``), each
    epoch's end decides the next one (``end_epoch``). Same seed, same scores: same samples, same
    order, on any backend, thread count or world size.

    It may be made, restored and asked under ``torch.inference_mode()`` and train afterwards.
    ``copy.deepcopy`` and ``pickle`` copy its arguments and state, for a data set that holds it and
    whose workers are spawned, or to try something and go back: a copy shares nothing with it, and
    an attached monitor, which holds the model, stays behind. With a process group or divided scores
    it is not copied: ``state_dict()`` is there.

    Args:
        dataset_or_num_samples: a sized data set, or N.
        policy: such as ``InfoBatch(prune_ratio=0.5, delta=0.875)``.
        num_epochs: length of the run in (pruning) epochs.
        mode: ``"epoch"``: an epoch is what the plan keeps. ``"flow"``: the sampler has the constant
            length of the data set, for frameworks that fix an epoch's length, and ``num_epochs``
            pruning epochs flow through it; ``done`` says when they are trained.
        horizon: in [0, 1), with ``"flow"``: the share of a pruning epoch after which the next is
            decided. A loader may draw no further ahead than the rest.
        seed: in 0..2^63-1; the library touches no global random state.
        device: where scores live and losses come from; default torch's default device.
        backend: ``"auto"`` or a name of ``backends.TABLE``.
        process_group: the data-parallel group; default all ranks.
        on_nonfinite: ``"skip"`` keeps the last finite score; ``"raise"`` stops.
        coverage: ``"raise"``, ``"warn"`` or ``"ignore"`` when the samples seen in an epoch are not
            the planned ones.
        shard_scores: divide the scores among the ranks, for data sets beyond one device. Same
            decisions, order and weights; making the engine is then a collective, and
            ``state_dict()`` returns a rank's part of the state.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the policy needs a length that is missing.

    Example:
        >>> from prune_engine import KeepAll
        >>> engine = PruneEngine(4, KeepAll(), num_epochs=1)
        >>> for epoch in engine.epochs():
        ...     for index in engine.sampler():
        ...         _ = engine.observe(torch.ones(1), torch.tensor([index]))
        >>> engine.history[0].num_seen
        4
    """

    def __init__(
        self,
        dataset_or_num_samples: Any,
        policy: Policy,
        *,
        num_epochs: int | None = None,
        mode: Literal["epoch", "flow"] = "epoch",
        horizon: float = 0.5,
        seed: int = 0,
        device: torch.device | str | None = None,
        backend: str = "auto",
        process_group: Any = None,
        on_nonfinite: Literal["skip", "raise"] = "skip",
        coverage: Literal["raise", "warn", "ignore"] = "raise",
        shard_scores: bool = False,
    ) -> None:
        self.num_samples = state.sample_count(dataset_or_num_samples)
        mode, on_nonfinite, coverage = plain(mode), plain(on_nonfinite), plain(coverage)
        num_epochs, horizon, seed = plain(num_epochs), plain(horizon), plain(seed)
        shard_scores = plain(shard_scores)
        state.check_flag("shard_scores", shard_scores)
        state.check_group(process_group)
        if mode == "steps":  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError(
                "mode='steps' is no more: mode='flow' with num_epochs counts pruning epochs instead"
            )
        state.check_choice("mode", mode, ("epoch", "flow"))
        check_fraction("horizon", horizon, zero=True, one=False)
        state.check_choice("on_nonfinite", on_nonfinite, ("skip", "raise"))
        state.check_choice("coverage", coverage, MODES)
        state.check_count("num_epochs", num_epochs)
        check_policy(policy)
        state.check_seed(seed)
        if num_epochs is None and (policy.needs_total or mode == "flow"):
            raise ValueError(f"num_epochs must be given for {policy} in mode={mode!r}, got None")
        self.buffer: ScoreBuffer
        if shard_scores:
            check_divisible(policy, mode)
            shard = ranks.world(process_group)
            self.buffer, run = (
                ShardedBuffer(self.num_samples, shard, device=device, backend=backend),
                ShardedRun,
            )
        else:
            self.buffer, run = (
                ScoreBuffer(self.num_samples, device=device, backend=backend),
                EpochRun,
            )
        self._run = run(
            self.buffer,
            policy,
            mode,
            num_epochs,
            horizon,
            seed,
            process_group,
            on_nonfinite,
            coverage,
        )

    # The loop ---------------------------------------------------------------------------------

    def epochs(self) -> Iterator[int]:
        """Iterate over the epochs, ending each after the loop's body; continues a restored run.

        Returns:
            The epoch numbers from the current one on, until everything is dropped for ever; none
            where the state of a run that was over was restored.

        Raises:
            PruneEngineError: the run has no ``num_epochs``, or was trained to its end here.
        """
        if self.num_epochs is None or self.mode == "flow":
            raise PruneEngineError("epochs() needs num_epochs and mode='epoch'")
        self._run.check_begun()
        while self.epoch < self.num_epochs and not self._run.exhausted:
            current = self.epoch
            yield current
            if self.epoch == current:  # the body may have ended it
                self.end_epoch()

    def observe(
        self,
        losses: Tensor,
        indices: Tensor,
        *,
        score: Tensor | None = None,
        reduction: Reduction = "mean",
        denom: Tensor | float | None = None,
        reducer: Reducer | None = None,
        picked: Picked | None = None,
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
            picked: what ``pick`` returned, where a step trains some of its batch: ``losses`` are
                then those of the picked [k], in their order and without its weights, which are
                applied here, while ``indices`` and ``score`` are of the whole batch [B]; ``mean``
                still divides by B. All of the batch counts as observed. Without a score the picked
                record their losses and the others keep their last scores; whoever never had one
                counts as not finite.

        Returns:
            A scalar, or [B] in the order of the batch for ``"none"``; in the dtype of ``losses``.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or device does not fit, the loss is a scalar, or both a score and a
                reducer are given; picked goes with a reducer or with batches whose samples stay
                together.
            IndexError: an index is out of range (on a device it is raised by ``end_epoch``).
            NonFiniteLossError: on the cpu, with ``on_nonfinite="raise"``; nothing is recorded then.
        """
        if is_compiling():  # no clock runs while a step is being traced
            loss = self._observe(losses, indices, score, reduction, denom, reducer, picked, False)
            self._run.consume(indices.shape[0])
            return loss
        began, run, loss = perf_counter(), self._run, None
        again = run.again(indices)
        if run.plain and reduction == "mean" and denom is reducer is picked is None:
            loss = self.buffer.observe_mean(losses, indices, score, not again)
        if loss is None:
            loss = self._observe(losses, indices, score, reduction, denom, reducer, picked, again)
            run.divides = run.divides or reduction == "weighted_mean"
        run.trained(indices, indices.numel(), again)
        run.engine_seconds += perf_counter() - began
        return loss

    def _observe(
        self,
        losses: Tensor,
        indices: Tensor,
        score: Tensor | None,
        reduction: Reduction,
        denom: Tensor | float | None,
        reducer: Reducer | None,
        picked: Picked | None,
        again: bool | None,
    ) -> Tensor:
        device = self.buffer.device
        check_reduction(reduction, denom)
        if isinstance(indices, Tensor) and indices.device != device:  # pyright: ignore[reportUnnecessaryIsInstance]
            indices = indices.to(device, non_blocking=True)
        if picked is not None:
            if reducer is not None:
                raise ValueError("picked must not be given with a reducer")
            return self._observe_picked(losses, indices, again, score, reduction, denom, picked)
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
        mean = reduction == "mean" and denom is reducer is None
        self._before(losses, indices, again, score)
        if mean:
            batch = _contiguous(losses), _contiguous(indices), _contiguous(score)
            loss = self.buffer.observe_mean(*batch, not again)
            if loss is not None:
                self._after(losses, indices, score)
                return loss
        rescaled, weights = self.buffer.observe(losses, indices, score=score, advance=not again)
        self._after(losses, indices, score)
        if reducer is not None and (shared := reducer.share(weights)) is not weights:
            rescaled, weights = rescale(losses, shared), shared
        # A reducer's sums are wide; they are rounded once, after the reduction.
        loss = reduce_losses(rescaled, weights, reduction, denom)
        return loss if reducer is None else loss.to(given.dtype)

    def _observe_picked(
        self,
        losses: Tensor,
        indices: Tensor,
        again: bool | None,
        score: Tensor | None,
        reduction: Reduction,
        denom: Tensor | float | None,
        picked: Picked,
    ) -> Tensor:
        """Record the whole batch and weigh the losses of those that were picked from it."""
        if self._run.fixed_batch is not None:
            raise ValueError("picked must not be given where a batch's samples stay together")
        if not isinstance(picked, tuple | list) or len(picked) != 3:  # pyright: ignore[reportUnnecessaryIsInstance, reportUnnecessaryComparison]
            raise TypeError(f"picked must be the three that pick() returned, got {picked!r}")
        chosen, shares, _ = picked
        device = self.buffer.device
        size = check_vector("indices", indices, INDEX_DTYPES, device=device).shape[0]
        check_vector("losses", losses, LOSS_DTYPES, size=chosen.shape[0], device=device)
        check_vector("picked[0]", chosen, INDEX_DTYPES, device=device)
        check_vector("picked[1]", shares, (torch.float32,), size=chosen.shape[0], device=device)
        places = chosen.to(torch.int64)
        if score is None:
            seen = losses.detach().to(torch.float32)
            score = self.buffer.last_scores(indices).index_copy(0, places, seen)
        seen = score.detach()
        self._before(seen, indices, again, None)
        _, weights = self.buffer.observe(seen, indices, advance=not again)
        self._after(seen, indices, None)
        weights = weights[places] * shares
        # A loss that fills up has the weight 0, and may be nan.
        rescaled = torch.where(shares > 0, rescale(losses, weights), 0)
        if reduction == "mean" and denom is None:
            denom = max(size, 1)
        return reduce_losses(rescaled, weights, reduction, denom)

    def _before(
        self, losses: Tensor, indices: Tensor, again: bool | None, score: Tensor | None
    ) -> None:
        """Do what comes before a batch is recorded, and refuse what must not be."""
        run, device = self._run, self.buffer.device
        if run.flows or run.on_nonfinite == "raise":
            check_batch(losses, indices, score, device)
            if run.flows:
                run.arrive(again, losses.shape[0])
            if run.on_nonfinite == "raise" and losses.is_cpu:
                refuse_nonfinite(losses if score is None else score, indices)
        if run.watcher is not None:
            run.watcher.before_record(indices)  # raises before anything is recorded

    def _after(self, losses: Tensor, indices: Tensor, score: Tensor | None) -> None:
        """Show a batch that was recorded to a policy's memory that wants to see it."""
        watcher = self._run.watcher
        if watcher is not None:
            seen = losses if score is None else score
            watcher.after_record(indices, losses.detach(), seen.detach(), NO_EXTRAS)

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
            the logits, float64 for float64. Differentiable to any order (``create_graph=True``),
            also by ``torch.func.grad``; forward mode is refused.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape, device, number or name does not fit.
            IndexError: an index or a target is out of range (on a device ``end_epoch`` raises for
                an index; the loss of such a target is nan).
            NonFiniteLossError: on the cpu, with ``on_nonfinite="raise"``; the batch's other scores
                are recorded by then.
        """
        began = self._run.now()
        run, device, given = self._run, self.buffer.device, indices
        again = not is_compiling() and run.again(indices)
        check_reduction(reduction, denom)
        if isinstance(indices, Tensor) and indices.device != device:  # pyright: ignore[reportUnnecessaryIsInstance]
            indices = indices.to(device, non_blocking=True)
        if run.flows:
            check_labels(logits, targets, indices, class_weight, label_smoothing, device)
            run.arrive(again, indices.shape[0])
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
            advance=not again,
        )
        if watcher is not None:
            extras = Extras(logits.detach(), targets.detach())
            watcher.after_record(indices, rescaled.detach() / weights, found.detach(), extras)
        if run.on_nonfinite == "raise" and found.is_cpu:
            refuse_nonfinite(found, indices)
        if is_compiling():
            run.consume(indices.shape[0])
        else:
            run.trained(given, indices.shape[0], again)
            run.divides = run.divides or reduction == "weighted_mean"
        loss = reduce_losses(rescaled, weights, reduction, denom)
        run.add_seconds(began)
        return loss

    def end_epoch(self, *, partial: bool = False) -> EpochReport:
        """End the epoch: merge ranks, audit, decide the next. The only collective.

        Args:
            partial: the epoch was broken off (an early stop, a limit of batches, an interruption):
                what is missing is reported and no error; what should not have been seen is one.

        Returns:
            What the epoch did and the next will do; nothing has changed if this raises.

        Raises:
            IndexError: a device met indices out of range.
            CoverageError: the samples seen are not the planned ones.
            NonFiniteLossError: with ``on_nonfinite="raise"``.
        """
        return self._run.end_epoch(partial=partial)

    def record(
        self, path: str | os.PathLike[str] | None, *, max_samples: int = MAX_RECORDED
    ) -> None:
        """Keep kept bits and scores of every epoch in one file, from the current epoch on.

        Per epoch 1.375 bytes per sample: a score in 8 bits, 8 steps to an octave, and three bits,
        kept, seen, not finite; and 1,120 bytes more. It is written when an epoch ends, by the first
        rank; a step does nothing. A process that is killed leaves all epochs before; what a
        restored run ends again replaces them. ``pe.recording.Recording`` reads it,
        ``pe.export_scores`` makes a table of it. A copy of the engine records nothing.

        Args:
            path: the file, of this very run or not there yet; None: record no more. Where the disk
                cannot take an epoch there is a ``RuntimeWarning``, and no more is recorded.
            max_samples: of a larger data set so many, evenly spaced.

        Raises:
            TypeError: path names no file, or max_samples is no int.
            ValueError: the file is no recording, or of another run; max_samples is below 1; or
                the scores are divided among ranks (``shard_scores``).
            OSError: it cannot be written.

        Example:
            >>> import tempfile
            >>> from prune_engine import KeepAll
            >>> engine = PruneEngine(4, KeepAll(), num_epochs=1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     engine.record(folder + "/run.rec")
            ...     engine.record(None)
        """
        if path is None:
            self._run.recorder = None
            return
        if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"path must be a string, a Path or None, got {path!r}")
        max_samples = plain(max_samples)
        state.check_count("max_samples", max_samples, needed=True)
        if isinstance(self.buffer, ShardedBuffer):
            raise ValueError("record() needs whole scores, got an engine with shard_scores=True")
        if ranks.world(self._run.process_group)[0] == 0:
            self._run.recorder = Recorder(Path(path), self._run, max_samples)

    def resize(self, num_samples: int) -> None:
        """Follow a data set that has grown or shrunk at its end, between two epochs.

        New samples are unseen, so every rule keeps them (but of a run that began evenly, which
        drops as many of them as of the others); the scores of the others and their exact sum
        stay, and the epoch that begins is decided anew. With several ranks a collective. Make
        the loaders of tensors (``device_loader``) and CUDA graphs anew; others go on.

        Args:
            num_samples: N from now on.

        Raises:
            TypeError: N is no int.
            ValueError: N is out of range, or the policy's memory cannot follow (``BPAS``).
            PruneEngineError: something of the epoch has been trained, ranks differ, or the mode or
                divided scores do not allow it.

        Example:
            >>> from prune_engine import KeepAll
            >>> engine = PruneEngine(2, KeepAll(), num_epochs=2)
            >>> for index in engine.sampler():
            ...     _ = engine.observe(torch.ones(1), torch.tensor([index]))
            >>> _ = engine.end_epoch()
            >>> engine.resize(3)
            >>> engine.plan.num_kept, engine.scores().tolist()
            (3, [1.0, 1.0, nan])
        """
        num_samples = state.sample_count(num_samples)
        self._run.resize(num_samples)
        self.num_samples = num_samples

    def consume(self, size: int) -> None:
        """Note that a batch was trained without a call of ``observe``, by a replayed CUDA graph.

        A graph that captured ``observe`` records the scores of each batch it is replayed for, but
        no code of the engine runs then: cursor, progress, schedule, coverage and resume move by
        this call. Fill the graph's static indices before each replay.

        Args:
            size: B, of this rank.

        Raises:
            TypeError: size is no int.
            ValueError: size is not at least 1.

        Example:
            >>> from prune_engine import KeepAll
            >>> engine = PruneEngine(4, KeepAll(), num_epochs=1)
            >>> batch = torch.tensor(list(engine.sampler()))
            >>> _ = engine.buffer.observe(torch.ones(4), batch)  # as a replayed graph does
            >>> engine.consume(4)
            >>> engine.end_epoch().observed
            4
        """
        size = plain(size)
        state.check_count("size", size, needed=True)
        self._run.consume(size)

    def attach(self, monitor: Monitor) -> None:
        """Let ``observe`` take each batch's activations from a monitor, for ``BPAS``.

        Args:
            monitor: an ``ActivationMonitor`` of the model whose losses are observed.

        Raises:
            TypeError: it is no monitor, or the policy does not look at activations.
        """
        self._run.attach(monitor)

    def pick(
        self,
        values: Tensor,
        k: int,
        *,
        rule: PickRule = "proportional",
        floor: float = FLOOR,
        site: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose min(k, B) of the batch at hand, with weights that make its loss unbiased.

        ``ops.pick`` with this run's seed, epoch, step and rank: systematic sampling (Madow 1949) in
        a random order, in integers (SEMANTICS 3.11). ``(weights * losses[indices]).sum() / B`` is
        unbiased for the batch's mean loss (but for ``"top"``). Until ``observe`` has recorded the
        batch the step is the same, so a recomputed forward repeats its choice. Nothing waits for
        the device.

        Args:
            values: [B] floating on the engine's device, such as the losses of a forward pass
                without a gradient; nan and -inf are not eligible.
            k: in 0..2^31-1, the same on every rank, so that their gradients average as those of
                equal batches do.
            rule: ``"top"``, ``"random"`` or ``"proportional"``.
            floor: in 0..1, of ``"proportional"``: no size is below this share of the mean one. An
                importance weight hurts where the value says nothing about the gradient: compare
                with ``"random"`` before you believe in it.
            site: in 0..2^27-1: tells several choices of one step apart.

        Returns:
            ``indices`` int32 [min(k, B)], positions within the batch, ascending; ``weights``
            float32 [min(k, B)], 0 where fewer were eligible and others fill up; ``eligible`` int64
            [1].

        Raises:
            TypeError: values are not a floating tensor, or a number is of the wrong kind.
            ValueError: a number is out of range, the rule has no such name, or values are on
                another device than the scores.

        Example:
            >>> from prune_engine import KeepAll
            >>> engine = PruneEngine(4, KeepAll(), num_epochs=1)
            >>> losses = torch.tensor([0.5, 4.0, 0.1, 0.4])
            >>> indices, weights, _ = engine.pick(losses, 2)
            >>> len(indices), bool((weights * losses[indices]).sum() >= 4.0)
            (2, True)
        """
        run = self._run
        device = self.buffer.device
        if isinstance(values, Tensor) and values.device != device:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"values must be on {device}, got {values.device}")
        return ops.pick(
            values,
            plain(k),
            rule=plain(rule),
            floor=plain(floor),
            seed=run.seed,
            epoch=self.buffer.epoch,
            step=self.buffer.step,
            rank=ranks.world(run.process_group)[0],
            site=plain(site),
            backend=self.buffer.backend,
        )

    # Data -------------------------------------------------------------------------------------

    def dataset(self, dataset: Any) -> IndexedDataset:
        """Wrap a data set so that each item carries its position.

        Args:
            dataset: map-style, of length N.

        Returns:
            The wrapped data set (the same object where it is wrapped already).

        Raises:
            ValueError: its length is not N.
        """
        wrapped = dataset if isinstance(dataset, IndexedDataset) else IndexedDataset(dataset)
        if len(wrapped) != self.num_samples:
            raise ValueError(
                f"dataset must have {self.num_samples} items, got {len(wrapped)}: where it has "
                f"changed, call engine.resize({len(wrapped)}) at the end of an epoch"
            )
        self._run.watch(wrapped)
        return wrapped

    def sampler(
        self,
        shard: ranks.Shard = "auto",
        align: int | None = None,
        *,
        batch_size: int | None = None,
        accumulate: int = 1,
        resume: Resume = "rest",
    ) -> PruneSampler:
        """Return a sampler of this engine's order.

        Args:
            shard: ``"auto"`` (the rank of ``torch.distributed``; everything under Accelerate),
                ``"none"`` or (rank, world size).
            align: serve a multiple of this many positions over all ranks; default 1, or
                ``batch_size * world size`` where that is given.
            batch_size: per rank, of the loader that draws; the ranks are counted when it does.
            accumulate: batches of an optimizer step: an epoch is a multiple of so many.
            resume: what a pass over the rest of a restored epoch looks like: ``"rest"``, shorter;
                ``"replay"``, of full length with placeholders that the framework skips;
                ``"length"``, shorter, with the ``len`` of a full one.

        Returns:
            A sampler for ``DataLoader(sampler=...)``.
        """
        return PruneSampler(
            self._run,
            shard=shard,
            align=align,
            batch_size=batch_size,
            accumulate=accumulate,
            resume=resume,
        )

    def loader(
        self,
        dataset: Any,
        batch_size: int,
        *,
        align: int | None = None,
        accumulate: int = 1,
        resume: Resume = "rest",
        **options: Any,
    ) -> DataLoader[Any]:
        """Return a ``DataLoader`` whose batches end with their indices.

        Args:
            dataset: map-style, of length N.
            batch_size: per rank; with fixed batches (``BPAS``) this rank's share or a part of it.
            align: default ``batch_size * world size``: every batch is full; with fixed batches the
                world size, for the policy decides about an incomplete one.
            accumulate: batches of an optimizer step: an epoch is a multiple of so many.
            resume: see ``sampler``.
            options: for ``DataLoader``: workers, collate_fn, ...; ``generator``, which seeds its
                workers, is by default one of this engine's seed and not the global one.

        Returns:
            The loader; ``len`` is right in every epoch.

        Raises:
            TypeError: an option decides the order, which is the engine's.
        """
        own_order(options, self.seed)
        batch_size = plain(batch_size)
        state.check_count("batch_size", batch_size, needed=True)
        sampler = self.sampler(
            align=align, batch_size=batch_size, accumulate=accumulate, resume=resume
        )
        return DataLoader(self.dataset(dataset), batch_size, sampler=sampler, **options)

    def device_loader(
        self, data: Any, batch_size: int, *, augment: Augment | None = None, **options: Any
    ) -> DeviceLoader:
        """Return a loader over tensors on this engine's device: ``loader``'s batches, no host.

        Args:
            data: tensors with N rows each, or a ``TensorDataset``; moved to the device once.
            batch_size: per rank.
            augment: ``(tensors, generator) -> tensors``, on the device.
            options: ``shard``, ``align`` and ``accumulate`` of ``DeviceLoader``.

        Returns:
            The loader; its batches are ``(*tensors, indices)``.
        """
        return DeviceLoader(self._run, data, batch_size, augment=augment, **options)

    # What is known ----------------------------------------------------------------------------

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan."""
        return self._run.plan

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based."""
        return self._run.epoch

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self._run.policy

    @property
    def mode(self) -> Literal["epoch", "flow"]:
        """How epochs end."""
        return self._run.mode

    @property
    def seed(self) -> int:
        """The seed."""
        return self._run.seed

    @property
    def num_epochs(self) -> int | None:
        """Length of the run in epochs, where it was given."""
        return self._run.num_epochs

    @property
    def history(self) -> History:
        """The reports of the epochs that have ended."""
        return self._run.history

    @property
    def engine_seconds(self) -> float:
        """Host seconds spent inside the engine so far."""
        return self._run.engine_seconds

    @property
    def part_seconds(self) -> dict[str, float]:
        """``engine_seconds`` by what they were for.

        ``observe``: recording scores and weighing losses; ``order``: drawing the order of samples;
        ``audit``: meeting other ranks and finding out what an epoch saw; ``recording``: see
        ``record``; ``plan``: a policy's memory, and deciding an epoch, the first one too.

        Returns:
            Seconds so far, which add up to ``engine_seconds``.

        Example:
            >>> from prune_engine import KeepAll
            >>> list(PruneEngine(3, KeepAll()).part_seconds)
            ['observe', 'order', 'audit', 'recording', 'plan']
        """
        parts, total = self._run.part_seconds, self._run.engine_seconds
        return {"observe": max(0.0, total - sum(parts.values())), **parts}

    @property
    def recording_seconds(self) -> float:
        """Of ``engine_seconds``, those spent recording since ``record`` was called last."""
        recorder = self._run.recorder
        return recorder.seconds if recorder is not None else 0.0

    @property
    def cursor(self) -> int:
        """Positions of this epoch consumed so far over all ranks: what was trained."""
        return self._run.cursor

    @property
    def steps(self) -> int:
        """Batches observed in the run so far."""
        return self._run.steps

    @property
    def served(self) -> int:
        """Positions of this epoch that are served over all ranks; the rest is the dropped tail."""
        return self._run.served

    @property
    def progress(self) -> float:
        """The share of nominal work done, in [0, 1]: epochs over the run's length."""
        return self._run.progress

    @property
    def done(self) -> bool:
        """Whether the run is over: its epochs are trained, or everything is dropped for ever."""
        return self._run.done

    def wrap_scheduler(self, scheduler: Any, total_steps: int) -> VirtualScheduler:
        """Make a learning-rate schedule follow the data instead of the count of steps.

        Args:
            scheduler: any scheduler made for ``total_steps``, of torch or timm; one that waits for
                a metric is stepped at epoch ends by yourself.
            total_steps: the nominal steps: full epochs times full batches.

        Returns:
            An ``LRScheduler`` to ``step()`` after each optimizer step
            (``schedule.VirtualScheduler``). It warns once, ``errors.LargeWeightWarning``, where the
            largest weight times the rate exceeds the schedule's peak; not where losses are observed
            with ``reduction="weighted_mean"``, which divides the weights out of each step, nor of
            rates that are tensors on a device, for which the host would wait.

        Raises:
            TypeError: the scheduler waits for a metric.
            ValueError: the run has no length, or the scheduler was made for another one.
        """
        if self._run.num_epochs is None:
            raise ValueError("num_epochs must be given to wrap a scheduler, got None")
        watch = RateWatch(self._run, peak_of(scheduler))
        wrapped = VirtualScheduler(scheduler, total_steps, ProgressOf(self), watch)
        self._run.schedule = weakref.ref(wrapped)
        return wrapped

    def effective_lr(self, optimizer: Any = None) -> float:
        """Return the learning rate of the sample that weighs most: the largest rate times weight.

        Weights multiply gradients, and so the learning rate (InfoBatch's 2 doubles it). Compare it
        with the peak of the schedule that is best for full training: beyond that runs diverge, and
        ``wrap_scheduler`` warns (``errors.LargeWeightWarning``). Reads one number from the device,
        once per epoch. With ``shard_scores`` the weight is the largest of the table, whether or not
        a sample has it: the same on every rank.

        Args:
            optimizer: whose rates; default those of the scheduler that was wrapped.

        Returns:
            The product for the current epoch's weights.

        Raises:
            ValueError: neither an optimizer is given nor a scheduler wrapped.

        Example:
            >>> from prune_engine import RandomSubset
            >>> engine = PruneEngine(100, RandomSubset(0.5, rescale=True))
            >>> engine.effective_lr(torch.optim.SGD([torch.zeros(1)], lr=0.1))
            0.2
        """
        if optimizer is None:
            schedule = self._run.schedule()
            if schedule is None:
                raise ValueError("optimizer must be given where no scheduler was wrapped, got None")
            rates = schedule.get_last_lr()
        else:
            rates = [group["lr"] for group in optimizer.param_groups]
        return max((float(rate) for rate in rates), default=0.0) * self.plan.largest_weight

    @property
    def memory(self) -> PolicyMemory | None:
        """What the policy remembers beyond the last scores, where it remembers anything."""
        return self._run.memory

    def scores(self) -> Tensor:
        """Return the last score of every sample, float32 [N], nan where never seen (a copy).

        With ``shard_scores`` those of the samples that this rank owns, ``buffer.owned``.
        """
        return self.buffer.scores

    def metrics(self) -> dict[str, float]:
        """Return the last ended epoch as slash-named numbers for any logger; empty before it.

        With a wrapped scheduler also ``prune/effective_lr``, of the epoch that begins.
        """
        if not self.history:
            return {}
        last = self.history[-1]
        row = {f"prune/{name}": float(value) for name, value in last.as_dict().items()}
        row["prune/saved_fraction"] = last.saved_fraction
        if self._run.schedule() is not None:
            row["prune/effective_lr"] = self.effective_lr()
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return everything a restart needs, as tensors and plain data (``weights_only`` safe).

        Right at any batch: the cursor is the consumed one, the plan is stored. With several ranks
        this is a collective, for scores of the current epoch live on the rank that saw them.

        Returns:
            A new dictionary, the same on every rank and independent of the world size. With
            ``shard_scores`` this rank's part: the states of all ranks together are the state, as
            ``save_state`` writes them.
        """
        return self._run.state_dict()

    def load_state_dict(self, saved: state.Saved) -> None:
        """Restore a state; all or nothing.

        Args:
            saved: what ``state_dict`` returned, in this or another world size. With
                ``shard_scores`` the list of what it returned on each rank, or of those that hold
                this rank's samples; then a collective.

        Raises:
            StateMismatchError: it lists every difference, down to each number of a state that was
                edited; nothing has changed then.
        """
        self._run.load_state_dict(saved)
