# SPDX-License-Identifier: Apache-2.0
"""GELU, and the moments of its result, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import gelu

from prune_engine.backends import kernels_for
from prune_engine.ops.checks import dense, has_tangent, is_dense
from prune_engine.ops.moments import moments as moments_of


class _GeluMoments(Function):
    """Gradient of a GELU: torch's own formula, from the argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str, approximate: str) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y, moments = kernels_for(backend, x).gelu_moments(x, approximate == "tanh")
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        return y, moments

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _moments: object) -> Any:  # type: ignore[override]
        if grad is None:
            return None, None, None
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(grad, x, approximate=ctx.approximate), None, None


differentiable_gelu = cast(
    "Callable[[Tensor, str, str], tuple[Tensor, Tensor]]",
    _GeluMoments.apply,  # pyright: ignore[reportUnknownMemberType]
)


APPROXIMATIONS = ("none", "tanh")


def gelu_moments(
    x: Tensor, approximate: str = "none", *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """GELU that measures what it writes, so that nothing is read again.

    ``y = x * Phi(x)``, or its tanh approximation (Hendrycks and Gimpel, "Gaussian Error Linear
    Units", 2016), as ``torch.nn.functional.gelu``; its moments as ``moments([y])``.

    Args:
        x: float16 | bfloat16 | float32 | float64, any shape and layout; what is strided is copied.
        approximate: ``"none"`` or ``"tanh"``.
        backend: which kernels.

    Returns:
        y in the shape, dtype and (where dense) layout of x, differentiable; float64 [3], not
        differentiable.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: no such approximation.

    Example:
        >>> gelu_moments(torch.zeros(2))[0]
        tensor([0., 0.])
    """
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    plain = dense("x", x)
    if has_tangent(x):  # torch's own takes it on
        y = gelu(x, approximate=approximate)
        return y, moments_of([y], backend=backend)[0]
    if x.requires_grad and torch.is_grad_enabled():
        return differentiable_gelu(x if is_dense(x) else x.contiguous(), backend, approximate)
    return kernels_for(backend, plain).gelu_moments(plain, approximate == "tanh")
