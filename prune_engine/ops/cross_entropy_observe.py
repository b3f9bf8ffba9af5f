# SPDX-License-Identifier: Apache-2.0
"""``ops.cross_entropy_observe``: loss, score, record, weight and gradient from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.lasting import saveable
from prune_engine.losses.scores import score_kind
from prune_engine.ops.checks import (
    ObserveState,
    check_int,
    check_labels,
    check_state,
    has_tangent,
    raise_index_error,
    state_of,
)
from prune_engine.ops.cross_entropy_grad import cross_entropy_loss
from prune_engine.plain import plain


def cross_entropy_observe(
    logits: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    records: Tensor,
    score_sum: Tensor,
    counters: Tensor,
    step: Tensor,
    weight_class: Tensor,
    weight_table: Tensor,
    epoch: int | Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    score: str = "loss",
    advance: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Do cross-entropy, its score and ``observe`` in one pass over the logits, in one launch.

    ``loss = (1 - s) w_y nll + s / C sum_c w_c (lse - z_c)``, as ``F.cross_entropy(
    reduction="none")``; the score is of the unsmoothed, unweighted softmax (formulas and papers:
    ``pe.scores``); the record and the weight are those of ``observe``. The softmax is
    online (Milakov and Gimelshein, 2018). Two numbers a row are kept for the gradient,
    ``g_b w_b (softmax - onehot)`` at s = 0, which reads the logits once more: keeping the gradient
    itself would hold another [B, C] until the backward pass and read it there.

    Args:
        logits: [B, C] float16 | bfloat16 | float32 | float64, C at least 1.
        targets: [B] int64 | int32 in 0..C-1, or ``ignore_index``.
        indices: [B] int64 | int32, dataset positions in 0..N-1.
        records: [N] int64, changed.
        score_sum: [10] int64, changed.
        counters: [5] int64, changed.
        step: [1] int64, changed.
        weight_class: [N] uint8, this epoch's decision.
        weight_table: [256] float32: the weight of each class.
        epoch: see ``observe``.
        label_smoothing: s, in 0..1; of the loss, never of the score.
        ignore_index: a row with this target has loss 0 and no score: its last one stays, and it is
            counted with the non-finite ones.
        class_weight: [C] floating, of the loss, never of the score.
        score: a name of ``scores.SCORES``.
        advance: see ``observe``.
        backend: which kernels.

    Returns:
        ``rescaled`` [B] float32 (float64 for float64 logits), differentiable in the logits;
        ``batch_weights`` [B] float32; ``score`` [B] float32, nan where there is none. All in the
        order of the batch. Records, sums and weights have the same bits on every backend for the
        same score; the score itself is a float softmax, equal within rounding.

    Raises:
        TypeError: a dtype is not one of those.
        ValueError: a shape, device, number or name does not fit.
        IndexError: an index or a target is out of range (on the cpu; nothing is written then; a
            device counts the index, and makes the loss of such a target nan).

    Example:
        >>> from prune_engine.epoch import ScoreBuffer
        >>> buffer = ScoreBuffer(4)
        >>> names = ("records", "score_sum", "counters", "step")
        >>> names += ("weight_class", "weight_table", "epoch")
        >>> state = {name: getattr(buffer, name) for name in names}
        >>> logits, targets = torch.tensor([[2.0, 2.0]]), torch.tensor([0])
        >>> losses, _, score = cross_entropy_observe(
        ...     logits, targets, torch.tensor([3]), score="entropy", **state)
        >>> round(losses.item(), 4), round(buffer.scores[3].item(), 4)
        (0.6931, 0.6931)
    """
    state = state_of(records, score_sum, counters, step, weight_class, weight_table, epoch)
    check_state(*state)
    kernels = backends.kernels_for(backend, records)
    result = cross_entropy_state(
        logits,
        targets,
        indices,
        state,
        kernels,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        class_weight=class_weight,
        score=score,
        advance=advance,
    )
    # The compiled operators do not tell autograd what they changed (see observe).
    torch.autograd.graph.increment_version(state[:4])
    return result


def cross_entropy_state(
    logits: Tensor,
    targets: Tensor,
    indices: Tensor,
    state: ObserveState,
    kernels: backends.Kernels,
    *,
    label_smoothing: float,
    ignore_index: int,
    class_weight: Tensor | None,
    score: str,
    advance: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what ``cross_entropy_observe`` does with a state and kernels that are known to fit.

    Args:
        logits: [B, C], see there.
        targets: [B], see there.
        indices: [B], see there.
        state: records, score_sum, counters, step, weight_class, weight_table and epoch.
        kernels: of a backend that serves their device.
        label_smoothing: see there.
        ignore_index: see there.
        class_weight: [C] or None, see there.
        score: see there.
        advance: see there.

    Returns:
        ``rescaled``, ``batch_weights`` and ``score``, see there.

    Raises:
        TypeError: a dtype is not one of those.
        ValueError: a shape, device, number or name does not fit.
        IndexError: an index or a target is out of range.

    Example:
        >>> from prune_engine.epoch import ScoreBuffer
        >>> state = ScoreBuffer(2).observe_arguments
        >>> batch = torch.zeros(1, 4), torch.tensor([0]), torch.tensor([1])
        >>> cross_entropy_state(*batch, state, backends.load("reference"), label_smoothing=0.0,
        ...     ignore_index=-100, class_weight=None, score="least_confidence",
        ...     advance=True)[2].item()
        0.75
    """
    kind = score_kind(score)
    check_labels(logits, targets, indices, class_weight, label_smoothing, state[0].device)
    words = "-2^63..2^63-1"
    ignore_index = check_int("ignore_index", ignore_index, -(2**63), 2**63 - 1, words)
    if has_tangent(logits):
        raise ValueError(
            "logits must have no forward-mode tangent, whose product with the loss is not made "
            "here: use observe() with the losses of F.cross_entropy"
        )
    logits, indices = logits.contiguous(), indices.contiguous()
    targets = saveable(targets.to(torch.int64).contiguous())
    if class_weight is not None:
        class_weight = saveable(class_weight.detach().to(torch.float32).contiguous())
    label_smoothing = float(plain(label_smoothing))
    labels = (class_weight, label_smoothing, ignore_index)
    try:
        rescaled, weights, found, stats = kernels.cross_entropy_observe(
            logits.detach(), targets, indices, *labels, kind, state, advance
        )
    except RuntimeError as error:
        raise_index_error(error)
    if logits.requires_grad and torch.is_grad_enabled():
        gradient = kernels.cross_entropy_grad
        rescaled = cross_entropy_loss(logits, rescaled, gradient, targets, labels, weights, stats)
    return rescaled, weights, found
