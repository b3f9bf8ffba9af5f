# SPDX-License-Identifier: Apache-2.0
"""How scores get into their records in Triton, for every kernel that has some."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import triton
import triton.language as tl

from prune_engine.backends.triton.arithmetic import bits_to_key, code_of_key, is_finite_bits


@triton.jit
def record(bits, index, valid, inside, epoch, records, score_sum, counters):
    """Record the float32 bits of a tile of at most 32767 scores; ``epoch`` is the number."""
    # A record is a max-register: whoever wins, in whatever order, the last winner's code stays in
    # the sum, for each adds its own code and takes away that of the record it replaced.
    finite = is_finite_bits(bits)
    recordable = valid & finite
    key = bits_to_key(bits)
    fresh = ((epoch + 1) << 32) | key.to(tl.int64)
    old = tl.atomic_max(records + index, fresh, mask=recordable, sem="relaxed")
    grew = recordable & (fresh > old)
    first = grew & (old == 0)
    fresh_code = code_of_key(key)
    old_code = tl.where(old == 0, 0, code_of_key(old.to(tl.uint32)))
    high = tl.sum(tl.where(grew, (fresh_code >> 32) - (old_code >> 32), 0))
    low = tl.sum(tl.where(grew, (fresh_code & 0xFFFFFFFF) - (old_code & 0xFFFFFFFF), 0))
    tl.atomic_add(score_sum, high, sem="relaxed")
    tl.atomic_add(score_sum + 1, low, sem="relaxed")

    # Four counts in one reduction, 16 bits each.
    outside = inside & (valid == 0)
    counted = (
        valid.to(tl.int64)
        | (first.to(tl.int64) << 16)
        | ((valid & (finite == 0)).to(tl.int64) << 32)
        | (outside.to(tl.int64) << 48)
    )
    total = tl.sum(counted)
    tl.atomic_add(counters, total & 0xFFFF, sem="relaxed")
    tl.atomic_add(score_sum + 2, (total >> 16) & 0xFFFF, sem="relaxed")
    if (total >> 32) != 0:
        tl.atomic_add(counters + 1, (total >> 32) & 0xFFFF, sem="relaxed")
        if (total >> 48) != 0:
            tl.atomic_add(counters + 2, total >> 48, sem="relaxed")
            smallest = tl.min(tl.where(outside, index, 0x7FFFFFFFFFFFFFFF))
            tl.atomic_min(counters + 3, smallest, sem="relaxed")
