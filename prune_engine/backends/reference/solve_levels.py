# SPDX-License-Identifier: Apache-2.0
"""The levels of a budget in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.bands import (
    CELLS,
    DRAWS,
    FIRST_CELL,
    HIGHEST_THETA,
    LOWEST_THETA,
    NUM_CLASSES,
    UNSEEN_CELL,
)

SCORE_CELLS = CELLS - 32  # bins of finite scores


def keep_of(theta: int, cells: Tensor, least: int) -> Tensor:
    """Say how many of the 65536 draws keep a sample of some cells.

    ``max(least, floor(65536 min(1, r / tau)))``: r is the middle of the cell and tau the float
    whose bits theta is, ``T 2^(e - 150)`` with ``theta = e << 23 | T - 2^23``.

    Args:
        theta: in 2^23..271 2^23.
        cells: [M] int64, each at least 4112.
        least: in 0..65536.

    Returns:
        int64 [M], in the same order.

    Example:
        >>> one = 127 << 23  # the bits of 1.0
        >>> keep_of(one, torch.tensor([6128, 6127, 6112]), 0).tolist()
        [65536, 64512, 33792]
    """
    exponent, significand = theta >> 23, (1 << 23) | (theta & 0x7FFFFF)
    octave = (cells - 4096) >> 4
    shift = 34 + octave - exponent
    keep = ((33 + 2 * (cells & 15)) << shift.clamp(0, 34)) // significand
    keep = torch.where(shift < 0, 0, keep.clamp(max=DRAWS))
    return torch.where(octave > exponent, DRAWS, keep).clamp(min=least)


def solve_levels(counts: Tensor, target: int, least: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the levels that keep a number of samples on average, and no more.

    theta is the smallest in 2^23..271 2^23 with ``65536 unseen + sum of count * keep_of <= 65536
    target``, or the largest where there is none. Class 1 is of the lowest cell that every draw
    keeps, of those above and of what was never seen; each further class one cell lower; class 255
    all that are left, of which ``least`` draws keep.

    Args:
        counts: [4096] int64, of ``cells``; below 2^46 in all.
        target: in 0..2^46.
        least: in 1..65536.

    Returns:
        top int32 [1], the cell of class 1; cut int32 [256]: a sample of a class is dropped iff its
        draw is below; weight_table float32 [256], the inverse of the share that stays; solution
        int64 [2]: theta, and 65536 times the number kept on average.

    Example:
        >>> counts = torch.zeros(4096, dtype=torch.int64)
        >>> counts[2016] = 8  # scores of 1.0
        >>> top, cut, table, solution = solve_levels(counts, 4, 1)
        >>> kept = 65536 - cut[top.item() + 1 - 6128].item()
        >>> kept, solution[1].item() == 8 * kept
        (32768, True)
    """
    device = counts.device
    filled = counts[:SCORE_CELLS].nonzero().flatten()
    cells, held = FIRST_CELL + filled, counts[filled]

    def expected(theta: int) -> int:
        kept = (held * keep_of(theta, cells, least)).sum()
        return int(DRAWS * counts[UNSEEN_CELL] + kept)

    low, high = LOWEST_THETA, HIGHEST_THETA
    while low < high:
        middle = (low + high) // 2
        if expected(middle) <= DRAWS * target:
            high = middle
        else:
            low = middle + 1
    first = 4096 + 16 * (low >> 23)
    candidates = torch.arange(first, first + 17, device=device)
    top = candidates[keep_of(low, candidates, 0) == DRAWS][0]
    lower = top + 1 - torch.arange(NUM_CLASSES, device=device)
    keep = keep_of(low, lower.clamp(min=FIRST_CELL), least)
    keep = torch.where(lower < FIRST_CELL, least, keep)
    keep[0], keep[1], keep[-1] = 0, DRAWS, least
    table = torch.full_like(keep, DRAWS, dtype=torch.float32) / keep.to(torch.float32)
    table[0] = 0.0
    return (
        top.to(torch.int32).reshape(1),
        (DRAWS - keep).to(torch.int32),
        table,
        torch.tensor([low, expected(low)], device=device),
    )
