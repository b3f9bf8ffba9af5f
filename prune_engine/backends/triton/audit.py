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

from prune_engine.backends.triton.arithmetic import addend_of_key, limb_part
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import AUDIT_WORDS

TILE = 512  # two samples a thread: nine limbs of each, in registers
TILES = 32  # per program: few enough atomics, many enough programs


@triton.jit
def add_tile(limbs, group, value):
    """Add a tile of addends to the nine tiles of limbs."""
    return (
        limbs[0] + limb_part(group, value, 0),
        limbs[1] + limb_part(group, value, 1),
        limbs[2] + limb_part(group, value, 2),
        limbs[3] + limb_part(group, value, 3),
        limbs[4] + limb_part(group, value, 4),
        limbs[5] + limb_part(group, value, 5),
        limbs[6] + limb_part(group, value, 6),
        limbs[7] + limb_part(group, value, 7),
        limbs[8] + limb_part(group, value, 8),
    )


@triton.jit
def coverage_of(record, planned, now):
    """Of each sample, in one word: seen, planned and recorded, missing, extra."""
    recorded = (record >> 32) == now
    # 16 bits hold the TILES * TILE samples of a program.
    return (
        (record != 0).to(tl.int64)
        | ((planned & recorded).to(tl.int64) << 16)
        | ((planned & (recorded == 0)).to(tl.int64) << 32)
        | ((recorded & (planned == 0)).to(tl.int64) << 48)
    )


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
    zero = tl.zeros((TILE,), tl.int64)
    limbs = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    counts = zero
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
        group, value = addend_of_key(record.to(tl.uint32))
        limbs = add_tile(limbs, group, value)
        counts += coverage_of(record, planned, now)
    for j in tl.static_range(9):
        total = tl.sum(limbs[j])
        tl.atomic_add(result + j, total, mask=total != 0, sem="relaxed")
    total = tl.sum(counts)
    for j in tl.static_range(4):
        tl.atomic_add(result + 9 + j, (total >> (16 * j)) & 0xFFFF, sem="relaxed")


def audit(records: Tensor, weight_class: Tensor, epoch: int) -> Tensor:
    """Recompute the sum and compare seen with planned; see ``reference.audit``."""
    num_samples = records.numel()
    result = torch.zeros(AUDIT_WORDS, dtype=torch.int64, device=records.device)
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
