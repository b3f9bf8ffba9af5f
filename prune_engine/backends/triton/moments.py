# SPDX-License-Identifier: Apache-2.0
"""moments in Triton: one launch per tensor, and one that adds up what they left.

Every program of a tensor takes every so-many-th tile and leaves its count, its sums and the element
from which they are seen; the last launch adds these up. Nothing is atomic, so the bits are the same
from run to run.
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

from prune_engine.backends.triton.arithmetic import hash32, narrow, widen
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import SAMPLE_BLOCK

WARPS = 8
ROWS = {8: 1024, 4: 1024, 2: 512}  # of a tile, each a load of 16 bytes; more would spill
MAX_PROGRAMS = 1024  # per tensor: the last launch reads that many parts in one tile
NONE, RELU, GELU, GELU_TANH = 0, 1, 2, 3  # what is done to the elements on their way


@triton.jit
def wide(x):
    """Widen to float32, or leave float64."""
    if x.dtype == tl.float64:
        return x
    else:
        return widen(x)


@triton.jit
def activated(x, ACT: tl.constexpr):
    """A ReLU or GELU of a tile of any dtype, rounded to it once."""
    v = wide(x)
    if ACT == 1:
        v = tl.where(v <= 0.0, 0.0, v)
    elif ACT == 2:
        v = 0.5 * v * (1.0 + tl.erf(v * 0.70710678118654752440))
    elif ACT == 3:
        inner = 0.79788456080286535588 * (v + 0.044715 * (v * v * v))
        v = 0.5 * v * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
    if x.dtype == tl.float64:
        return v
    else:
        return narrow(v, x.dtype)


@triton.jit
def add_tile(values, inside, origin, COLS: tl.constexpr):
    """Sums of each row's distances from origin; a row's are taken from its own mean first."""
    v = wide(values)
    present = inside.to(v.dtype)
    count = tl.sum(present, axis=1)
    centre = tl.sum(tl.where(inside, v, 0.0), axis=1) / tl.maximum(count, 1.0)
    distance = tl.where(inside, v - centre[:, None], 0.0)
    near = tl.sum(distance, axis=1).to(tl.float64)
    square = tl.sum(distance * distance, axis=1).to(tl.float64)
    count = count.to(tl.float64)
    shift = tl.where(count > 0.0, centre.to(tl.float64) - origin, 0.0)
    moved = count * shift
    return count, near + moved, square + shift * (near + near + moved)


@triton.jit
def leave_part(parts, count, total, square, origin):
    """Write the four numbers of a program."""
    at = parts + tl.program_id(0) * 4
    tl.store(at, tl.sum(count))
    tl.store(at + 1, tl.sum(total))
    tl.store(at + 2, tl.sum(square))
    tl.store(at + 3, origin)


@triton.jit
def first_of(x, numel, ACT: tl.constexpr):
    """The first element as float64, after its activation; 0 where there is none."""
    value = tl.load(x, numel > 0, other=0.0)
    if ACT != 0:
        value = activated(value, ACT)
    return wide(value).to(tl.float64)


@triton.jit(do_not_specialize=["numel"])
def moments_kernel(
    x,
    y,
    parts,
    numel: tl.int64,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Read every so-many-th tile of a tensor, write its activation where there is one."""
    # In place, x[0] may be written already: relu(relu(x)) = relu(x).
    origin = first_of(x, numel, ACT)
    count = tl.zeros((ROWS,), tl.float64)
    total = tl.zeros((ROWS,), tl.float64)
    square = tl.zeros((ROWS,), tl.float64)
    offset = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    begin = tl.program_id(0).to(tl.int64) * (ROWS * COLS)
    stride = tl.num_programs(0).to(tl.int64) * (ROWS * COLS)
    while begin < numel:
        # Without a mask where none is needed: a mask of unknown length forbids wide loads.
        inside = begin + offset < numel
        if begin + ROWS * COLS <= numel:
            values = tl.load(x + begin + offset)
            if ACT != 0:
                values = activated(values, ACT)
                tl.store(y + begin + offset, values)
        else:
            values = tl.load(x + begin + offset, inside, other=0.0)
            if ACT != 0:
                values = activated(values, ACT)
                tl.store(y + begin + offset, values, inside)
        more, near, squares = add_tile(values, inside, origin, COLS)
        count += more
        total += near
        square += squares
        begin += stride
    leave_part(parts, count, total, square, origin)


@triton.jit(do_not_specialize=["numel", "sample"])
def sampled_moments_kernel(
    x,
    parts,
    numel: tl.int64,
    sample: tl.int64,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Read one block of every ``sample``; a tile is of elements that are read."""
    origin = first_of(x, numel, 0)
    count = tl.zeros((ROWS,), tl.float64)
    total = tl.zeros((ROWS,), tl.float64)
    square = tl.zeros((ROWS,), tl.float64)
    blocks = (numel + (BLOCK - 1)) // BLOCK
    groups = (blocks + sample - 1) // sample
    row = tl.arange(0, ROWS) * COLS
    begin = tl.program_id(0).to(tl.int64) * (ROWS * COLS)
    stride = tl.num_programs(0).to(tl.int64) * (ROWS * COLS)
    while begin < groups * BLOCK:
        group = (begin + row) // BLOCK
        first = group * sample
        rest = tl.minimum(sample, tl.maximum(blocks - first, 1))
        key = (group * 0).to(tl.uint32)
        chosen = first + hash32(group.to(tl.uint32), key).to(tl.int64) % rest
        at = (chosen * BLOCK + (begin + row) % BLOCK)[:, None] + tl.arange(0, COLS)[None, :]
        inside = (at < numel) & (group < groups)[:, None]
        values = tl.load(x + at, inside, other=0.0)
        more, near, squares = add_tile(values, inside, origin, COLS)
        count += more
        total += near
        square += squares
        begin += stride
    leave_part(parts, count, total, square, origin)


@triton.jit
def rows_kernel(parts, rows, PROGRAMS: tl.constexpr):
    """Add up the parts of one tensor."""
    at = parts + (tl.program_id(0) * PROGRAMS + tl.arange(0, PROGRAMS)) * 4
    count = tl.sum(tl.load(at))
    total = tl.sum(tl.load(at + 1))
    square = tl.sum(tl.load(at + 2))
    origin = tl.load(parts + tl.program_id(0) * PROGRAMS * 4 + 3)
    mean = total / tl.maximum(count, 1.0)
    squares = square - total * mean
    row = rows + tl.program_id(0) * 3
    tl.store(row, count)
    tl.store(row + 1, tl.where(count > 0.0, origin + mean, 0.0))
    tl.store(row + 2, tl.where(squares < 0.0, 0.0, squares))  # a nan stays one


def measure(x: Tensor, y: Tensor, parts: Tensor, act: int) -> None:
    """Launch the kernel that reads one tensor.

    Args:
        x: dense floating tensor.
        y: its like, to which the activation is written; x itself where there is none.
        parts: float64 [P, 4], P a power of two.
        act: NONE, RELU, GELU or GELU_TANH.
    """
    size = x.element_size()
    launch(
        moments_kernel,
        parts.shape[0],
        x,
        *(x, y, parts, x.numel()),
        ACT=act,
        ROWS=ROWS[size],
        COLS=16 // size,
        warps=WARPS,
    )


def programs_for(numel: int, element_size: int) -> int:
    """Return how many programs read a tensor: a power of two.

    Args:
        numel: elements that are read.
        element_size: bytes of one.

    Returns:
        In 1..MAX_PROGRAMS.

    Example:
        >>> programs_for(0, 4), programs_for(5000, 4), programs_for(2**30, 2)
        (1, 2, 1024)
    """
    tiles = blocks_of(numel, ROWS[element_size] * 16 // element_size)
    return min(MAX_PROGRAMS, 1 << max(tiles - 1, 0).bit_length())


def moments(tensors: list[Tensor], sample: int) -> Tensor:
    """Count, mean and squared deviations of each tensor; see ``reference.moments``."""
    programs = max(programs_for(x.numel() // sample, x.element_size()) for x in tensors)
    rows = torch.empty(len(tensors), 3, dtype=torch.float64, device=tensors[0].device)
    parts = torch.empty(len(tensors), programs, 4, dtype=torch.float64, device=rows.device)
    for x, part in zip(tensors, parts, strict=True):
        if sample == 1:
            measure(x, x, part, NONE)
        else:
            launch(
                sampled_moments_kernel,
                programs,
                x,
                *(x, part, x.numel(), sample),
                BLOCK=SAMPLE_BLOCK,
                ROWS=ROWS[x.element_size()],
                COLS=16 // x.element_size(),
                warps=WARPS,
            )
    launch(rows_kernel, len(tensors), rows, parts, rows, PROGRAMS=programs, warps=4)
    return rows


def written(x: Tensor, y: Tensor, act: int) -> Tensor:
    """Write an activation of x to y and return its moments, in two launches.

    Args:
        x: dense floating tensor.
        y: its like, or x itself.
        act: RELU, GELU or GELU_TANH.

    Returns:
        float64 [3].
    """
    programs = programs_for(x.numel(), x.element_size())
    row = torch.empty(3, dtype=torch.float64, device=x.device)
    parts = torch.empty(programs, 4, dtype=torch.float64, device=x.device)
    measure(x, y, parts, act)
    launch(rows_kernel, 1, row, parts, row, PROGRAMS=programs, warps=4)
    return row
