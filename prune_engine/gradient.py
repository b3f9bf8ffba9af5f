# SPDX-License-Identifier: Apache-2.0
"""The gradient of ``observe`` on a device, where its one launch must stay one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _Observe(Function):
    """Gradient of the rescaled losses: ``grad * batch_weights`` (DESIGN 2)."""

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
