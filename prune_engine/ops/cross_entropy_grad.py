# SPDX-License-Identifier: Apache-2.0
"""The gradient of losses that were computed from logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function


class _CrossEntropy(Function):
    """Hang losses that are there already onto the logits they were computed from.

    The operator that computed them changes the records, so it cannot have a gradient itself.
    """

    @staticmethod
    def forward(logits: Tensor, rescaled: Tensor, *rest: Any) -> Tensor:  # type: ignore[override]
        return rescaled.clone()

    # Apart from forward, so that torch.func.grad takes it.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, _, gradient, targets, labels, batch_weights, stats = inputs
        class_weight, *numbers = labels
        # The logits are alive in any case, as what the layer before returned: this is no copy.
        ctx.save_for_backward(logits, targets, class_weight, batch_weights, stats)
        ctx.gradient, ctx.numbers = gradient, numbers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        logits, targets, class_weight, batch_weights, stats = ctx.saved_tensors
        rest = (targets, class_weight, *ctx.numbers, batch_weights, stats)
        # With create_graph=True the gradient is itself a function of the logits.
        make = logits_gradient if torch.is_grad_enabled() else _call
        return (make(grads[0].contiguous(), logits, ctx.gradient, *rest), *(None,) * 6)


def _call(grad: Tensor, logits: Tensor, gradient: Callable[..., Tensor], *rest: Any) -> Tensor:
    """Run the kernel that turns the gradient of the losses into that of the logits."""
    return gradient(grad, logits, *rest)


class _LogitsGradient(Function):
    """The gradient of the logits where it is differentiated again: by plain torch, to any order."""

    @staticmethod
    def forward(  # type: ignore[override]
        grad: Tensor, logits: Tensor, gradient: Callable[..., Tensor], *rest: Any
    ) -> Tensor:
        return _call(grad, logits, gradient, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, logits, ctx.gradient, *ctx.rest = inputs
        ctx.save_for_backward(grad, logits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        grad, logits = ctx.saved_tensors
        batch_weights, (largest, factor) = ctx.rest[-2], ctx.rest[-1].unbind(dim=1)
        wide = factor.dtype
        along, values = grads[0].to(wide), logits.to(wide)
        chances = torch.softmax(values, dim=1)
        with torch.no_grad():  # what the labels say does not depend on the logits
            scale = (factor * torch.exp(values - largest[:, None]).sum(dim=1))[:, None]
            unit = ctx.gradient(torch.ones_like(grad), values, *ctx.rest)
            constant = scale * chances * batch_weights[:, None] - unit
        weights = batch_weights.to(wide)[:, None]
        inner = (chances * along).sum(dim=1, keepdim=True)
        to_logits = grad[:, None] * weights * scale * chances * (along - inner)
        to_grad = ((weights * scale * chances - constant) * along).sum(dim=1)
        return (to_grad, to_logits.to(logits.dtype), *(None,) * (len(ctx.needs_input_grad) - 2))


logits_gradient = cast(
    "Callable[..., Tensor]",
    _LogitsGradient.apply,  # pyright: ignore[reportUnknownMemberType]
)


cross_entropy_loss = cast(
    "Callable[..., Tensor]",
    _CrossEntropy.apply,  # pyright: ignore[reportUnknownMemberType]
)
