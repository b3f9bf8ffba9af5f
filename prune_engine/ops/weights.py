# SPDX-License-Identifier: Apache-2.0
"""From weight classes to weights, and from losses to weighted losses, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.bands import NUM_CLASSES
from prune_engine.ops.checks import check_vector


def rescale(losses: Tensor, batch_weights: Tensor) -> Tensor:
    """Multiply losses by their weights, in one float32 product and one rounding to their dtype.

    Args:
        losses: [B] float16 | bfloat16 | float32 | float64.
        batch_weights: [B] float32.

    Returns:
        [B] in the dtype of ``losses``, bit for bit what ``observe`` returns; differentiable.

    Example:
        >>> rescale(torch.ones(1, dtype=torch.float16), torch.tensor([2.0])).dtype
        torch.float16
    """
    rescaled = losses * batch_weights  # half * float32 is computed and returned in float32
    return rescaled if rescaled.dtype == losses.dtype else rescaled.to(losses.dtype)


def decode_weights(weight_class: Tensor, weight_table: Tensor) -> Tensor:
    """Decode weight classes into weights.

    Args:
        weight_class: [M] uint8.
        weight_table: [256] float32.

    Returns:
        float32 [M], in the same order.

    Raises:
        ValueError: the table does not have 256 entries.

    Example:
        >>> table = weights_on((0.0, 1.0, 2.0), torch.device("cpu"))
        >>> decode_weights(torch.tensor([2, 0], dtype=torch.uint8), table).tolist()
        [2.0, 0.0]
    """
    check_vector("weight_class", weight_class, (torch.uint8,))
    device = weight_class.device
    check_vector("weight_table", weight_table, (torch.float32,), size=NUM_CLASSES, device=device)
    return weight_table[weight_class.to(torch.int32)]


def weights_on(table: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a rule's table as the operators take it, float32 [256]: the classes without 0."""
    padded = torch.zeros(NUM_CLASSES, dtype=torch.float32)
    padded[: len(table)] = torch.tensor(table, dtype=torch.float32)
    return padded.to(device)
