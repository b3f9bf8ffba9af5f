# SPDX-License-Identifier: Apache-2.0
"""plan in Triton: one pass over the records and one over the block counts.

Fixed counts take a histogram of the draws first and settle ties last (``fixed.py``).
"""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
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
    block_draws,
    seed_words,
    steady,
    steady_value,
)
from prune_engine.backends.triton.fixed import plan_fixed
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import PLAN_BLOCK

TILE = 1024


@triton.jit
def decide_tile(record, draw, thresholds, fates, BANDS: tl.constexpr):
    """Weight classes (int32) of a tile: one select per threshold, as in ``csrc/cpu/decide.h``.

    A fate is its cut (low 16 bits) and its class; ``fates`` has that of the samples without a
    score last.
    """
    key = record.to(tl.uint32)
    fate = tl.where(record == 0, steady_value(fates[BANDS]), steady_value(fates[0])).to(tl.int32)
    for t in tl.static_range(BANDS - 1):
        threshold = bits_to_key(tl.load(thresholds + t).to(tl.uint32, bitcast=True))
        # No finite score has key 0, so that a sample without one is above no threshold.
        fate = tl.where(key >= threshold, steady_value(fates[t + 1]).to(tl.int32), fate)
    return tl.where(draw < (fate & 0xFFFF), 0, fate >> 16)


@triton.jit(do_not_specialize=["num_samples", "epoch", "first"])
def plan_kernel(
    records,
    thresholds,
    weight_class,
    block_offsets,
    fates,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    first: tl.int64,
    BANDS: tl.constexpr,
    DRAWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the classes of one block, and at block_offsets[1 + block] how many it keeps."""
    block = tl.program_id(0)
    start = block.to(tl.int64) * BLOCK
    kept = tl.zeros((TILE,), tl.int32)
    # Tile by tile: a whole block at once would take so many registers that few blocks fit a device.
    for tile in range(BLOCK // TILE):
        begin = start + tile * TILE
        place = begin + tl.arange(0, TILE)
        # Where no cut can drop anybody the generator is not run.
        number = first + begin
        draw = block_draws(number, key, epoch, TILE) if DRAWS else tl.zeros((TILE,), tl.int32)
        if begin + TILE <= num_samples:  # a mask of unknown length forbids wide loads
            record = tl.load(records + place)
            decided = decide_tile(record, draw, thresholds, fates, BANDS)
            tl.store(weight_class + place, decided.to(tl.uint8))
            kept += tl.minimum(decided, 1)  # booleans would be added up through local memory
        else:
            mask = place < num_samples
            record = tl.load(records + place, mask, other=0)
            decided = decide_tile(record, draw, thresholds, fates, BANDS)
            tl.store(weight_class + place, decided.to(tl.uint8), mask)
            kept += tl.minimum(tl.where(mask, decided, 0), 1)
    tl.store(block_offsets + 1 + block, tl.sum(kept).to(tl.int64))


@triton.jit(do_not_specialize=["blocks"])
def offsets_kernel(block_offsets, blocks: tl.int64, TILE: tl.constexpr):
    """Turn the counts at block_offsets[1:] into prefix sums, in one program."""
    first = (blocks * 0).to(tl.int64)
    before = first
    tl.store(block_offsets, before)
    while first < blocks:  # the interpreter cannot count to a number that is an argument
        place = first + tl.arange(0, TILE)
        mask = place < blocks
        count = tl.load(block_offsets + 1 + place, mask, other=0)
        tl.store(block_offsets + 1 + place, before + tl.cumsum(count), mask)
        before += tl.sum(count)
        first += TILE


def plan(
    records: Tensor,
    thresholds: Tensor,
    cuts: list[int],
    classes: list[int],
    keep_num: list[int],
    keep_den: int,
    unseen_band: int,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    first: int = 0,
) -> Tensor:
    """Write every sample's weight class, count the kept by block; see ``reference.plan``."""
    num_samples = records.numel()
    blocks = blocks_of(num_samples, PLAN_BLOCK)
    if blocks == 0:
        return torch.zeros(1, dtype=torch.int64, device=records.device)
    block_offsets = torch.empty(blocks + 1, dtype=torch.int64, device=records.device)
    if keep_den == 0:
        fates = [cut | kind << 16 for cut, kind in zip(cuts, classes, strict=True)]
        # Edge case 6: a sample without a score is kept with weight 1 unless the rule says more.
        fates.append(1 << 16 if unseen_band < 0 else fates[unseen_band])
        launch(
            plan_kernel,
            blocks,
            records,
            records,
            thresholds,
            weight_class,
            block_offsets,
            steady(*fates),
            seed_words(seed),
            num_samples,
            epoch,
            first,
            BANDS=len(cuts),
            DRAWS=any(cuts),
            BLOCK=PLAN_BLOCK,
            TILE=TILE,
            warps=4,
        )
    else:
        plan_fixed(
            records,
            thresholds,
            classes,
            steady(*keep_num),
            keep_den,
            unseen_band,
            seed,
            epoch,
            weight_class,
            block_offsets,
        )
    launch(offsets_kernel, 1, records, block_offsets, blocks, TILE=TILE, warps=4)
    return block_offsets
