# SPDX-License-Identifier: Apache-2.0
"""The kept samples in ascending order."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import PLAN_BLOCK
from prune_engine.ops.checks import check_count, check_int, check_vector


def compact(
    weight_class: Tensor, block_offsets: Tensor, num_kept: int, *, backend: str = "auto"
) -> Tensor:
    """List the kept samples in ascending order.

    Args:
        weight_class: [N] uint8, from ``plan``.
        block_offsets: [ceil(N / 4096) + 1] int64, from the same ``plan``.
        num_kept: ``block_offsets[-1]``, which the caller has read.
        backend: which kernels.

    Returns:
        int32 [num_kept], ascending.

    Raises:
        TypeError: a dtype does not fit, or num_kept is no int.
        ValueError: the three do not belong together.

    Example:
        >>> compact(torch.tensor([1, 0, 2], dtype=torch.uint8), torch.tensor([0, 2]), 2).tolist()
        [0, 2]
    """
    check_vector("weight_class", weight_class, (torch.uint8,))
    check_count("weight_class", weight_class.shape[0])
    blocks = -(-weight_class.shape[0] // PLAN_BLOCK)
    device = weight_class.device
    check_vector("block_offsets", block_offsets, (torch.int64,), size=blocks + 1, device=device)
    num_kept = check_int("num_kept", num_kept, 0, weight_class.shape[0])
    try:
        return backends.kernels_for(backend, weight_class).compact(
            weight_class.contiguous(), block_offsets.contiguous(), num_kept
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error
