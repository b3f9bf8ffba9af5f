# SPDX-License-Identifier: Apache-2.0
"""solve_levels in Triton: one program finds the threshold by bisection."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.launch import launch
from prune_engine.bands import (
    CELLS,
    FIRST_CELL,
    HIGHEST_THETA,
    LOWEST_THETA,
    NUM_CLASSES,
    UNSEEN_CELL,
)


@triton.jit
def keep_of(theta, cell, least):
    """How many of the 65536 draws keep a sample of a cell, int64; see ``reference``."""
    exponent = theta >> 23
    significand = (theta & 0x7FFFFF) | 0x800000
    octave = (cell - 4096) >> 4
    shift = 34 + octave - exponent
    within = tl.minimum(tl.maximum(shift, 0), 34)
    keep = tl.minimum(((33 + 2 * (cell & 15)) << within) // significand, 65536)
    keep = tl.where(octave > exponent, 65536, tl.where(shift < 0, 0, keep))
    return tl.maximum(keep, least)


@triton.jit(do_not_specialize=["target", "least"])
def solve_levels_kernel(
    counts,
    top_out,
    cut,
    weight_table,
    solution,
    target: tl.int64,
    least: tl.int64,
    CELLS: tl.constexpr,
    FIRST: tl.constexpr,
    UNSEEN: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Write the levels of one count."""
    place = tl.arange(0, CELLS).to(tl.int64)
    cell = place + FIRST
    held = tl.load(counts + place)
    unseen = tl.load(counts + UNSEEN)
    held = tl.where(place < UNSEEN, held, 0)
    zero = unseen * 0
    low = zero + LOW
    high = zero + HIGH
    for _ in range(32):  # 270 * 2^23 thresholds
        middle = (low + high) // 2
        expected = 65536 * unseen + tl.sum(held * keep_of(middle, cell, least))
        enough = expected <= 65536 * target
        low = tl.where(enough | (low >= high), low, middle + 1)
        high = tl.where(enough & (middle < high), middle, high)
    expected = 65536 * unseen + tl.sum(held * keep_of(low, cell, least))
    first = 4096 + 16 * (low >> 23)
    step = tl.arange(0, 32).to(tl.int64)
    whole = keep_of(low, first + step, zero) == 65536
    top = tl.min(tl.where(whole, first + step, first + 32))
    tl.store(top_out, top.to(tl.int32))
    tl.store(solution, low)
    tl.store(solution + 1, expected)
    level = tl.arange(0, CLASSES).to(tl.int64)
    lower = top + 1 - level
    keep = keep_of(low, tl.maximum(lower, FIRST), least)
    keep = tl.where((lower < FIRST) | (level == CLASSES - 1), least, keep)
    keep = tl.where(level == 1, 65536, keep)
    tl.store(cut + level, tl.where(level == 0, 65536, 65536 - keep).to(tl.int32))
    weight = tl.div_rn(keep.to(tl.float32) * 0 + 65536.0, keep.to(tl.float32))
    tl.store(weight_table + level, tl.where(level == 0, 0.0, weight))


def solve_levels(counts: Tensor, target: int, least: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the levels that keep a number of samples; see ``reference.solve_levels``."""
    device = counts.device
    top = torch.empty(1, dtype=torch.int32, device=device)
    cut = torch.empty(NUM_CLASSES, dtype=torch.int32, device=device)
    weight_table = torch.empty(NUM_CLASSES, dtype=torch.float32, device=device)
    solution = torch.empty(2, dtype=torch.int64, device=device)
    launch(
        solve_levels_kernel,
        1,
        counts,
        counts,
        top,
        cut,
        weight_table,
        solution,
        target,
        least,
        CELLS=CELLS,
        FIRST=FIRST_CELL,
        UNSEEN=UNSEEN_CELL,
        LOW=LOWEST_THETA,
        HIGH=HIGHEST_THETA,
        CLASSES=NUM_CLASSES,
        warps=8,
    )
    return top, cut, weight_table, solution
