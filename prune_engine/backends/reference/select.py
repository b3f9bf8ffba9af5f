# SPDX-License-Identifier: Apache-2.0
"""Ranks in eager torch, by sorting: the specification of ``select`` and ``top``.

Exported again from :mod:`prune_engine.backends.reference`. Scores are compared as order-preserving
keys, so that every backend gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32, float_to_key, key_to_float

FLOAT32_MAX = torch.finfo(torch.float32).max


def select(values: Tensor, offsets: list[int], shares: list[int], den: int) -> Tensor:
    """Find the scores at some ranks of the seen.

    ``rank = ceil((seen - 1) * share / den) + offset``, kept within 0..seen-1.

    Args:
        values: [N] float32 scores, nan = never seen, or int64 records, 0 = never seen.
        offsets: [R], each in -(2^31 - 1)..2^31 - 1.
        shares: [R], each in 0..den.
        den: in 1..2^31 - 1.

    Returns:
        float32 [R] on the device of values, which is not read on the host; the lowest finite
        float32 if nothing is seen.

    Example:
        >>> select(torch.tensor([5.0, 1.0, torch.nan, 2.0]), [0, 0], [0, 1], 2)
        tensor([1., 2.])
    """
    keys = torch.sort(_keys(values)).values  # the unseen, key 0, come first
    seen = (keys != 0).sum()
    ranks = ((seen - 1) * _host_vector(shares, values) + den - 1) // den
    ranks = torch.minimum((ranks + _host_vector(offsets, values)).clamp(min=0), seen - 1)
    lowest = float_to_key(values.new_full((1,), -FLOAT32_MAX, dtype=torch.float32))
    padded = torch.cat([keys, lowest])  # what is at the last place where nothing is seen
    return key_to_float(padded[keys.numel() - seen + torch.where(seen > 0, ranks, 0)])


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
    keys = _keys(values)
    largest = torch.sort(keys, descending=True, stable=True).indices[:k]
    mask = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    mask[largest] = 1
    return mask * (keys != 0)


def _keys(values: Tensor) -> Tensor:
    """Return int64 [N], the keys of scores or records; 0 where never seen."""
    if values.dtype == torch.int64:
        return values & MASK32
    return torch.where(values.isnan(), 0, float_to_key(values))


def _host_vector(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)
