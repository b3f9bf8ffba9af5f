# SPDX-License-Identifier: Apache-2.0
"""The levels of scores that keep a number of samples on average."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import CELLS, DRAWS, FIRST_CELL, MAX_LEVEL_SAMPLES, UNSEEN_CELL
from prune_engine.ops.cells import cell_of
from prune_engine.ops.checks import check_int, check_vector


class Levels(NamedTuple):
    """Levels of scores, all on the device.

    Args:
        top: int32 [1], the lowest cell that is kept whole: that of class 1.
        cut: int32 [256]: a sample of a class is dropped iff its 16-bit draw is below.
        weight_table: float32 [256], 65536 / (65536 - cut); class 0, dropped, weighs 0.
        solution: int64 [2]: the threshold as float32 bits, and 65536 times the expected number
            kept.

    Example:
        >>> solve_levels(torch.zeros(4096, dtype=torch.int64), 0).top.tolist()
        [4112]
    """

    top: Tensor
    cut: Tensor
    weight_table: Tensor
    solution: Tensor


def solve_levels(
    counts: Tensor,
    target: int,
    *,
    least: int = 1,
    unseen: Tensor | None = None,
    backend: str = "auto",
) -> Levels:
    """Find the levels that keep a number of samples on average, in proportion to their scores.

    A sample of score x stays with probability ``min(1, x / tau)``, at least ``least / 65536``, in
    sixteen steps to an octave; tau is the smallest with which no more than ``target`` stay on
    average. Weights are the inverse probabilities, so that a weighed sum is unbiased to one
    float32 rounding (Horvitz and Thompson, JASA 1952; the levels are ours: SEMANTICS 3.12).

    Args:
        counts: [4096] int64, what ``cells`` returned, of all shards together; each at least 0,
            below 2^46 in all.
        target: how many samples to keep, in 0..2^46. Where the never seen, if they stay, and
            ``least`` alone are more, those are what is kept.
        least: in 1..65536, of 65536 draws those that keep any sample.
        unseen: float32 [1] on the same device, the score that the never seen count as; None: they
            stay.
        backend: which kernels.

    Returns:
        The levels; nothing waits for the device.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: a dtype does not fit, or a number is no int.

    Example:
        >>> counts = torch.zeros(4096, dtype=torch.int64)
        >>> counts[2016], counts[2032] = 6, 2  # scores of 1.0 and of 2.0
        >>> levels = solve_levels(counts, 4)
        >>> expected = levels.solution[1].item() / 65536
        >>> 3.99 < expected <= 4
        True
    """
    check_vector("counts", counts, (torch.int64,), size=CELLS)
    target = check_int("target", target, 0, MAX_LEVEL_SAMPLES, "0..2^46")
    least = check_int("least", least, 1, DRAWS)
    if unseen is not None:
        counts = _moved(
            counts, check_vector("unseen", unseen, (torch.float32,), size=1, device=counts.device)
        )
    kernels = backends.kernels_for(backend, counts)
    return Levels(*kernels.solve_levels(counts.contiguous(), target, least))


def _moved(counts: Tensor, unseen: Tensor) -> Tensor:
    """Count the never seen among the samples of a score's cell."""
    bins = torch.arange(CELLS, device=counts.device)
    moved = torch.where(bins == cell_of(unseen) - FIRST_CELL, counts + counts[UNSEEN_CELL], counts)
    return torch.where(bins == UNSEEN_CELL, 0, moved)
