# SPDX-License-Identifier: Apache-2.0
"""plan_levels in Triton: one pass over the records and one over the block counts."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import block_draws, seed_words
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.backends.triton.plan import TILE, offsets_kernel
from prune_engine.bands import CELL_SHIFT, FIRST_CELL, PLAN_BLOCK


@triton.jit
def decide_levels(record, draw, top, unseen, cut, SHIFT: tl.constexpr, FIRST: tl.constexpr):
    """Weight classes (int32) of a tile: the level of a sample's cell, or 0 by its draw."""
    cell = tl.maximum((record.to(tl.uint32) >> SHIFT).to(tl.int32), FIRST)
    cell = tl.where(record == 0, unseen, cell)
    level = tl.minimum(tl.maximum(top + 1 - cell, 1), 255)
    return tl.where(draw < tl.load(cut + level), 0, level)


@triton.jit(do_not_specialize=["num_samples", "epoch", "first"])
def plan_levels_kernel(
    records,
    top_in,
    unseen_in,
    cut,
    weight_class,
    block_offsets,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    first: tl.int64,
    SHIFT: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the classes of one block, and at block_offsets[1 + block] how many it keeps."""
    block = tl.program_id(0)
    start = block.to(tl.int64) * BLOCK
    top = tl.load(top_in)
    unseen = tl.load(unseen_in)
    kept = tl.zeros((TILE,), tl.int32)
    for tile in range(BLOCK // TILE):
        begin = start + tile * TILE
        place = begin + tl.arange(0, TILE)
        number = first + begin
        draw = block_draws(number, key, epoch, TILE)
        if begin + TILE <= num_samples:  # a mask of unknown length forbids wide loads
            record = tl.load(records + place)
            decided = decide_levels(record, draw, top, unseen, cut, SHIFT, FIRST)
            tl.store(weight_class + place, decided.to(tl.uint8))
            kept += tl.minimum(decided, 1)
        else:
            mask = place < num_samples
            record = tl.load(records + place, mask, other=0)
            decided = decide_levels(record, draw, top, unseen, cut, SHIFT, FIRST)
            tl.store(weight_class + place, decided.to(tl.uint8), mask)
            kept += tl.minimum(tl.where(mask, decided, 0), 1)
    tl.store(block_offsets + 1 + block, tl.sum(kept).to(tl.int64))


def plan_levels(
    records: Tensor,
    top: Tensor,
    cut: Tensor,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    first: int = 0,
    unseen: Tensor | None = None,
) -> Tensor:
    """Write every sample's class by its level; see ``reference.plan_levels``."""
    num_samples = records.numel()
    blocks = blocks_of(num_samples, PLAN_BLOCK)
    if blocks == 0:
        return torch.zeros(1, dtype=torch.int64, device=records.device)
    block_offsets = torch.empty(blocks + 1, dtype=torch.int64, device=records.device)
    launch(
        plan_levels_kernel,
        blocks,
        records,
        records,
        top,
        top if unseen is None else unseen,
        cut,
        weight_class,
        block_offsets,
        seed_words(seed),
        num_samples,
        epoch,
        first,
        SHIFT=CELL_SHIFT,
        FIRST=FIRST_CELL,
        BLOCK=PLAN_BLOCK,
        TILE=TILE,
        warps=4,
    )
    launch(offsets_kernel, 1, records, block_offsets, blocks, TILE=TILE, warps=4)
    return block_offsets
