# SPDX-License-Identifier: Apache-2.0
"""The kept samples in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def compact(weight_class: Tensor, block_offsets: Tensor, num_kept: int) -> Tensor:
    """List the samples that were kept.

    Args:
        weight_class: [N] uint8, from :func:`plan`.
        block_offsets: [ceil(N / PLAN_BLOCK) + 1] int64, from the same call.
        num_kept: ``block_offsets[-1]``, as the caller read it.

    Returns:
        int32 [num_kept]: the indices with ``weight_class != 0``, ascending.

    Raises:
        ValueError: num_kept is not the last block offset, or not the number of kept samples.

    Example:
        >>> compact(torch.tensor([1, 0, 2, 0], dtype=torch.uint8), torch.tensor([0, 2]), 2)
        tensor([0, 2], dtype=torch.int32)
    """
    if num_kept != int(block_offsets[-1]):
        raise ValueError(
            f"num_kept: expected block_offsets[-1] = {int(block_offsets[-1])}, got {num_kept}"
        )
    kept = weight_class.nonzero().flatten().to(torch.int32)
    if kept.numel() != num_kept:
        raise ValueError(
            f"block_offsets: expected {kept.numel()} kept samples in all, as in weight_class, "
            f"got {num_kept}"
        )
    return kept
