# SPDX-License-Identifier: Apache-2.0
"""The k largest scores in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import keys_of


def top(values: Tensor, k: int) -> Tensor:
    """Mark the k largest scores of the seen, ties to the smaller index.

    Args:
        values: [N] float32 scores, nan = never seen, or int64 records, 0 = never seen.
        k: in 0..2^31 - 1; all the seen where there are fewer.

    Returns:
        uint8 [N], 1 or 0.

    Example:
        >>> top(torch.tensor([2.0, 5.0, 2.0]), 2)
        tensor([1, 1, 0], dtype=torch.uint8)
    """
    keys = keys_of(values)
    largest = torch.sort(keys, descending=True, stable=True).indices[:k]
    mask = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    mask[largest] = 1
    return mask * (keys != 0)
