# SPDX-License-Identifier: Apache-2.0
"""shuffle in Triton: the keyed permutation of [0, n) or its inverse, for any n up to 2^62."""

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

from prune_engine.backends.triton.arithmetic import inverse_network, network
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.backends.triton.order import round_keys

BLOCK = 512


@triton.jit
def cells(y, keys, shift, columns, ROUNDS: tl.constexpr, INVERSE: tl.constexpr):
    """Permute int64 cells of the grid once, or back."""
    mask = ((shift * 0 + 1) << shift) - 1
    row = (y & mask.to(tl.int64)).to(tl.uint32)
    column = (y >> shift.to(tl.int64)).to(tl.uint32)
    if INVERSE:
        row, column = inverse_network(row, column, keys, mask, columns, ROUNDS)
    else:
        row, column = network(row, column, keys, mask, columns, ROUNDS)
    return (column.to(tl.int64) << shift.to(tl.int64)) | row.to(tl.int64)


@triton.jit(do_not_specialize=["count", "n", "bits"])
def shuffle_kernel(
    places,
    result,
    keys,
    count: tl.int64,
    n: tl.int64,
    bits: tl.int32,
    ROUNDS: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write what one block of places becomes."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(places + at, inside, other=0)
    valid = inside & (place >= 0) & (place < n)
    shift = bits.to(tl.uint32)
    columns = ((n + (1 << bits.to(tl.int64)) - 1) >> bits).to(tl.uint32)
    # A place outside could walk for ever, so it starts, and ends, as 0.
    y = cells(tl.where(valid, place, 0), keys, shift, columns, ROUNDS, INVERSE)
    while tl.max((y >= n).to(tl.int32)) != 0:
        y = tl.where(y >= n, cells(y, keys, shift, columns, ROUNDS, INVERSE), y)
    tl.store(result + at, tl.where(valid, y, -1), inside)


def shuffle(places: Tensor, n: int, inverse: bool, seed: int, epoch: int) -> Tensor:
    """Evaluate the keyed permutation or its inverse; see ``reference.shuffle``.

    A place that is out of range gives -1, because looking at it would make the host wait.
    """
    result = torch.empty_like(places)
    count = places.numel()
    if count == 0:
        return result
    if n == 0:
        raise IndexError("places must be empty, for nothing is kept")
    keys = round_keys(n, seed, epoch)
    launch(
        shuffle_kernel,
        blocks_of(count, BLOCK),
        places,
        places,
        result,
        keys,
        count,
        n,
        ((n - 1).bit_length() + 1) // 2,  # the smallest with 4^bits >= n
        ROUNDS=len(keys),
        INVERSE=inverse,
        BLOCK=BLOCK,
        warps=4,
    )
    return result
