# SPDX-License-Identifier: Apache-2.0
"""The gradient of losses that were computed from logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


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
