# SPDX-License-Identifier: Apache-2.0
"""activation_std in Triton: the launches of moments, and one that makes them one number."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.launch import launch
from prune_engine.backends.triton.moments import moments


@triton.jit(do_not_specialize=["layers", "num_batches"])
def std_kernel(
    rows,
    out,
    slot,
    layers: tl.int64,
    num_batches: tl.int64,
    HAS_SLOT: tl.constexpr,
    UNBIASED: tl.constexpr,
):
    """Write the mean of the standard deviations; out of range, nothing."""
    place = tl.load(slot) if HAS_SLOT else layers * 0
    sum = tl.load(rows) * 0.0
    for layer in range(layers):
        count = tl.load(rows + layer * 3)
        freedom = count - 1.0 if UNBIASED else count
        sum += tl.sqrt(tl.load(rows + layer * 3 + 2) / tl.maximum(freedom, 0.0))
    tl.store(out + place, sum / layers.to(tl.float64), (place >= 0) & (place < num_batches))


def activation_std(
    tensors: list[Tensor], out: Tensor, slot: Tensor | None, unbiased: bool, sample: int
) -> None:
    """Mean of the standard deviations, into a slot; see ``reference.activation_std``."""
    rows = moments(tensors, sample)
    launch(
        std_kernel,
        1,
        out,
        *(rows, out, rows if slot is None else slot, len(tensors), out.numel()),
        HAS_SLOT=slot is not None,
        UNBIASED=unbiased,
        warps=1,
    )
