# SPDX-License-Identifier: Apache-2.0
"""top in Triton: the smallest key that stays, the index of the last of its ties, and the mask."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.backends.triton.select import (
    BINS,
    COPIES,
    LEVELS,
    TILE,
    add_counts,
    digit_of,
    find_bin,
    find_ranks,
    load_counts,
    load_keys,
    shift_of,
)

MASK_TILE = 2048


@triton.jit(do_not_specialize=["num_samples"])
def tie_kernel(
    values,
    state,
    last,
    counts,
    num_samples: tl.int64,
    RECORDS: tl.constexpr,
    LEVEL: tl.constexpr,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    COPIES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count a digit of the index of the samples that tie, unless all of them stay."""
    if tl.load(state + 1) > 0:
        place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        key = load_keys(values, place, num_samples, RECORDS)
        index = place.to(tl.uint32)
        tied = (key != 0) & (key == tl.load(state).to(tl.uint32))
        if LEVEL > 0:
            wanted = tl.load(last).to(tl.uint32) >> shift_of(LEVEL - 1)
            tied &= (index >> shift_of(LEVEL - 1)) == wanted
        digit = digit_of(index, LEVEL)
        add_counts(counts + LEVEL * BINS, digit, tied, BINS, LEVELS * BINS, COPIES)


@triton.jit
def last_kernel(
    counts,
    state,
    last,
    LEVEL: tl.constexpr,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    COPIES: tl.constexpr,
):
    """Take a digit of the index of the last tie that stays. last [2]: it, its rank within them."""
    above = tl.load(state + 1)
    if LEVEL == 0:
        rank = tl.load(state + 2) - above - 1
        index = above * 0
    else:
        rank = tl.load(last + 1)
        index = tl.load(last)
    bin, rank, _ = find_bin(
        load_counts(counts + LEVEL * BINS, BINS, LEVELS * BINS, COPIES), rank, BINS
    )
    # All of them stay: no sample's index is larger.
    tl.store(last, tl.where(above > 0, index | (bin << shift_of(LEVEL)), 0x7FFFFFFF))
    tl.store(last + 1, rank)


@triton.jit(do_not_specialize=["num_samples"])
def mask_kernel(
    values, state, last, mask, num_samples: tl.int64, RECORDS: tl.constexpr, TILE: tl.constexpr
):
    """Write one tile of the mask."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    key = load_keys(values, place, num_samples, RECORDS)
    edge = tl.load(state).to(tl.uint32)
    tied = tl.where((key == edge) & (place <= tl.load(last)), 1, 0)
    stays = tl.where(key != 0, tl.where(key > edge, 1, tied), 0)
    tl.store(mask + place, stays.to(tl.uint8), place < num_samples)


def top(values: Tensor, k: int) -> Tensor:
    """Mark the k largest scores, ties to the smaller index; see ``reference.top``."""
    num_samples, device = values.numel(), values.device
    if num_samples == 0 or k == 0:
        return torch.zeros(num_samples, dtype=torch.uint8, device=device)
    _, state = find_ranks(values, [1 - k], [1], 1)
    mask = torch.empty(num_samples, dtype=torch.uint8, device=device)
    counts = torch.zeros(COPIES, LEVELS, BINS, dtype=torch.int32, device=device)
    last = torch.empty(2, dtype=torch.int64, device=device)
    records = values.dtype == torch.int64
    for level in range(LEVELS):
        launch(
            tie_kernel,
            blocks_of(num_samples, TILE),
            values,
            values,
            state,
            last,
            counts,
            num_samples,
            RECORDS=records,
            LEVEL=level,
            LEVELS=LEVELS,
            BINS=BINS,
            COPIES=COPIES,
            TILE=TILE,
            warps=4,
        )
        launch(
            last_kernel,
            1,
            values,
            counts,
            state,
            last,
            LEVEL=level,
            LEVELS=LEVELS,
            BINS=BINS,
            COPIES=COPIES,
            warps=4,
        )
    launch(
        mask_kernel,
        blocks_of(num_samples, MASK_TILE),
        values,
        values,
        state,
        last,
        mask,
        num_samples,
        RECORDS=records,
        TILE=MASK_TILE,
        warps=4,
    )
    return mask
