# SPDX-License-Identifier: Apache-2.0
"""compact in Triton: one program per block of the plan, which knows where its samples go."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import PLAN_BLOCK


@triton.jit
def write_kept(kept, start, first, num_kept, is_kept, BLOCK: tl.constexpr):
    """Write the kept samples of one block from place ``first`` on."""
    place = first + tl.cumsum(is_kept.to(tl.int32)) - 1
    sample = (start + tl.arange(0, BLOCK)).to(tl.int32)
    # Offsets of another plan would give wrong samples, but never a write outside the list.
    tl.store(kept + place, sample, is_kept & (place < num_kept))


@triton.jit(do_not_specialize=["num_samples", "num_kept"])
def compact_kernel(
    weight_class,
    block_offsets,
    kept,
    num_samples: tl.int64,
    num_kept: tl.int64,
    BLOCK: tl.constexpr,
):
    """List the kept samples of one block."""
    block = tl.program_id(0)
    start = block.to(tl.int64) * BLOCK
    first = tl.load(block_offsets + block)
    offset = tl.arange(0, BLOCK)
    if start + BLOCK <= num_samples:  # a mask of unknown length forbids wide loads
        is_kept = tl.load(weight_class + start + offset) != 0
    else:
        is_kept = tl.load(weight_class + start + offset, start + offset < num_samples, other=0) != 0
    write_kept(kept, start, first, num_kept, is_kept, BLOCK)


def compact(weight_class: Tensor, block_offsets: Tensor, num_kept: int) -> Tensor:
    """List the kept samples in ascending order; see ``reference.compact``.

    That ``num_kept`` is the last offset is not checked: reading it would make the host wait.
    """
    kept = torch.empty(num_kept, dtype=torch.int32, device=weight_class.device)
    if num_kept == 0:
        return kept
    launch(
        compact_kernel,
        blocks_of(weight_class.numel(), PLAN_BLOCK),
        weight_class,
        weight_class,
        block_offsets,
        kept,
        weight_class.numel(),
        num_kept,
        BLOCK=PLAN_BLOCK,
        warps=8,
    )
    return kept
