# SPDX-License-Identifier: Apache-2.0
"""select in Triton: radix select on keys, digit by digit, with no host sync (``select.cuh``).

A key has four digits of 8 bits. Each pass counts one digit of the samples whose higher digits are
those of the answer; one small program per rank turns the counts into the next digit. A program
counts its tile by the warps' votes and adds each bin once: an atomic a sample, on bins that all
share, would cost more than everything else.
"""

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

from prune_engine.backends.triton.arithmetic import (
    bits_to_key,
    key_to_bits,
    steady,
    steady_value,
)
from prune_engine.backends.triton.launch import blocks_of, launch

LEVELS = 4
BINS = 256
COPIES = 16  # of the counts
TILE = 4096  # samples of a program
LOWEST_KEY = tl.constexpr(0x00800000)  # of -FLT_MAX
BIAS = 2**31  # makes an offset one of the numbers that `steady` can carry


@triton.jit
def shift_of(LEVEL: tl.constexpr):
    """The bits below a digit of a key, or of a sample's index."""
    return 24 - 8 * LEVEL


@triton.jit
def digit_of(number, LEVEL: tl.constexpr):
    """A digit (int32) of a number (uint32)."""
    return ((number >> shift_of(LEVEL)) & 0xFF).to(tl.int32)


@triton.jit
def load_keys(values, place, num_samples, RECORDS: tl.constexpr):
    """Keys (uint32) of samples, 0 where never seen or past the end."""
    if RECORDS:
        return tl.load(values + place, place < num_samples, other=0).to(tl.uint32)
    else:
        bits = tl.load(values + place, place < num_samples, other=float("nan"))
        bits = bits.to(tl.uint32, bitcast=True)
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0, bits_to_key(bits)).to(tl.uint32)


@triton.jit
def add_counts(
    counts, digit, chosen, BINS: tl.constexpr, STRIDE: tl.constexpr, COPIES: tl.constexpr
):
    """Count the chosen digits of one tile, in one of the copies: programs queue up less."""
    found = tl.histogram(digit, BINS, mask=chosen)
    copy = (tl.program_id(0) % COPIES) * STRIDE
    # The mask is made of the slot: a tile of booleans would pass through local memory.
    slot = tl.where(found > 0, tl.arange(0, BINS), -1)
    tl.atomic_add(counts + copy + slot, found, mask=slot >= 0, sem="relaxed")


@triton.jit
def load_counts(counts, BINS: tl.constexpr, STRIDE: tl.constexpr, COPIES: tl.constexpr):
    """The counts of all copies, int32 [BINS]."""
    bins = tl.arange(0, BINS)
    total = tl.load(counts + bins)
    for copy in range(1, COPIES):
        total += tl.load(counts + copy * STRIDE + bins)
    return total


@triton.jit(do_not_specialize=["num_samples"])
def digit_kernel(
    values,
    state,
    counts,
    num_samples: tl.int64,
    RECORDS: tl.constexpr,
    RANKS: tl.constexpr,
    LEVEL: tl.constexpr,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    COPIES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count a digit of one tile for each rank; the first digit is the same for all.

    counts [COPIES, LEVELS, RANKS, BINS] is zero before.
    """
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    key = load_keys(values, place, num_samples, RECORDS)
    digit = digit_of(key, LEVEL)
    counts += LEVEL * RANKS * BINS
    STRIDE: tl.constexpr = LEVELS * RANKS * BINS
    if LEVEL == 0:
        add_counts(counts, digit, key != 0, BINS, STRIDE, COPIES)
    else:
        # Where nothing is seen the digits so far are 0, as those of the unseen are.
        above = key >> shift_of(LEVEL - 1)
        for r in tl.static_range(RANKS):
            wanted = tl.load(state + r).to(tl.uint32) >> shift_of(LEVEL - 1)
            chosen = (key != 0) & (above == wanted)
            add_counts(counts + r * BINS, digit, chosen, BINS, STRIDE, COPIES)


@triton.jit
def find_bin(count, rank, BINS: tl.constexpr):
    """The bin in which a rank lies, the rank within it, and its count: int64."""
    bins = tl.arange(0, BINS)
    through = tl.cumsum(count)
    bin = tl.sum((through <= rank).to(tl.int32)).to(tl.int32)
    before = tl.sum(tl.where(bins < bin, count, 0)).to(tl.int64)
    inside = tl.sum(tl.where(bins == bin, count, 0)).to(tl.int64)
    return bin.to(tl.int64), rank - before, inside


@triton.jit(do_not_specialize=["den"])
def pick_kernel(
    counts,
    state,
    out,
    offsets,
    shares,
    den: tl.int64,
    RANKS: tl.constexpr,
    LEVEL: tl.constexpr,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    COPIES: tl.constexpr,
    LOWEST_KEY: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Take a digit of one rank. state [3, RANKS]: the key so far, the rank within it, its ties."""
    r = tl.program_id(0)
    row = counts if LEVEL == 0 else counts + (LEVEL * RANKS + r) * BINS
    count = load_counts(row, BINS, LEVELS * RANKS * BINS, COPIES)
    seen = tl.sum(count).to(tl.int64)
    if LEVEL == 0:
        offset = seen * 0
        share = seen * 0
        for each in tl.static_range(RANKS):
            offset = tl.where(r == each, steady_value(offsets[each]) - BIAS, offset)
            share = tl.where(r == each, steady_value(shares[each]), share)
        last = seen - 1
        rank = (tl.maximum(last, 0) * share + den - 1) // den + offset
        rank = tl.minimum(tl.maximum(rank, 0), last)
        key = seen * 0
    else:
        rank = tl.load(state + RANKS + r)
        key = tl.load(state + r)
    bin, rank, ties = find_bin(count, rank, BINS)
    key = tl.where(seen > 0, key | (bin << shift_of(LEVEL)), 0)
    tl.store(state + r, key)
    tl.store(state + RANKS + r, rank)
    tl.store(state + 2 * RANKS + r, ties)
    if LEVEL == LEVELS - 1:
        found = tl.where(seen > 0, key, LOWEST_KEY).to(tl.uint32)
        tl.store(out + r, key_to_bits(found).to(tl.float32, bitcast=True))


def find_ranks(
    values: Tensor, offsets: list[int], shares: list[int], den: int
) -> tuple[Tensor, Tensor]:
    """Find the scores at some ranks, and the state in which ``top`` goes on.

    Args:
        values: [N] float32 scores or int64 records.
        offsets: [R], R at least 1; see ``reference.select``.
        shares: [R].
        den: in 1..2^31-1.

    Returns:
        float32 [R], and int64 [3, R]: keys, ranks among equal keys, numbers of equal keys.
    """
    ranks, device = len(offsets), values.device
    counts = torch.zeros(COPIES, LEVELS, ranks, BINS, dtype=torch.int32, device=device)
    state = torch.empty(3, ranks, dtype=torch.int64, device=device)
    out = torch.empty(ranks, dtype=torch.float32, device=device)
    tiles = blocks_of(values.numel(), TILE)
    biased, shared = steady(*(offset + BIAS for offset in offsets)), steady(*shares)
    for level in range(LEVELS):
        if tiles:
            launch(
                digit_kernel,
                tiles,
                values,
                values,
                state,
                counts,
                values.numel(),
                RECORDS=values.dtype == torch.int64,
                RANKS=ranks,
                LEVEL=level,
                LEVELS=LEVELS,
                BINS=BINS,
                COPIES=COPIES,
                TILE=TILE,
                warps=4,
            )
        launch(
            pick_kernel,
            ranks,
            values,
            counts,
            state,
            out,
            biased,
            shared,
            den,
            RANKS=ranks,
            LEVEL=level,
            LEVELS=LEVELS,
            BINS=BINS,
            COPIES=COPIES,
            LOWEST_KEY=LOWEST_KEY,
            BIAS=BIAS,
            warps=4,
        )
    return out, state


def select(values: Tensor, offsets: list[int], shares: list[int], den: int) -> Tensor:
    """Find the scores at some ranks; see ``reference.select``."""
    if not offsets:
        return torch.empty(0, dtype=torch.float32, device=values.device)
    return find_ranks(values, offsets, shares, den)[0]
