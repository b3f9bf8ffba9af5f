# SPDX-License-Identifier: Apache-2.0
"""From per-sample losses to the loss that is trained, and to the score that is recorded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prune_engine.errors import NonFiniteLossError
from prune_engine.lasting import saveable
from prune_engine.plain import plain

REDUCTIONS = ("mean", "sum", "none", "weighted_mean")


def check_reduction(reduction: str, denom: Tensor | float | None) -> None:
    """Refuse a reduction that does not exist, before a batch is recorded.

    Args:
        reduction: must be one of ``REDUCTIONS``.
        denom: must be None unless the reduction is ``"mean"``: then a number above 0, or a tensor
            of one (whose value is not looked at: the host would wait).

    Raises:
        TypeError: denom is neither.
        ValueError: one does not fit.

    Example:
        >>> check_reduction("sum", None)
    """
    if reduction not in REDUCTIONS:
        words = ", ".join(map(repr, REDUCTIONS))
        raise ValueError(f"reduction must be one of {words}, got {reduction!r}")
    if denom is not None and reduction != "mean":
        raise ValueError(f"denom must not be given with reduction={reduction!r}")
    if isinstance(denom, Tensor):
        if denom.numel() != 1:
            raise ValueError(f"denom must be one number, got shape {tuple(denom.shape)}")
    elif denom is not None:
        denom = plain(denom)
        if isinstance(denom, bool) or not isinstance(denom, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"denom must be a number or a tensor, got {denom!r}")
        if not 0 < denom < math.inf:
            raise ValueError(f"denom must be above 0 and finite, got {denom}")


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what losses are summed and divided in: float64 for float64, float32 for all others.

    Args:
        dtype: of the losses.

    Returns:
        One in which a batch's sum does not leave the range, as it does in float16.

    Example:
        >>> wide_dtype(torch.float16), wide_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def reduce_losses(
    rescaled: Tensor, weights: Tensor, reduction: str, denom: Tensor | float | None
) -> Tensor:
    """Reduce weighted losses.

    ``mean`` divides by B and not by the sum of weights: the gradient of a pruned step stands for
    the gradient of the whole data set (InfoBatch, ICLR 2024, eq. 9).

    Args:
        rescaled: [B], weight times loss.
        weights: [B] float32.
        reduction: ``"mean"``, ``"sum"``, ``"none"`` or ``"weighted_mean"``.
        denom: divide the sum by this instead of B.

    Returns:
        A scalar, or [B] for ``"none"``, in the dtype of ``rescaled``; sums are made in float32 or
        float64. An empty batch gives 0, not nan (edge case 1).

    Raises:
        ValueError: an unknown reduction, or ``denom`` with one that has its own.

    Example:
        >>> reduce_losses(torch.tensor([2.0, 4.0]), torch.ones(2), "mean", None).item()
        3.0
    """
    check_reduction(reduction, denom)
    if reduction == "none":
        return rescaled
    # A float16 sum of 4096 losses of 20 is inf; their mean is not.
    wide = wide_dtype(rescaled.dtype)
    if reduction == "mean" and denom is None and rescaled.shape[0]:
        return rescaled.mean(dtype=wide).to(rescaled.dtype)
    total = rescaled.sum(dtype=wide)
    if denom is not None:
        total = total / (saveable(denom).reshape(()) if isinstance(denom, Tensor) else denom)
    elif reduction == "weighted_mean":
        weight = weights.sum()
        # All weights 0 (or none): the sum is 0 already, and must not become nan.
        total = total / torch.where(weight == 0, 1.0, weight).to(wide)
    return total.to(rescaled.dtype)


def refuse_nonfinite(scores: Tensor, indices: Tensor) -> None:
    """Raise where a float32 score of a batch is inf or nan; this reads them: for the cpu.

    Args:
        scores: [B] floating.
        indices: [B], the samples they are of.

    Raises:
        NonFiniteLossError: it names the first such sample.

    Example:
        >>> refuse_nonfinite(torch.tensor([1.0]), torch.tensor([7]))
    """
    finite = torch.isfinite(scores.detach().to(torch.float32))  # as it would be recorded
    if not bool(finite.all()):
        sample = indices[~finite][0].item()
        raise NonFiniteLossError(
            f"losses must be finite in float32, got {scores[~finite][0].item()} for sample {sample}"
        )


def cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the per-sample loss to train on and the per-sample score to record.

    A smoothed loss is not monotone in confidence (with eps = 0.1 and 10 classes it is 0.50 at p =
    0.91 but 1.03 at p = 0.9999), so over-confident easy samples would look hard: the score is the
    unsmoothed negative log-likelihood ``-log p[target]`` of the same logits (SEMANTICS 3.10).

    Args:
        logits: [B, C] floating.
        targets: [B] int64 in 0..C-1.
        label_smoothing: in [0, 1].

    Returns:
        ``losses`` [B] in the dtype of the logits, differentiable, and ``score`` [B], detached.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: label_smoothing is out of range.

    Example:
        >>> losses, score = cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        >>> round(losses.item(), 4), score.requires_grad
        (0.6931, False)
    """
    for name, tensor in (("logits", logits), ("targets", targets)):
        if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    label_smoothing = plain(label_smoothing)
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"label_smoothing must be a number in [0, 1], got {label_smoothing!r}")
    # Smoothing sums the logarithms of all classes: in float16 that is inf from some 6000 on.
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in 0..1, got {label_smoothing}")
    wide = logits.to(wide_dtype(logits.dtype))
    losses = F.cross_entropy(wide, targets, reduction="none", label_smoothing=label_smoothing)
    losses = losses.to(logits.dtype)
    if label_smoothing == 0:
        return losses, losses.detach()
    return losses, F.cross_entropy(wide.detach(), targets, reduction="none")
