# SPDX-License-Identifier: Apache-2.0
"""pick in Triton: one program up to 4096 elements, beyond that some launches over tiles.

The certain ones are found by Newton's loop in the one program and, beyond, digit by digit of the
key as ``select`` finds a rank. A point finds its element by bisection of the walk's prefix sums.
"""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false
# pyright: reportGeneralTypeIssues=false

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import (
    bits_to_key,
    philox4x32,
    seed_words,
    steady_value,
    two_rounds,
)
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.backends.triton.plan import TILE as SCAN_TILE
from prune_engine.backends.triton.plan import offsets_kernel
from prune_engine.bands import ROUNDS_LARGE, ROUNDS_SMALL, STREAM_PICK, WALK_LIMIT

ONE_PROGRAM = 4096  # elements that one program takes
TILE = 1024  # ... and one of several
POINTS = 256  # points of a program
BLOCK_BITS = 21  # of a tile's number
COPIES = 4  # of the counts
LEVELS, BINS = 3, 2048  # digits of a key, of 11, 11 and 10 bits
TOP, RANDOM = 0, 1
WORDS = 64  # nine Philox calls, in a power of two
# The state, int64: how many are eligible, the largest key, the smallest size; then of the caps the
# digits so far, the sum below them, the number above them, the sum of the open sizes, how many of
# those are chosen; then the line.
STATE = 16
SOME, LARGEST, LEAST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
EDGE, BELOW, ABOVE = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
AREA, LEFT = tl.constexpr(6), tl.constexpr(7)
LINE = tl.constexpr(8)


@triton.jit
def shift_of(LEVEL: tl.constexpr):
    """The bits below a digit of a key."""
    return 21 if LEVEL == 0 else (10 if LEVEL == 1 else 0)


@triton.jit
def digit_of(key, LEVEL: tl.constexpr):
    """A digit (int32) of a key (uint32)."""
    return ((key >> shift_of(LEVEL)) & (0x3FF if LEVEL == 2 else 0x7FF)).to(tl.int32)


@triton.jit
def load_eligible(values, place, inside):
    """Keys (uint32) of elements, 0 where one cannot be chosen or is none."""
    bits = tl.load(values + place, inside, other=float("nan")).to(tl.uint32, bitcast=True)
    key = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0, bits_to_key(bits)).to(tl.uint32)
    return tl.where(key <= 0x007FFFFF, 0, tl.where(key > 0xFF7FFFFF, 0xFF7FFFFF, key)).to(tl.uint32)


@triton.jit
def place_of(key):
    """The power of two of a positive score's last place, from 0 (int64)."""
    exponent = ((key >> 23) & 0xFF).to(tl.int64)
    return tl.maximum(exponent - 1, 0)


@triton.jit
def size_of(key, largest, least, shift, RULE: tl.constexpr):
    """Sizes (int64) of keys (uint32) that are at most the largest; see ``csrc/pick.h``."""
    if RULE == 1:
        return (key != 0).to(tl.int64)
    else:
        positive = key > 0x80000000
        leading = tl.where(((key >> 23) & 0xFF) != 0, 0x800000, 0).to(tl.uint32)
        mantissa = ((key & 0x7FFFFF) | leading).to(tl.int64)
        gap = tl.where(positive, place_of(largest) - place_of(key), 63)
        size = tl.where(positive, (mantissa << shift) >> tl.minimum(gap, 63), 0)
        return tl.where(key != 0, tl.maximum(size, least), 0)


@triton.jit
def floor_size(area, left, k, some, floor):
    """The smallest size: a share of the mean of min(size, area / left)."""
    mean = k * ((area + left - 1) // left) // some
    return tl.maximum((mean * floor) >> 16, 1)


@triton.jit
def draw_words(seed, epoch, step, rank, first):
    """Sixteen Philox calls, of which nine are used: four words (uint32) each."""
    call = tl.arange(0, 16).to(tl.uint32)
    zero = call & 0
    return philox4x32(
        zero + tl.load(step).to(tl.uint32),
        zero + rank.to(tl.uint32),
        call + first.to(tl.uint32),
        zero + tl.load(epoch).to(tl.uint32),
        steady_value(seed[0]).to(tl.uint32),
        steady_value(seed[1]).to(tl.uint32),
    )


@triton.jit
def store_words(words, w0, w1, w2, w3):
    """Keep the words in the order of the walk's rounds."""
    call = tl.arange(0, 16)
    tl.store(words + 4 * call, w0.to(tl.int64))
    tl.store(words + 4 * call + 1, w1.to(tl.int64))
    tl.store(words + 4 * call + 2, w2.to(tl.int64))
    tl.store(words + 4 * call + 3, w3.to(tl.int64))


@triton.jit
def start_of(area, w0, w1):
    """A number in [0, area): 62 random bits times it, in products below 2^63."""
    call = tl.arange(0, 16)
    low = tl.sum(tl.where(call == 8, w0.to(tl.int64), 0)) >> 1
    high = tl.sum(tl.where(call == 8, w1.to(tl.int64), 0)) >> 1
    upper = area >> 31
    lower = area & 0x7FFFFFFF
    return high * upper + ((high * lower + low * upper + ((low * lower) >> 31)) >> 31)


@triton.jit
def walk_once(y, words, bits, columns, ROUNDS: tl.constexpr):
    """Permute the cells of the grid once (uint32), with round keys in memory."""
    mask = ((bits * 0 + 1) << bits) - 1
    row = y & mask
    column = y >> bits
    for r in range(0, ROUNDS, 2):
        key0 = tl.load(words + r).to(tl.uint32)
        key1 = tl.load(words + r + 1).to(tl.uint32)
        row, column = two_rounds(row, column, key0, key1, mask, columns)
    return (column << bits) | row


@triton.jit
def walk_of(place, inside, words, count, bits, ROUNDS: tl.constexpr):
    """The elements (uint32) at some places of the walk; 0's element where there is none."""
    size = count.to(tl.uint32)
    shift = bits.to(tl.uint32)
    columns = (size + ((shift * 0 + 1) << shift) - 1) >> shift
    y = walk_once(tl.where(inside, place, 0).to(tl.uint32), words, shift, columns, ROUNDS)
    while tl.max((y >= size).to(tl.int32)) != 0:
        y = tl.where(y >= size, walk_once(y, words, shift, columns, ROUNDS), y)
    return y


@triton.jit
def find_caps(size, k):
    """The sum of the sizes that are not certain, how many of those are chosen, and the edge."""
    total = tl.sum(size)
    area = total
    left = k
    edge = total // k
    more = (k * 0 + 1).to(tl.int32)
    while more != 0:  # Newton's method from above
        above = size > edge
        now = k - tl.sum(above.to(tl.int32)).to(tl.int64)
        more = (now != left).to(tl.int32)
        left = now
        area = total - tl.sum(tl.where(above, size, 0))
        edge = area // left
    return area, left, edge


@triton.jit
def point_of(t, step, step_rest, start, start_rest, left):
    """The point floor((t * area + start) / left)."""
    return t * step + start + (t * step_rest + start_rest) // left


@triton.jit
def first_above(ends, wanted, count, BITS: tl.constexpr):
    """How many of the ascending ends are at most what is wanted, for each of some."""
    found = (wanted * 0).to(tl.int32)
    for bit in tl.static_range(BITS):
        trial = found + (1 << (BITS - 1 - bit))
        end = tl.load(ends + trial - 1, trial <= count, other=0x7FFFFFFFFFFFFFFF)
        found = tl.where(end <= wanted, trial, found)
    return found


@triton.jit
def edge_of(key, wanted):
    """The key of the last that is among the largest, bit by bit; 0 where too few are eligible."""
    edge = tl.max(key).to(tl.int64) * 0
    for bit in range(32):
        trial = edge + ((edge * 0 + 1) << (31 - bit))
        reached = tl.sum((key.to(tl.int64) >= trial).to(tl.int32))
        edge = tl.where(reached >= wanted, trial, edge)
    return edge.to(tl.uint32)


@triton.jit
def write_tile(indices, weights, place, fate, weight, sure_before, spare_before, room):
    """Write what is chosen (fate 1) and what fills up (fate 2) of one tile."""
    sure = (fate == 1).to(tl.int32)
    spare = (fate == 2).to(tl.int32)
    rank = spare_before + tl.cumsum(spare) - spare
    at = sure_before + tl.cumsum(sure) - sure + tl.minimum(rank, room)
    taken = (fate == 1) | ((fate == 2) & (rank < room))
    tl.store(indices + at, place.to(tl.int32), taken)
    tl.store(weights + at, weight, taken)


@triton.jit(do_not_specialize=["count", "k", "floor", "shift", "rank", "first", "bits"])
def small_pick_kernel(
    values,
    epoch,
    step,
    indices,
    weights,
    eligible,
    scratch,
    seed,
    count: tl.int32,
    k: tl.int32,
    floor: tl.int32,
    shift: tl.int32,
    rank: tl.int64,
    first: tl.int64,
    bits: tl.int32,
    RULE: tl.constexpr,
    ROUNDS: tl.constexpr,
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Choose k of at most BLOCK elements. scratch: the words, and three rows of BLOCK."""
    place = tl.arange(0, BLOCK)
    inside = place < count
    key = load_eligible(values, place, inside)
    some = tl.sum((key != 0).to(tl.int32))
    tl.store(eligible, some.to(tl.int64))
    weight = tl.where(key != 0, 1.0, 0.0).to(tl.float32)
    if RULE == 0:
        edge_key = edge_of(key, k)
        fate = tl.where(key > edge_key, 1, tl.where(key == edge_key, 2, 0))
    else:
        fate = tl.where(key != 0, 1, 2)
        if some > k:
            wanted = k.to(tl.int64)
            places = shift.to(tl.int64)
            largest = tl.max(key.to(tl.int64)).to(tl.uint32)
            least = wanted * 0 + 1
            size = size_of(key, largest, least, places, RULE)
            area, left, edge = find_caps(size, wanted)
            if RULE == 2:
                if floor > 0:
                    least = floor_size(area, left, wanted, some.to(tl.int64), floor.to(tl.int64))
                    size = size_of(key, largest, least, places, RULE)
                    area, left, edge = find_caps(size, wanted)
            ends = scratch + WORDS
            walk = ends + BLOCK
            flags = walk + BLOCK
            w0, w1, w2, w3 = draw_words(seed, epoch, step, rank, first)
            store_words(scratch, w0, w1, w2, w3)
            tl.store(flags + place, place.to(tl.int64) * 0)
            tl.debug_barrier()
            y = walk_of(place, inside, scratch, count, bits, ROUNDS)
            met = size_of(load_eligible(values, y, inside), largest, least, places, RULE)
            tl.store(walk + place, y.to(tl.int64))
            tl.store(ends + place, tl.cumsum(tl.where(met > edge, 0, met)))
            tl.debug_barrier()
            start = start_of(area, w0, w1)
            t = place.to(tl.int64)
            point = point_of(t, area // left, area % left, start // left, start % left, left)
            # Past the last element ends stay where they are, above every point.
            j = first_above(ends, tl.where(t < left, point, 0), BLOCK, BITS)
            tl.store(flags + tl.load(walk + j), t * 0 + 1, t < left)
            tl.debug_barrier()
            # Made again, for held over the walk they would not fit the registers.
            size = size_of(load_eligible(values, place, inside), largest, least, places, RULE)
            certain = size > edge
            fate = tl.where(certain, 1, tl.load(flags + place).to(tl.int32))
            # Where nothing is chosen any number will do.
            share = tl.where(certain | (size == 0), area, left * size).to(tl.float32)
            weight = tl.div_rn(area.to(tl.float32) + share * 0, share)
    fate = tl.where(inside, fate, 0)
    room = k - tl.sum((fate == 1).to(tl.int32))
    write_tile(indices, weights, place, fate, weight, 0, 0, room)


@triton.jit(do_not_specialize=["count"])
def survey_kernel(values, state, count: tl.int64, TILE: tl.constexpr):
    """How many are eligible, and the largest key."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    key = load_eligible(values, place, place < count)
    some = tl.sum((key != 0).to(tl.int32)).to(tl.int64)
    tl.atomic_add(state, some, sem="relaxed")
    tl.atomic_max(state + LARGEST, tl.max(key.to(tl.int64)), sem="relaxed")
    if tl.program_id(0) == 0:
        tl.store(state + LEAST, count * 0 + 1)


@triton.jit(do_not_specialize=["count", "shift"])
def bins_kernel(
    values,
    state,
    counts,
    sums,
    count: tl.int64,
    shift: tl.int32,
    RULE: tl.constexpr,
    LEVEL: tl.constexpr,
    BINS: tl.constexpr,
    COPIES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count a digit of one tile's keys and sum the sizes: counts, sums [LEVELS, COPIES, BINS]."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    key = load_eligible(values, place, place < count)
    chosen = key != 0
    if LEVEL > 0:
        above = tl.load(state + EDGE).to(tl.uint32) >> shift_of(LEVEL - 1)
        chosen &= (key >> shift_of(LEVEL - 1)) == above
    copy = (LEVEL * COPIES + tl.program_id(0) % COPIES) * BINS
    slot = tl.where(chosen, digit_of(key, LEVEL), -1)
    one = tl.full(slot.shape, 1, tl.int32)
    tl.atomic_add(counts + copy + slot, one, mask=slot >= 0, sem="relaxed")
    if RULE != 0:
        largest = tl.load(state + LARGEST).to(tl.uint32)
        size = size_of(key, largest, tl.load(state + LEAST), shift.to(tl.int64), RULE)
        tl.atomic_add(sums + copy + slot, size, mask=slot >= 0, sem="relaxed")


@triton.jit
def load_bins(counts, BINS: tl.constexpr, COPIES: tl.constexpr):
    """The counts or sums of all copies, int64 [BINS]."""
    bins = tl.arange(0, BINS)
    total = tl.load(counts + bins).to(tl.int64)
    for copy in range(1, COPIES):
        total += tl.load(counts + copy * BINS + bins).to(tl.int64)
    return total


@triton.jit(do_not_specialize=["k", "floor", "shift"])
def digit_edge_kernel(
    state,
    counts,
    sums,
    k: tl.int64,
    floor: tl.int64,
    shift: tl.int32,
    RULE: tl.constexpr,
    LEVEL: tl.constexpr,
    BINS: tl.constexpr,
    COPIES: tl.constexpr,
):
    """Take a digit of the last key that is not certain; of the last of the largest for the top."""
    bins = tl.arange(0, BINS)
    some = tl.load(state)
    if LEVEL == 0:
        edge = some * 0
        below = some * 0
        above = some * 0
    else:
        edge = tl.load(state + EDGE)
        below = tl.load(state + BELOW)
        above = tl.load(state + ABOVE)
    row = LEVEL * COPIES * BINS
    count = load_bins(counts + row, BINS, COPIES)
    after = above + tl.sum(count) - tl.cumsum(count)  # keys above each bin
    if RULE == 0:
        reached = after + count >= k
    else:
        size = load_bins(sums + row, BINS, COPIES)
        before = below + tl.cumsum(size) - size
        # Certain is what is above the root of k v - sum of min(size, v), which is convex.
        largest = tl.load(state + LARGEST)
        boundary = tl.minimum(edge + (bins.to(tl.int64) << shift_of(LEVEL)), largest)
        least = tl.load(state + LEAST)
        v = size_of(boundary.to(tl.uint32), largest.to(tl.uint32), least, shift.to(tl.int64), RULE)
        reached = k * v - before - v * (after + count) <= 0
    # The last digit has half as many values; beyond the largest key all of them are reached.
    values: tl.constexpr = BINS // 2 if LEVEL == 2 else BINS
    bin = tl.minimum(tl.maximum(tl.sum(reached.to(tl.int32)) - 1, 0), values - 1)
    here = bins == bin
    edge += bin.to(tl.int64) << shift_of(LEVEL)
    above = tl.sum(tl.where(here, after, 0))
    tl.store(state + EDGE, edge)
    tl.store(state + ABOVE, above)
    if RULE != 0:
        below = tl.sum(tl.where(here, before, 0))
        tl.store(state + BELOW, below)
        if LEVEL == 2:
            area = below + tl.sum(tl.where(here, size, 0))
            # Where no more than k are eligible none of this is used.
            left = tl.maximum(k - above, 1)
            tl.store(state + AREA, area)
            tl.store(state + LEFT, left)
            if floor > 0:
                least = floor_size(area, left, k, tl.maximum(some, 1), floor)
                tl.store(state + LEAST, least)


@triton.jit(do_not_specialize=["k", "rank", "first"])
def line_kernel(
    epoch,
    step,
    state,
    words,
    seed,
    k: tl.int64,
    rank: tl.int64,
    first: tl.int64,
    RULE: tl.constexpr,
):
    """Draw the walk's round keys and the start of the line."""
    w0, w1, w2, w3 = draw_words(seed, epoch, step, rank, first)
    store_words(words, w0, w1, w2, w3)
    if RULE == 1:
        area = tl.load(state)
        left = k
        tl.store(state + EDGE, area * 0 + 0xFF7FFFFF)
        tl.store(state + AREA, area)
        tl.store(state + LEFT, left)
    else:
        area = tl.load(state + AREA)
        left = tl.load(state + LEFT)
    start = start_of(area, w0, w1)
    tl.store(state + LINE, area // left)
    tl.store(state + LINE + 1, area % left)
    tl.store(state + LINE + 2, start // left)
    tl.store(state + LINE + 3, start % left)


@triton.jit(do_not_specialize=["count", "shift", "bits"])
def walk_kernel(
    values,
    state,
    words,
    ends,
    walk,
    totals,
    count: tl.int64,
    shift: tl.int32,
    bits: tl.int32,
    RULE: tl.constexpr,
    ROUNDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The elements of one tile of the walk, the prefix sums of their open sizes, and the sum."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < count
    y = walk_of(place, inside, words, count, bits, ROUNDS)
    key = load_eligible(values, y, inside)
    largest = tl.load(state + LARGEST).to(tl.uint32)
    size = size_of(key, largest, tl.load(state + LEAST), shift.to(tl.int64), RULE)
    size = tl.where(key > tl.load(state + EDGE).to(tl.uint32), 0, size)
    tl.store(walk + place, y.to(tl.int32), inside)
    tl.store(ends + place, tl.cumsum(size), inside)
    tl.store(totals + 1 + tl.program_id(0), tl.sum(size))


@triton.jit(do_not_specialize=["count", "k", "blocks"])
def points_kernel(
    state,
    ends,
    walk,
    offsets,
    flags,
    count: tl.int64,
    k: tl.int64,
    blocks: tl.int32,
    BLOCK_BITS: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Mark the elements on whose piece of the line a point lies."""
    t = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    left = tl.load(state + LEFT)
    if tl.load(state) > k:
        point = point_of(
            t,
            tl.load(state + LINE),
            tl.load(state + LINE + 1),
            tl.load(state + LINE + 2),
            tl.load(state + LINE + 3),
            left,
        )
        point = tl.where(t < left, point, 0)
        block = first_above(offsets + 1, point, blocks, BLOCK_BITS).to(tl.int64)
        rest = point - tl.load(offsets + block)
        # The point lies below its block's last end, so only ends before that are looked at.
        begin = block * TILE
        found = (rest * 0).to(tl.int32)
        for bit in tl.static_range(BITS):
            trial = found + (1 << (BITS - 1 - bit))
            inside = (trial < TILE) & (begin + trial <= count)
            end = tl.load(ends + begin + trial - 1, inside, other=0x7FFFFFFFFFFFFFFF)
            found = tl.where(end <= rest, trial, found)
        i = tl.load(walk + begin + found).to(tl.int64)
        tl.store(flags + i, (t * 0 + 1).to(tl.uint8), t < left)


@triton.jit
def fates_of(state, flags, key, place, inside, k, RULE: tl.constexpr):
    """1 for what is chosen, 2 for what fills up by index as far as there is room, else 0."""
    edge = tl.load(state + EDGE).to(tl.uint32)
    if RULE == 0:
        fate = tl.where(key > edge, 1, tl.where(key == edge, 2, 0))
    else:
        fate = tl.where(key != 0, 1, 2)
        if tl.load(state) > k:
            flag = tl.load(flags + place, inside, other=0).to(tl.int32)
            fate = tl.where(key > edge, 1, flag)
    return tl.where(inside, fate, 0)


@triton.jit(do_not_specialize=["count", "k"])
def count_kernel(
    values,
    state,
    flags,
    totals,
    count: tl.int64,
    k: tl.int64,
    RULE: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many of one tile are chosen, and in the high word how many may fill up."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < count
    key = load_eligible(values, place, inside)
    fate = fates_of(state, flags, key, place, inside, k, RULE)
    sure = tl.sum((fate == 1).to(tl.int32)).to(tl.int64)
    spare = tl.sum((fate == 2).to(tl.int32)).to(tl.int64)
    tl.store(totals + 1 + tl.program_id(0), sure | (spare << 32))


@triton.jit(do_not_specialize=["count", "k", "shift", "blocks"])
def write_kernel(
    values,
    state,
    flags,
    totals,
    indices,
    weights,
    eligible,
    count: tl.int64,
    k: tl.int64,
    shift: tl.int32,
    blocks: tl.int32,
    RULE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write what is chosen of one tile where it belongs."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < count
    key = load_eligible(values, place, inside)
    fate = fates_of(state, flags, key, place, inside, k, RULE)
    weight = tl.where(key != 0, 1.0, 0.0).to(tl.float32)
    some = tl.load(state)
    if RULE != 0:
        if some > k:
            area = tl.load(state + AREA)
            largest = tl.load(state + LARGEST).to(tl.uint32)
            size = size_of(key, largest, tl.load(state + LEAST), shift.to(tl.int64), RULE)
            certain = key > tl.load(state + EDGE).to(tl.uint32)
            share = tl.where(certain | (size == 0), area, tl.load(state + LEFT) * size)
            share = share.to(tl.float32)
            weight = tl.div_rn(area.to(tl.float32) + share * 0, share)
    before = tl.load(totals + tl.program_id(0))
    room = k - (tl.load(totals + blocks) & 0xFFFFFFFF)
    write_tile(indices, weights, place, fate, weight, before & 0xFFFFFFFF, before >> 32, room)
    if tl.program_id(0) == 0:
        tl.store(eligible, some)


@dataclass(frozen=True)
class _Batch:
    """What every launch of one choice is made of."""

    values: Tensor
    k: int
    rule: int
    floor: int
    seed: int
    epoch: Tensor
    step: Tensor
    rank: int
    site: int

    @property
    def count(self) -> int:
        return self.values.numel()

    @property
    def shift(self) -> int:
        """Of a mantissa: the sum of all sizes stays below 2^62."""
        return min(46, 62 - self.count.bit_length()) - 24

    @property
    def bits(self) -> int:
        """The smallest with 4^bits >= count."""
        return ((self.count - 1).bit_length() + 1) // 2

    @property
    def rounds(self) -> int:
        return ROUNDS_SMALL if self.count <= WALK_LIMIT else ROUNDS_LARGE

    @property
    def first(self) -> int:
        """The counter of the first Philox call."""
        return STREAM_PICK * (self.site + 1)

    def new(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=self.values.device)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self.values.device)

    def launch(self, kernel: Any, programs: int, *arguments: object, **constants: Any) -> None:
        launch(kernel, programs, self.values, *arguments, **constants)


def _pick_small(batch: _Batch, indices: Tensor, weights: Tensor, eligible: Tensor) -> None:
    """Choose in one program."""
    block = max(32, 1 << (batch.count - 1).bit_length())
    batch.launch(
        small_pick_kernel,
        1,
        batch.values,
        batch.epoch,
        batch.step,
        indices,
        weights,
        eligible,
        batch.new(WORDS + 3 * block),
        seed_words(batch.seed),
        batch.count,
        batch.k,
        batch.floor,
        batch.shift,
        batch.rank,
        batch.first,
        batch.bits,
        RULE=batch.rule,
        ROUNDS=batch.rounds,
        WORDS=WORDS,
        BITS=block.bit_length() - 1,
        BLOCK=block,
        warps=max(1, min(16, block // 128)),
    )


def _find_caps(batch: _Batch, state: Tensor, floor: int) -> None:
    """Find the edge digit by digit, and the smallest size where there is a floor."""
    counts = batch.zeros(LEVELS, COPIES, BINS, dtype=torch.int32)
    sums = batch.zeros(LEVELS, COPIES, BINS)
    for level in range(LEVELS):
        constants = {"RULE": batch.rule, "LEVEL": level, "BINS": BINS, "COPIES": COPIES}
        batch.launch(
            bins_kernel,
            blocks_of(batch.count, TILE),
            batch.values,
            state,
            counts,
            sums,
            batch.count,
            batch.shift,
            **constants,
            TILE=TILE,
            warps=4,
        )
        batch.launch(
            digit_edge_kernel,
            1,
            state,
            counts,
            sums,
            batch.k,
            floor,
            batch.shift,
            **constants,
            warps=8,
        )


def _mark(batch: _Batch, state: Tensor, flags: Tensor) -> None:
    """Walk, and mark on whose piece of the line a point lies."""
    blocks = blocks_of(batch.count, TILE)
    words, ends = batch.new(WORDS), batch.new(batch.count)
    walk, offsets = batch.new(batch.count, dtype=torch.int32), batch.new(blocks + 1)
    batch.launch(
        line_kernel,
        1,
        batch.epoch,
        batch.step,
        state,
        words,
        seed_words(batch.seed),
        batch.k,
        batch.rank,
        batch.first,
        RULE=batch.rule,
        warps=1,
    )
    batch.launch(
        walk_kernel,
        blocks,
        batch.values,
        state,
        words,
        ends,
        walk,
        offsets,
        batch.count,
        batch.shift,
        batch.bits,
        RULE=batch.rule,
        ROUNDS=batch.rounds,
        TILE=TILE,
        warps=4,
    )
    batch.launch(offsets_kernel, 1, offsets, blocks, TILE=SCAN_TILE, warps=4)
    batch.launch(
        points_kernel,
        blocks_of(batch.k, POINTS),
        state,
        ends,
        walk,
        offsets,
        flags,
        batch.count,
        batch.k,
        blocks,
        BLOCK_BITS=BLOCK_BITS,
        BITS=TILE.bit_length() - 1,
        TILE=TILE,
        POINTS=POINTS,
        warps=4,
    )


def _pick_large(batch: _Batch, indices: Tensor, weights: Tensor, eligible: Tensor) -> None:
    """Choose by launches over tiles."""
    blocks = blocks_of(batch.count, TILE)
    state, totals = batch.zeros(STATE), batch.new(blocks + 1)
    batch.launch(survey_kernel, blocks, batch.values, state, batch.count, TILE=TILE, warps=4)
    if batch.rule != RANDOM:
        if batch.rule != TOP and batch.floor > 0:
            _find_caps(batch, state, batch.floor)
        _find_caps(batch, state, 0)
    flags = batch.values
    if batch.rule != TOP:
        flags = batch.zeros(batch.count, dtype=torch.uint8)
        _mark(batch, state, flags)
    constants = {"RULE": batch.rule, "TILE": TILE, "warps": 4}
    batch.launch(
        count_kernel,
        blocks,
        batch.values,
        state,
        flags,
        totals,
        batch.count,
        batch.k,
        **constants,
    )
    batch.launch(offsets_kernel, 1, totals, blocks, TILE=SCAN_TILE, warps=4)
    batch.launch(
        write_kernel,
        blocks,
        batch.values,
        state,
        flags,
        totals,
        indices,
        weights,
        eligible,
        batch.count,
        batch.k,
        batch.shift,
        blocks,
        **constants,
    )


def pick(
    values: Tensor,
    k: int,
    rule: int,
    floor: int,
    seed: int,
    epoch: Tensor,
    step: Tensor,
    rank: int,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose min(k, B) elements; see ``reference.pick``."""
    count = values.numel()
    k = min(k, count)
    rule = rule if k else TOP  # nothing is drawn
    batch = _Batch(values, k, rule, floor, seed, epoch, step, rank, site)
    indices = batch.new(batch.k, dtype=torch.int32)
    weights = batch.new(batch.k, dtype=torch.float32)
    eligible = batch.zeros(1)
    if count == 0:
        return indices, weights, eligible
    choose = _pick_small if count <= ONE_PROGRAM else _pick_large
    choose(batch, indices, weights, eligible)
    return indices, weights, eligible
