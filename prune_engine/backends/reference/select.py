# SPDX-License-Identifier: Apache-2.0
"""Ranks in eager torch, by sorting: the specification of ``select`` and ``top``.

Exported again from :mod:`prune_engine.backends.reference`. Scores are compared as order-preserving
keys, so that every backend gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import (
    FLOAT32_MAX,
    float_to_key,
    key_to_float,
    keys_of,
)


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
    keys = torch.sort(keys_of(values)).values  # the unseen, key 0, come first
    seen = (keys != 0).sum()
    ranks = ((seen - 1) * _host_vector(shares, values) + den - 1) // den
    ranks = torch.minimum((ranks + _host_vector(offsets, values)).clamp(min=0), seen - 1)
    lowest = float_to_key(values.new_full((1,), -FLOAT32_MAX, dtype=torch.float32))
    padded = torch.cat([keys, lowest])  # what is at the last place where nothing is seen
    return key_to_float(padded[keys.numel() - seen + torch.where(seen > 0, ranks, 0)])


def _host_vector(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)
