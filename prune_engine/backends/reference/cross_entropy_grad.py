# SPDX-License-Identifier: Apache-2.0
"""The gradient of the logits in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Turn the gradient of the rescaled losses into that of the logits.

    ``g_b w_b ((A_b / S_b) exp(z_c - m_b) - (1 - s) w_y [c = y] - s / C w_c)``, the derivative of
    ``F.cross_entropy`` with A the softmax's weight and S its sum; at s = 0 without class weights
    ``g_b w_b (softmax - onehot)``.

    Args:
        grad: [B] in the dtype of stats.
        logits: [B, C], as they were.
        targets: [B] int64.
        class_weight: [C] float32, or None.
        label_smoothing: in [0, 1].
        ignore_index: rows with this target get 0.
        batch_weights: [B] float32.
        stats: [B, 2], from :func:`cross_entropy_observe`.

    Returns:
        [B, C] in the dtype of logits, rounded once.

    Example:
        >>> cross_entropy_grad(torch.ones(1), torch.zeros(1, 2), torch.tensor([1]), None, 0.0, -100,
        ...                    torch.ones(1), torch.tensor([[0.0, 0.5]]))
        tensor([[ 0.5000, -0.5000]])
    """
    num_classes = logits.shape[1]
    wide = stats.dtype
    weight = torch.ones(num_classes, device=logits.device) if class_weight is None else class_weight
    weight = weight.to(wide)
    ignored = targets == ignore_index
    bad = ~ignored & ((targets < 0) | (targets >= num_classes))
    y = torch.where(ignored | bad, 0, targets)
    upstream = grad * batch_weights.to(wide)
    largest, factor = stats.unbind(dim=1)
    made = torch.exp(logits.to(wide) - largest[:, None]) * (upstream * factor)[:, None]
    made -= (upstream * label_smoothing / num_classes)[:, None] * weight
    own = upstream * (1 - label_smoothing) * weight[y]
    made.scatter_add_(1, y[:, None], -own[:, None])
    made = torch.where(bad[:, None], torch.nan, made)
    return torch.where(ignored[:, None], 0.0, made).to(logits.dtype)
