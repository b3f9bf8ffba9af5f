# SPDX-License-Identifier: Apache-2.0
"""cross_entropy_grad in Triton: one launch that reads each logit and writes its gradient once."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import narrow, widen
from prune_engine.backends.triton.launch import blocks_of, launch

BLOCK = 2048


@triton.jit(do_not_specialize=["num_classes", "pieces", "smoothing", "ignore_index"])
def cross_entropy_grad_kernel(
    grad,
    logits,
    targets,
    class_weight,
    batch_weights,
    stats,
    made,
    num_classes: tl.int64,
    pieces: tl.int64,
    smoothing: tl.float64,
    ignore_index: tl.int64,
    SMOOTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of one piece of a row."""
    program = tl.program_id(0).to(tl.int64)
    b = program // pieces
    c = (program % pieces) * BLOCK + tl.arange(0, BLOCK)
    there = c < num_classes
    place = b * num_classes + c
    read = tl.load(logits + place, there, other=0.0)
    z = read.to(tl.float64) if WIDE else widen(read)
    target = tl.load(targets + b)
    named = (target >= 0) & (target < num_classes)
    upstream = tl.load(grad + b) * tl.load(batch_weights + b).to(z.dtype)
    value = tl.exp(z - tl.load(stats + 2 * b)) * (upstream * tl.load(stats + 2 * b + 1))
    own = upstream
    if WEIGHTED:
        own = own * tl.load(class_weight + target, named, other=1.0).to(z.dtype)
    if SMOOTH:
        # Interpreted, a number has no dtype.
        share = (tl.zeros([1], z.dtype) + smoothing).to(z.dtype)
        shift = upstream * share / num_classes.to(z.dtype)
        own = own * (1.0 - share)
        if WEIGHTED:
            value -= shift * tl.load(class_weight + c, there, other=0.0).to(z.dtype)
        else:
            value -= shift
    value = tl.where(c == target, value - own, value)
    value = tl.where(target == ignore_index, 0.0, value)
    if WIDE:
        tl.store(made + place, value, there)
    else:
        tl.store(made + place, narrow(value, made.dtype.element_ty), there)


def cross_entropy_grad(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    batch_weights: Tensor,
    stats: Tensor,
) -> Tensor:
    """Turn the gradient of the weighed losses into that of the logits; see ``reference``."""
    size, num_classes = logits.shape
    made = torch.empty_like(logits)
    if size == 0:  # edge case 1; an empty grid cannot be launched
        return made
    pieces = blocks_of(num_classes, BLOCK)
    launch(
        cross_entropy_grad_kernel,
        size * pieces,
        logits,
        grad,
        logits,
        targets,
        batch_weights if class_weight is None else class_weight,
        batch_weights,
        stats,
        made,
        num_classes,
        pieces,
        label_smoothing,
        ignore_index,
        SMOOTH=label_smoothing != 0,
        WEIGHTED=class_weight is not None,
        WIDE=logits.dtype == torch.float64,
        BLOCK=BLOCK,
        warps=8,
    )
    return made
