# SPDX-License-Identifier: Apache-2.0
"""observe in Triton: one launch for any batch."""

# Triton is not typed: the kernels are checked by compiling them (tests/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import (
    bits_to_key,
    code_of_key,
    is_finite_bits,
    narrow,
    widen,
)
from prune_engine.backends.triton.launch import blocks_of, launch

# Small, so that a batch spreads over the device; at most 32767, see `counted` below.
BLOCK = 256
WARPS = BLOCK // 32  # one sample a thread: no tile has to change its layout between threads


@triton.jit(do_not_specialize=["batch_size", "num_samples"])
def observe_kernel(
    losses,
    indices,
    scores,
    records,
    score_sum,
    counters,
    weight_class,
    weight_table,
    epoch,
    rescaled,
    batch_weights,
    batch_size: tl.int64,
    num_samples: tl.int64,
    BLOCK: tl.constexpr,
):
    """Record and weigh one block of a batch."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < batch_size
    index = tl.load(indices + position, inside, other=0).to(tl.int64)
    valid = inside & (index >= 0) & (index < num_samples)

    # Out of range, on a device: the loss passes with weight 1 and nothing is recorded.
    loss = tl.load(losses + position, inside, other=0.0)
    fate = tl.load(weight_class + index, valid, other=1).to(tl.int32) & 7
    weight = tl.where(valid, tl.load(weight_table + fate), 1.0)
    tl.store(batch_weights + position, weight, inside)
    if loss.dtype == tl.float64:
        tl.store(rescaled + position, loss * weight.to(tl.float64), inside)
    else:
        tl.store(rescaled + position, narrow(widen(loss) * weight, loss.dtype), inside)

    # A record is a max-register: whoever wins, in whatever order, the last winner's code stays in
    # the sum, for each adds its own code and takes away that of the record it replaced.
    bits = widen(tl.load(scores + position, inside, other=0.0)).to(tl.uint32, bitcast=True)
    finite = is_finite_bits(bits)
    recordable = valid & finite
    key = bits_to_key(bits)
    fresh = ((tl.load(epoch) + 1) << 32) | key.to(tl.int64)
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


def observe(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    records: Tensor,
    score_sum: Tensor,
    counters: Tensor,
    weight_class: Tensor,
    weight_table: Tensor,
    epoch: Tensor,
) -> tuple[Tensor, Tensor]:
    """Record the scores of one batch and weigh its losses; see ``reference.observe``."""
    batch_size = losses.numel()
    rescaled = torch.empty_like(losses)
    batch_weights = torch.empty_like(losses, dtype=torch.float32)
    if batch_size == 0:  # edge case 1; an empty grid cannot be launched
        return rescaled, batch_weights
    launch(
        observe_kernel,
        blocks_of(batch_size, BLOCK),
        records,
        losses,
        indices,
        losses if score is None else score,
        records,
        score_sum,
        counters,
        weight_class,
        weight_table,
        epoch,
        rescaled,
        batch_weights,
        batch_size,
        records.numel(),
        BLOCK=BLOCK,
        warps=WARPS,
    )
    return rescaled, batch_weights
