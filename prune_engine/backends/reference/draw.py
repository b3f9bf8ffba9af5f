# SPDX-License-Identifier: Apache-2.0
"""A draw by itself in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import PIECE, stream_draw
from prune_engine.bands import MAX_INDEX


def draw(indices: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """Draw 32 bits for each index; see :func:`stream_draw`.

    Args:
        indices: [M] int64, values in [0, 2^62].
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].
        stream: in [0, 2^28).

    Returns:
        int64 [M], values in [0, 2^32).

    Raises:
        IndexError: an index is out of range.

    Example:
        >>> draw(torch.arange(3), 0, 1, 0).shape
        torch.Size([3])
    """
    outside = indices[(indices < 0) | (indices > MAX_INDEX)]
    if outside.numel() > 0:
        raise IndexError(f"indices must be in 0..2^62, got {int(outside[0])}")
    drawn = torch.empty_like(indices)
    for at in range(0, indices.shape[0], PIECE):
        drawn[at : at + PIECE] = stream_draw(indices[at : at + PIECE], seed, epoch, stream)
    return drawn
