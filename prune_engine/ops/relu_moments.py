# SPDX-License-Identifier: Apache-2.0
"""ReLU, and the moments of its result, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from prune_engine.backends import kernels_for
from prune_engine.ops.checks import dense, has_tangent, is_dense
from prune_engine.ops.moments import moments as moments_of


class _ReluMoments(Function):
    """Gradient of a ReLU: torch's own formula, from the result alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str, inplace: bool) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        kernels = kernels_for(backend, x)
        if inplace:
            y, moments = x, kernels.relu_moments_(x)
            ctx.mark_dirty(x)
        else:
            y, moments = kernels.relu_moments(x)
        ctx.save_for_backward(y)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        return y, moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _moments: object) -> Any:  # type: ignore[override]
        if grad is None:
            return None, None, None
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0), None, None


differentiable_relu = cast(
    "Callable[[Tensor, str, bool], tuple[Tensor, Tensor]]",
    _ReluMoments.apply,  # pyright: ignore[reportUnknownMemberType]
)


def relu_moments(
    x: Tensor, *, inplace: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """ReLU that measures what it writes, so that nothing is read again.

    ``y = max(x, 0)``, nan staying nan, as ``torch.relu``; its moments as ``moments([y])``.

    Args:
        x: float16 | bfloat16 | float32 | float64, any shape and layout; what is strided is copied.
        inplace: write y over x.
        backend: which kernels.

    Returns:
        y in the shape, dtype and (where dense) layout of x, differentiable; with ``inplace``, x
        itself. And float64 [3], not differentiable.

    Raises:
        TypeError: x is not a floating tensor.
        RuntimeError: inplace, and x is a leaf that requires a gradient.

    Example:
        >>> relu_moments(torch.tensor([-1.0, 4.0]))
        (tensor([0., 4.]), tensor([2., 2., 8.], dtype=torch.float64))
    """
    plain = dense("x", x)
    wants_grad = x.requires_grad and torch.is_grad_enabled()
    if inplace and wants_grad and x.is_leaf:
        raise RuntimeError("x must not be a leaf that requires a gradient where inplace is True")
    if has_tangent(x):  # torch's own takes it on
        y = torch.relu_(x) if inplace else torch.relu(x)
        return y, moments_of([y], backend=backend)[0]
    if inplace and (
        torch.compiler.is_compiling() or not is_dense(x) or (wants_grad and x._is_view())
    ):
        # A compiler makes it functional anyway, what has gaps is computed beside and copied in, and
        # an autograd function with two results must not change a view.
        y, measured = relu_moments(x, backend=backend)
        return x.copy_(y), measured
    if wants_grad:
        return differentiable_relu(x if is_dense(x) else x.contiguous(), backend, inplace)
    kernels = kernels_for(backend, plain)
    if not inplace:
        return kernels.relu_moments(plain)
    measured = kernels.relu_moments_(plain)
    torch.autograd.graph.increment_version(x)
    return x, measured
