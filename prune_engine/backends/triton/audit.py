# SPDX-License-Identifier: Apache-2.0
"""audit in Triton: one read of the records."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import code_of_key
from prune_engine.backends.triton.launch import blocks_of, launch

TILE = 1024
TILES = 16  # per program: few enough atomics, many enough programs


@triton.jit
def audit_tile(record, planned, now):
    """The sums of one tile: code limbs, and (seen, planned and recorded, missing, extra)."""
    seen = record != 0
    code = tl.where(seen, code_of_key(record.to(tl.uint32)), 0)
    recorded = (record >> 32) == now
    both = planned & recorded
    # Four counts in one word: 16 bits hold the TILES * TILE samples of a program.
    counts = (
        seen.to(tl.int64)
        | (both.to(tl.int64) << 16)
        | ((planned & (recorded == 0)).to(tl.int64) << 32)
        | ((recorded & (planned == 0)).to(tl.int64) << 48)
    )
    return code >> 32, code & 0xFFFFFFFF, counts


@triton.jit(do_not_specialize=["num_samples", "epoch"])
def audit_kernel(
    records,
    weight_class,
    result,
    num_samples: tl.int64,
    epoch: tl.int64,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """Add the sums of TILES tiles to result."""
    start = tl.program_id(0).to(tl.int64) * (TILE * TILES)
    now = epoch.to(tl.int64) + 1
    offset = tl.arange(0, TILE)
    high = tl.zeros((TILE,), tl.int64)
    low = tl.zeros((TILE,), tl.int64)
    counts = tl.zeros((TILE,), tl.int64)
    for tile in range(TILES):
        begin = start + tile * TILE
        # Without a mask where none is needed: a mask of unknown length forbids wide loads.
        if begin + TILE <= num_samples:
            record = tl.load(records + begin + offset)
            planned = tl.load(weight_class + begin + offset) != 0
        else:
            mask = begin + offset < num_samples
            record = tl.load(records + begin + offset, mask, other=0)
            planned = tl.load(weight_class + begin + offset, mask, other=0) != 0
        tile_high, tile_low, tile_counts = audit_tile(record, planned, now)
        high += tile_high
        low += tile_low
        counts += tile_counts
    total = tl.sum(counts)
    tl.atomic_add(result, tl.sum(high), sem="relaxed")
    tl.atomic_add(result + 1, tl.sum(low), sem="relaxed")
    tl.atomic_add(result + 2, total & 0xFFFF, sem="relaxed")
    tl.atomic_add(result + 3, (total >> 16) & 0xFFFF, sem="relaxed")
    tl.atomic_add(result + 4, (total >> 32) & 0xFFFF, sem="relaxed")
    tl.atomic_add(result + 5, (total >> 48) & 0xFFFF, sem="relaxed")


def audit(records: Tensor, weight_class: Tensor, epoch: int) -> Tensor:
    """Recompute the sum and compare seen with planned; see ``reference.audit``."""
    num_samples = records.numel()
    result = torch.zeros(6, dtype=torch.int64, device=records.device)
    if num_samples == 0:
        return result
    launch(
        audit_kernel,
        blocks_of(num_samples, TILE * TILES),
        records,
        records,
        weight_class,
        result,
        num_samples,
        epoch,
        TILE=TILE,
        TILES=TILES,
        warps=8,
    )
    return result
