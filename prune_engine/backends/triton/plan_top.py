# SPDX-License-Identifier: Apache-2.0
"""plan_top in Triton: the pool's ranks, the edge among them, tie keys at it, and top of those."""

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

from prune_engine.backends.triton.arithmetic import block_draws, seed_words, stream_draws
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.backends.triton.plan import TILE as OFFSETS_TILE
from prune_engine.backends.triton.plan import offsets_kernel
from prune_engine.backends.triton.select import find_ranks
from prune_engine.backends.triton.top import top
from prune_engine.bands import PLAN_BLOCK, STREAM_DRAW, STREAM_TIES

TILE = 1024
SEEN = tl.constexpr(1 << 32)
UNSEEN_FIRST = tl.constexpr(0xFF800000)  # the key of +inf: above every score's


@triton.jit(do_not_specialize=["num_samples", "epoch", "cut"])
def pool_kernel(
    records,
    ranked,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    cut: tl.int32,
    TILE: tl.constexpr,
):
    """Write the ranks of the pool's samples as records, 0 for all others."""
    start = tl.program_id(0).to(tl.int64) * TILE
    place = start + tl.arange(0, TILE)
    record = tl.load(records + place, place < num_samples, other=0)
    rank = tl.where(record == 0, UNSEEN_FIRST, record & 0xFFFFFFFF)
    entered = block_draws(start, key, epoch, TILE) >= cut
    tl.store(ranked + place, tl.where(entered, SEEN | rank, 0), place < num_samples)


@triton.jit(do_not_specialize=["num_samples", "epoch", "stream"])
def edge_kernel(
    ranked,
    state,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    stream: tl.int64,
    DRAW: tl.constexpr,
    TILE: tl.constexpr,
):
    """Leave whoever is above the edge, and the tie keys of those at it."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    rank = tl.load(ranked + place, place < num_samples, other=0) & 0xFFFFFFFF
    edge = tl.load(state) & 0xFFFFFFFF
    tie = 1 + (stream_draws(place, key, epoch, stream, DRAW).to(tl.int64) >> 1)
    final = tl.where(rank > edge, UNSEEN_FIRST, tl.where(rank == edge, tie, 0))
    tl.store(
        ranked + place, tl.where((rank == 0) | (final == 0), 0, SEEN | final), place < num_samples
    )


@triton.jit(do_not_specialize=["num_samples"])
def count_kernel(mask, weight_class, block_offsets, num_samples: tl.int64, BLOCK: tl.constexpr):
    """Write the classes of one block, and at block_offsets[1 + block] how many it keeps."""
    block = tl.program_id(0)
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(mask + place, place < num_samples, other=0)
    tl.store(weight_class + place, kept, place < num_samples)
    tl.store(block_offsets + 1 + block, tl.sum(kept.to(tl.int32)).to(tl.int64))


def plan_top(
    records: Tensor, k: int, cut: int, seed: int, epoch: int, weight_class: Tensor
) -> Tensor:
    """Keep the largest scores of a random pool; see ``reference.plan_top``."""
    num_samples, device = records.numel(), records.device
    blocks = blocks_of(num_samples, PLAN_BLOCK)
    if blocks == 0:
        return torch.zeros(1, dtype=torch.int64, device=device)
    block_offsets = torch.empty(blocks + 1, dtype=torch.int64, device=device)
    ranked, key, tiles = torch.empty_like(records), seed_words(seed), blocks_of(num_samples, TILE)
    launch(
        pool_kernel,
        tiles,
        records,
        records,
        ranked,
        key,
        num_samples,
        epoch,
        cut,
        TILE=TILE,
        warps=4,
    )
    _, state = find_ranks(ranked, [1 - k], [1], 1)  # the k-th from the last, as top counts
    launch(
        edge_kernel,
        tiles,
        records,
        ranked,
        state,
        key,
        num_samples,
        epoch,
        STREAM_TIES,
        DRAW=STREAM_DRAW,
        TILE=TILE,
        warps=4,
    )
    mask = top(ranked, k)
    launch(
        count_kernel,
        blocks,
        records,
        mask,
        weight_class,
        block_offsets,
        num_samples,
        BLOCK=PLAN_BLOCK,
        warps=4,
    )
    launch(offsets_kernel, 1, records, block_offsets, blocks, TILE=OFFSETS_TILE, warps=4)
    return block_offsets
