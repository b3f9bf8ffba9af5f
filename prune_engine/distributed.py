# SPDX-License-Identifier: Apache-2.0
"""Ranks: who they are, and the one exchange of an epoch. ``torch.distributed`` is the engine."""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

Shard = Literal["auto", "none"] | tuple[int, int]


def world(group: Any = None) -> tuple[int, int]:
    """Return (rank, world size) of the training ranks.

    Args:
        group: the data-parallel group; default all ranks.

    Returns:
        (0, 1) where ``torch.distributed`` is not running.

    Example:
        >>> world()
        (0, 1)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def resolve_shard(shard: Shard, group: Any = None) -> tuple[int, int]:
    """Decide which share of the order a sampler serves, when it is asked, not when it is made.

    Under Accelerate every rank must iterate the whole sampler: Accelerate deals the batches out
    itself, and a rank-sharded sampler would be cut twice.

    Args:
        shard: ``"auto"``, ``"none"`` or an explicit (rank, world size).
        group: the data-parallel group.

    Returns:
        (rank, world size) of the sampler.

    Raises:
        ValueError: an explicit pair is not 0 <= rank < world size.

    Example:
        >>> resolve_shard((1, 4)), resolve_shard("none")
        ((1, 4), (0, 1))
    """
    if shard == "none":
        return 0, 1
    if shard != "auto":
        rank, size = shard
        if not 0 <= rank < size:
            raise ValueError(f"shard must be (rank, world size) with 0 <= rank < size, got {shard}")
        return rank, size
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.AcceleratorState._shared_state:
        return 0, 1
    return world(group)


def _all_reduce(tensor: Tensor, op: Any, group: Any) -> None:
    dist.all_reduce(tensor, op=op, group=group)  # pyright: ignore[reportUnknownMemberType]


def merge_records(records: Tensor, group: Any = None) -> None:
    """Give every rank the newest, largest record of each sample: one MAX all-reduce.

    Idempotent: duplicates and retries change nothing.

    Args:
        records: [N] int64, changed.
        group: the data-parallel group.

    Example:
        >>> import torch
        >>> merge_records(torch.zeros(2, dtype=torch.int64))
    """
    if world(group)[1] > 1:
        _all_reduce(records, dist.ReduceOp.MAX, group)


def merge_counters(counters: Tensor, group: Any = None) -> Tensor:
    """Combine the counters of all ranks: sums, and the minimum of the last entry.

    Args:
        counters: [4] int64, not changed.
        group: the data-parallel group.

    Returns:
        [4] int64; the argument itself where there is one rank.

    Example:
        >>> import torch
        >>> merge_counters(torch.tensor([1, 2, 3, 4])).tolist()
        [1, 2, 3, 4]
    """
    if world(group)[1] > 1:
        counters = counters.clone()
        _all_reduce(counters[:3], dist.ReduceOp.SUM, group)
        _all_reduce(counters[3:], dist.ReduceOp.MIN, group)
    return counters
