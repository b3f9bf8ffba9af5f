# SPDX-License-Identifier: Apache-2.0
"""The largest scores of a random pool in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32, keep_draw, tie_key
from prune_engine.backends.reference.plan import offsets_of


def plan_top(
    records: Tensor, k: int, cut: int, seed: int, epoch: int, weight_class: Tensor
) -> Tensor:
    """Keep the k first of the samples whose keep draw is at least cut, all of them if fewer.

    Ordered: the never seen, then the scores, descending; among equals by ``tie_key``, descending;
    then by index, ascending.

    Args:
        records: [N] int64, as left by :func:`observe`.
        k: in 0..2^31 - 1.
        cut: in 0..65535.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].
        weight_class: [N] uint8, changed in place: 1 = kept, 0 = dropped.

    Returns:
        block_offsets, int64 [ceil(N / PLAN_BLOCK) + 1]; see :func:`plan`.

    Example:
        >>> from prune_engine.backends.reference.arithmetic import float_to_key
        >>> records = (1 << 32) | float_to_key(torch.tensor([0.5, 3.0, 0.5, 2.0]))
        >>> classes = torch.empty(4, dtype=torch.uint8)
        >>> plan_top(records, 2, 0, 0, 1, classes).tolist(), classes.tolist()
        ([0, 2], [0, 1, 0, 1])
    """
    everyone = torch.arange(records.numel(), device=records.device)
    pool = everyone[keep_draw(everyone, seed, epoch) >= cut]
    # Of two stable sorts the later one decides, the earlier one among its equals.
    pool = pool[torch.sort(tie_key(pool, seed, epoch), descending=True, stable=True).indices]
    rank = torch.where(records[pool] == 0, MASK32, records[pool] & MASK32)
    kept = pool[torch.sort(rank, descending=True, stable=True).indices[:k]]
    weight_class.zero_()
    weight_class[kept] = 1
    return offsets_of(weight_class)
