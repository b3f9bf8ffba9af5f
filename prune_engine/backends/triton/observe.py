# SPDX-License-Identifier: Apache-2.0
"""observe in Triton: one launch for any batch."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import narrow, widen
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.backends.triton.record import is_saturated, record

# Small, so that a batch spreads over the device; at most 32767, see record.py.
BLOCK = 256
WARPS = BLOCK // 32  # one sample a thread: no tile has to change its layout between threads


@triton.jit(do_not_specialize=["batch_size", "num_samples", "advance"])
def observe_kernel(
    losses,
    indices,
    scores,
    records,
    score_sum,
    counters,
    step,
    weight_class,
    weight_table,
    epoch,
    rescaled,
    batch_weights,
    batch_size: tl.int64,
    num_samples: tl.int64,
    advance: tl.int64,
    BLOCK: tl.constexpr,
):
    """Record and weigh one block of a batch."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < batch_size
    index = tl.load(indices + position, inside, other=0).to(tl.int64)
    valid = inside & (index >= 0) & (index < num_samples)

    # Out of range, on a device: the loss passes with weight 1 and nothing is recorded.
    loss = tl.load(losses + position, inside, other=0.0)
    fate = tl.load(weight_class + index, valid, other=1).to(tl.int32)
    weight = tl.where(valid, tl.load(weight_table + fate), 1.0)
    tl.store(batch_weights + position, weight, inside)
    if loss.dtype == tl.float64:
        tl.store(rescaled + position, loss * weight.to(tl.float64), inside)
    else:
        tl.store(rescaled + position, narrow(widen(loss) * weight, loss.dtype), inside)

    score = tl.load(scores + position, inside, other=0.0)
    bits = widen(score).to(tl.uint32, bitcast=True)
    saturated = is_saturated(score, bits)
    tensors = records, score_sum, counters, step
    record(bits, saturated, index, valid, inside, tl.load(epoch), advance, *tensors)


def observe(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: Sequence[Tensor],
    advance: bool,
) -> tuple[Tensor, Tensor]:
    """Record the scores of one batch and weigh its losses; see ``reference.observe``."""
    records, _, _, step, *_ = state
    batch_size = losses.numel()
    rescaled = torch.empty_like(losses)
    batch_weights = torch.empty_like(losses, dtype=torch.float32)
    if batch_size == 0:  # edge case 1; an empty grid cannot be launched
        step.add_(int(advance))
        return rescaled, batch_weights
    launch(
        observe_kernel,
        blocks_of(batch_size, BLOCK),
        records,
        losses,
        indices,
        losses if score is None else score,
        *state,
        rescaled,
        batch_weights,
        batch_size,
        records.numel(),
        int(advance),
        BLOCK=BLOCK,
        warps=WARPS,
    )
    return rescaled, batch_weights
