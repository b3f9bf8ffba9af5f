# SPDX-License-Identifier: Apache-2.0
"""B-PAS's rule as functions of tensors: what a batch's activations did, and who leaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAD = 1.4826  # a normal deviate's standard deviation over its median absolute deviation


def statistic(moments: Tensor, *, unbiased: bool) -> Tensor:
    """Return X(b): the mean over the layers of the std of a layer's output over the whole batch.

    B-PAS (ICLR 2026). Moments of parts of a batch (ranks, micro-batches) are merged before, so the
    std is that of the whole batch and not a mean of stds.

    Args:
        moments: float64 [num_batches, L, 3] = (count, mean, M2).
        unbiased: divide by count - 1.

    Returns:
        float64 [num_batches], nan where a layer of the batch has no or too few values.

    Example:
        >>> statistic(torch.tensor([[[3.0, 0.0, 8.0]]]).double(), unbiased=True).tolist()
        [2.0]
    """
    count, second = moments[..., 0], moments[..., 2]
    freedom = count - 1 if unbiased else count
    std = (second / torch.where(freedom > 0, freedom, math.nan)).sqrt()
    total = torch.zeros_like(std[:, 0]) if std.shape[1] else std.new_full(std.shape[:1], math.nan)
    for layer in range(std.shape[1]):  # in one order on every device and thread count
        total = total + std[:, layer]
    return total / max(1, std.shape[1])


def noise_floor(now: Tensor, before: Tensor, earlier: Tensor, alive: Tensor) -> Tensor:
    """Estimate how far X moves between epochs by noise alone (augmentation, dropout).

    ``now - 2 before + earlier`` takes out whatever a batch drifts at a steady rate, the learning,
    and has 6 times the variance of one X's noise; a difference of two X has 2 times it. The scale
    is the median absolute deviation over the living batches, which those still bending do not
    move: ``1.4826 * MAD / sqrt(3)``.

    Args:
        now: X_i, float64 [num_batches].
        before: X_{i-1}.
        earlier: X_{i-2}.
        alive: bool [num_batches].

    Returns:
        A float64 scalar on the device, the standard deviation of X_i - X_{i-1} under noise; nan
        where no living batch has all three.

    Example:
        >>> steady = torch.arange(5).double()
        >>> noise_floor(3 * steady, 2 * steady, steady, torch.ones(5, dtype=torch.bool)).item()
        0.0
    """
    bend = torch.where(alive, now - 2 * before + earlier, math.nan)
    middle = bend.nanmedian()
    return MAD * (bend - middle).abs().nanmedian() / math.sqrt(3.0)


def change_of(
    now: Tensor, before: Tensor, earlier: Tensor, alive: Tensor, noise: float | None
) -> Tensor:
    """Return how much each batch's activations changed.

    ``|X_i - X_{i-1}|``, as published. With a noise floor, a batch that moved by more than noise
    explains in the epoch before counts with that change when it is the larger one: an unconverged
    batch whose drift and noise happen to cancel in one epoch is not taken for a stable one.

    Args:
        now: X_i, float64 [num_batches].
        before: X_{i-1}.
        earlier: X_{i-2}; not used without a noise floor.
        alive: bool [num_batches].
        noise: how many standard deviations of noise are explained by it; None: as published.

    Returns:
        float64 [num_batches]; nan where an X that is needed is missing.

    Example:
        >>> x, yes = torch.tensor([1.0, 2.0]).double(), torch.ones(2, dtype=torch.bool)
        >>> change_of(x, x - 0.5, x, yes, None).tolist()
        [0.5, 0.5]
    """
    change = (now - before).abs()
    if noise is None:
        return change
    previous = (before - earlier).abs()
    floor = noise * noise_floor(now, before, earlier, alive)
    raised = torch.where(previous > floor, torch.maximum(change, previous), change)
    return torch.where(torch.isnan(previous), math.nan, raised)  # not known yet: stays


def survivors(
    change: Tensor, alive: Tensor, delta: float | Tensor, *, strict: bool, min_batches: int
) -> Tensor:
    """Decide who stays: a batch leaves for ever iff its change is at most delta (B-PAS).

    Args:
        change: float64 [num_batches]; nan keeps a batch.
        alive: bool [num_batches].
        delta: delta_i.
        strict: leave iff the change is below delta.
        min_batches: so many stay at least: those that changed most, ties to the smaller index.

    Returns:
        bool [num_batches]; nothing in it makes the host wait.

    Example:
        >>> change, yes = torch.tensor([1.0, 3.0, 2.0]), torch.ones(3, dtype=torch.bool)
        >>> survivors(change, yes, 2.0, strict=False, min_batches=0).tolist()
        [False, True, False]
        >>> survivors(change, yes, 9.0, strict=False, min_batches=2).tolist()
        [False, True, True]
    """
    stable = change < delta if strict else change <= delta
    stays = alive & ~stable
    if min_batches:
        rank = torch.where(alive, torch.nan_to_num(change, nan=math.inf), -math.inf)
        first = torch.argsort(rank, descending=True, stable=True)[:min_batches]
        spared = torch.zeros_like(alive)
        spared[first] = True
        stays = stays | (spared & alive)
    return stays


def smallest(change: Tensor, alive: Tensor, count: int) -> Tensor:
    """Return the delta at which ``count`` of the living batches leave.

    Args:
        change: float64 [num_batches]; nan never leaves.
        alive: bool [num_batches].
        count: at least 0.

    Returns:
        The count-th smallest change, a float64 scalar on the device; -inf where nobody leaves.

    Example:
        >>> change, yes = torch.tensor([1.0, 3.0, 2.0]), torch.ones(3, dtype=torch.bool)
        >>> smallest(change, yes, 2).item()
        2.0
    """
    if count <= 0 or change.shape[0] == 0:
        return change.new_full((), -math.inf)
    usable = torch.where(alive & ~torch.isnan(change), change, math.inf)
    delta = torch.sort(usable).values[min(count, change.shape[0]) - 1]
    # Fewer have a change than should leave: all of those leave, the others stay.
    most = torch.where(torch.isinf(usable), -math.inf, usable).amax()
    return torch.minimum(delta, most)
