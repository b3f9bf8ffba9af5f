# SPDX-License-Identifier: Apache-2.0
"""draw in Triton: 32 bits for each index of a stream."""

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

from prune_engine.backends.triton.arithmetic import seed_words, stream_draws
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import STREAM_DRAW

BLOCK = 512


@triton.jit(do_not_specialize=["count", "epoch", "stream"])
def draw_kernel(
    indices,
    result,
    key,
    count: tl.int64,
    epoch: tl.int64,
    stream: tl.int64,
    DRAW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw for one block of indices."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    index = tl.load(indices + at, inside, other=0)
    valid = (index >= 0) & (index <= (1 << 62))
    drawn = stream_draws(tl.where(valid, index, 0), key, epoch, stream, DRAW)
    tl.store(result + at, tl.where(valid, drawn.to(tl.int64), -1), inside)


def draw(indices: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """Draw 32 bits for each index; see ``reference.draw``.

    An index that is out of range gives -1, because looking at it would make the host wait.
    """
    result = torch.empty_like(indices)
    count = indices.numel()
    if count:
        launch(
            draw_kernel,
            blocks_of(count, BLOCK),
            indices,
            indices,
            result,
            seed_words(seed),
            count,
            epoch,
            stream,
            DRAW=STREAM_DRAW,
            BLOCK=BLOCK,
            warps=4,
        )
    return result
