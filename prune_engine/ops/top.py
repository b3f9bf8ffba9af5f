# SPDX-License-Identifier: Apache-2.0
"""The k largest of N scores."""

from __future__ import annotations

from torch import Tensor

from prune_engine import backends
from prune_engine.bands import MAX_SAMPLES
from prune_engine.ops.checks import check_int, check_values


def top(values: Tensor, k: int, *, backend: str = "auto") -> Tensor:
    """Mark the k largest of the seen scores, ties to the smaller index.

    Which ones is exact and the same on every backend; what ``torch.topk`` leaves open among equal
    scores is decided here.

    Args:
        values: [N] float32 scores, nan = never seen, or int64 records, 0 = never seen.
        k: in 0..2^31-1; beyond the seen, all of them.
        backend: which kernels.

    Returns:
        uint8 [N], 1 = among the k largest, else 0: the weight classes of "keep these".

    Raises:
        ValueError: k is out of range.
        TypeError: values are neither float32 nor int64, or k is not an int.

    Example:
        >>> import torch
        >>> top(torch.tensor([2.0, 5.0, 2.0, torch.nan]), 2).tolist()
        [1, 1, 0, 0]
    """
    values = check_values(values)
    k = check_int("k", k, 0, MAX_SAMPLES)
    return backends.kernels_for(backend, values).top(values, k)
