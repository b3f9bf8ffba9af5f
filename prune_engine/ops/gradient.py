# SPDX-License-Identifier: Apache-2.0
"""Gradients that torch cannot derive: of ``observe`` on a device, of logits, of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from prune_engine.backends import kernels_for


class _Observe(Function):
    """Gradient of the rescaled losses: ``grad * batch_weights`` (SEMANTICS 2)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, losses: Tensor, observe: Callable[..., tuple[Tensor, Tensor]], *state: Any
    ) -> tuple[Tensor, Tensor]:
        rescaled, batch_weights = observe(losses, *state)
        ctx.save_for_backward(batch_weights)
        ctx.mark_non_differentiable(batch_weights)
        ctx.set_materialize_grads(False)
        return rescaled, batch_weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # type: ignore[override]
        grad = grads[0]
        if grad is not None:
            (batch_weights,) = ctx.saved_tensors
            # A half gradient is multiplied in float32 and rounded once, as the loss was.
            grad = (grad * batch_weights).to(grad.dtype)
        return (grad, *(None,) * (len(ctx.needs_input_grad) - 1))


differentiable_observe = cast(
    "Callable[..., tuple[Tensor, Tensor]]",
    _Observe.apply,  # pyright: ignore[reportUnknownMemberType]
)


class _CrossEntropy(Function):
    """Hang losses that are there already onto the logits they were computed from.

    The operator that computed them changes the records, so it cannot have a gradient itself.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        logits: Tensor,
        rescaled: Tensor,
        gradient: Callable[..., Tensor],
        targets: Tensor,
        labels: tuple[Tensor | None, float, int],
        batch_weights: Tensor,
        stats: Tensor,
    ) -> Tensor:
        class_weight, *numbers = labels
        # The logits are alive in any case, as what the layer before returned: this is no copy.
        ctx.save_for_backward(logits, targets, class_weight, batch_weights, stats)
        ctx.gradient, ctx.numbers = gradient, numbers
        return rescaled.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        logits, targets, class_weight, batch_weights, stats = ctx.saved_tensors
        made = ctx.gradient(
            grads[0].contiguous(), logits, targets, class_weight, *ctx.numbers, batch_weights, stats
        )
        return (made, *(None,) * 6)


cross_entropy_loss = cast(
    "Callable[..., Tensor]",
    _CrossEntropy.apply,  # pyright: ignore[reportUnknownMemberType]
)


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


differentiable_relu = cast(
    "Callable[[Tensor, str, bool], tuple[Tensor, Tensor]]",
    _ReluMoments.apply,  # pyright: ignore[reportUnknownMemberType]
)
differentiable_gelu = cast(
    "Callable[[Tensor, str, str], tuple[Tensor, Tensor]]",
    _GeluMoments.apply,  # pyright: ignore[reportUnknownMemberType]
)
