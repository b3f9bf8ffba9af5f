# SPDX-License-Identifier: Apache-2.0
"""How scores get into their records in Triton, for every kernel that has some."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import triton
import triton.language as tl

from prune_engine.backends.triton.arithmetic import (
    addend_of_key,
    bits_to_key,
    is_finite_bits,
    limb_part,
)


@triton.jit
def record(
    bits, saturated, index, valid, inside, epoch, advance, records, score_sum, counters, step
):
    """Record the float32 bits of a tile of at most 32767 scores; ``epoch`` is the number."""
    # A record is a max-register: whoever wins, in whatever order, what the last winner adds stays
    # in the sum, for each takes away what the record that it replaced had added.
    finite = is_finite_bits(bits)
    recordable = valid & finite
    key = bits_to_key(bits)
    fresh = ((epoch + 1) << 32) | key.to(tl.int64)
    old = tl.atomic_max(records + index, fresh, mask=recordable, sem="relaxed")
    grew = recordable & (fresh > old)
    new_group, new_value = addend_of_key(tl.where(grew, key, 0).to(tl.uint32))
    old_group, old_value = addend_of_key(tl.where(grew, old, 0).to(tl.uint32))
    # One reduction for all: a row of the tile for each limb and for the number seen, of sixteen.
    row = tl.arange(0, 16)[:, None]
    part = limb_part(new_group[None, :], new_value[None, :], row)
    part -= limb_part(old_group[None, :], old_value[None, :], row)
    first = (grew & (old == 0)).to(tl.int64)
    part = tl.where(row == 9, first[None, :], part)
    total = tl.sum(part, axis=1)
    word = tl.arange(0, 16)
    moved = (word < 10) & (total != 0)
    tl.atomic_add(score_sum + word, total, mask=moved, sem="relaxed")
    tl.atomic_add(step, advance, mask=tl.program_id(0) == 0, sem="relaxed")

    # Four counts in one reduction, 16 bits each.
    outside = inside & (valid == 0)
    counted = (
        valid.to(tl.int64)
        | ((valid & (finite == 0)).to(tl.int64) << 16)
        | ((valid & saturated).to(tl.int64) << 32)
        | (outside.to(tl.int64) << 48)
    )
    total = tl.sum(counted)
    tl.atomic_add(counters, total & 0xFFFF, sem="relaxed")
    if (total >> 16) != 0:
        tl.atomic_add(counters + 1, (total >> 16) & 0xFFFF, sem="relaxed")
        tl.atomic_add(counters + 4, (total >> 32) & 0xFFFF, sem="relaxed")
        if (total >> 48) != 0:
            tl.atomic_add(counters + 2, total >> 48, sem="relaxed")
            smallest = tl.min(tl.where(outside, index, 0x7FFFFFFFFFFFFFFF))
            tl.atomic_min(counters + 3, smallest, sem="relaxed")


@triton.jit
def is_saturated(x, bits):
    """Whether rounding to float32 ``bits`` made a score infinite: only float64 reaches beyond."""
    if x.dtype == tl.float64:
        return ((x - x) == 0.0) & (is_finite_bits(bits) == 0)
    else:
        return bits != bits
