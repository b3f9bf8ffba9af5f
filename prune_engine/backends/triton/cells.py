# SPDX-License-Identifier: Apache-2.0
"""cells in Triton: one read of the records."""

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
from prune_engine.bands import CELL_SHIFT, CELLS, FIRST_CELL, UNSEEN_CELL

TILE = 2048
TILES = 16  # per program: few enough atomics, many enough programs


@triton.jit
def bin_of(record, SHIFT: tl.constexpr, FIRST: tl.constexpr, UNSEEN: tl.constexpr):
    """The bin of a sample's cell, int32."""
    cell = tl.maximum((record.to(tl.uint32) >> SHIFT).to(tl.int32), FIRST)
    return tl.where(record == 0, UNSEEN, cell - FIRST)


@triton.jit(do_not_specialize=["num_samples"])
def cells_kernel(
    records,
    counts,
    num_samples: tl.int64,
    SHIFT: tl.constexpr,
    FIRST: tl.constexpr,
    CELLS: tl.constexpr,
    UNSEEN: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """Add the counts of TILES tiles."""
    start = tl.program_id(0).to(tl.int64) * (TILE * TILES)
    held = tl.zeros((CELLS,), tl.int32)
    for tile in range(TILES):
        begin = start + tile * TILE
        place = begin + tl.arange(0, TILE)
        if begin + TILE <= num_samples:  # a mask of unknown length forbids wide loads
            record = tl.load(records + place)
            held += tl.histogram(bin_of(record, SHIFT, FIRST, UNSEEN), CELLS)
        else:
            mask = place < num_samples
            record = tl.load(records + place, mask, other=0)
            held += tl.histogram(bin_of(record, SHIFT, FIRST, UNSEEN), CELLS, mask)
    tl.atomic_add(counts + tl.arange(0, CELLS), held.to(tl.int64), mask=held != 0, sem="relaxed")


def cells(records: Tensor) -> Tensor:
    """Count the samples of each cell of scores; see ``reference.cells``."""
    num_samples = records.numel()
    counts = torch.zeros(CELLS, dtype=torch.int64, device=records.device)
    if num_samples == 0:
        return counts
    launch(
        cells_kernel,
        blocks_of(num_samples, TILE * TILES),
        records,
        records,
        counts,
        num_samples,
        SHIFT=CELL_SHIFT,
        FIRST=FIRST_CELL,
        CELLS=CELLS,
        UNSEEN=UNSEEN_CELL,
        TILE=TILE,
        TILES=TILES,
        warps=8,
    )
    return counts
