# SPDX-License-Identifier: Apache-2.0
"""Ranks: who they are, and the one exchange of an epoch. ``torch.distributed`` is the engine.

Between two exchanges a rank changes only records of the running epoch, so what one rank knows more
than another is a short list: (sample, key) pairs of 8 bytes. An exchange is one row of numbers per
rank (are all ranks at the same point? how many pairs has each?), then, for each block of samples,
either the pairs of all ranks or a MAX all-reduce of the block, whichever is fewer bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from prune_engine.errors import PruneEngineError
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import plain

Shard = Literal["auto", "none"] | tuple[int, int]

BLOCK = 1 << 22  # samples exchanged at a time: it bounds what an exchange allocates
KEY_MASK = 0xFFFFFFFF
BAD_INDEX = 3  # among the counters


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


def alone(group: Any = None) -> bool:
    """Say whether there is nobody to exchange anything with.

    Args:
        group: the data-parallel group.

    Returns:
        Whether the world is of one rank; no collective is then called.

    Example:
        >>> alone()
        True
    """
    return world(group)[1] == 1


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
        TypeError: it is none of those.
        ValueError: an explicit pair is not 0 <= rank < world size.

    Example:
        >>> resolve_shard((1, 4)), resolve_shard("none")
        ((1, 4), (0, 1))
    """
    if shard == "none":
        return 0, 1
    if shard != "auto":
        pair = plain(shard)
        if not isinstance(pair, tuple) or [type(entry) for entry in pair] != [int, int]:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"shard must be 'auto', 'none' or (rank, world size), two ints, got {shard!r}"
            )
        rank, size = pair
        if not 0 <= rank < size:
            raise ValueError(f"shard must be (rank, world size) with 0 <= rank < size, got {shard}")
        return rank, size
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.AcceleratorState._shared_state:
        return 0, 1
    return world(group)


def _all_reduce_max(tensor: Tensor, group: Any) -> None:
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)  # pyright: ignore[reportUnknownMemberType]


def merge_max(tensor: Tensor, group: Any = None) -> Tensor:
    """Return the elementwise maximum over all ranks: a collective, unless there is one rank.

    Args:
        tensor: of one shape on every rank; not changed.
        group: the data-parallel group.

    Returns:
        A copy, the same on every rank.

    Example:
        >>> merge_max(torch.tensor([1, 2])).tolist()
        [1, 2]
    """
    merged = tensor.clone()
    if not alone(group):
        _all_reduce_max(merged, group)
    return merged


def _gather(row: Tensor, group: Any) -> Tensor:
    rows = row.new_empty((world(group)[1], row.shape[0]))
    dist.all_gather(list(rows.unbind()), row, group=group)  # pyright: ignore[reportUnknownMemberType]
    return rows


def pairs_are_fewer_bytes(counts: list[int], block_size: int) -> bool:
    """Choose how the ranks exchange one block of samples; the same answer on every rank.

    Each rank receives the pairs of W - 1 others, padded to the longest list: 8 (W - 1) max(counts)
    bytes. A ring all-reduce of the block costs it 2 * 8 (W - 1) / W bytes a sample.

    Args:
        counts: changed records of each rank.
        block_size: samples in the block.

    Returns:
        Whether the pairs are fewer bytes.

    Example:
        >>> pairs_are_fewer_bytes([50, 50], 100), pairs_are_fewer_bytes([100, 100, 100], 100)
        (True, False)
    """
    return len(counts) * max(counts) < 2 * block_size


def gather(tensor: Tensor, group: Any = None) -> Tensor:
    """Give every rank every rank's tensor.

    Args:
        tensor: [...], of the same shape on all ranks.
        group: the data-parallel group.

    Returns:
        [W, ...] in the order of the ranks; a view of the argument where there is one rank.

    Example:
        >>> import torch
        >>> gather(torch.tensor([7])).tolist()
        [[7]]
    """
    if alone(group):
        return tensor[None]
    everyone = [torch.empty_like(tensor) for _ in range(world(group)[1])]
    dist.all_gather(everyone, tensor.contiguous(), group=group)  # pyright: ignore[reportUnknownMemberType]
    return torch.stack(everyone)


def exchange(
    records: Tensor, counters: Tensor, *, epoch: int, facts: Mapping[str, int], group: Any = None
) -> Tensor:
    """Give every rank the newest, largest record of each sample: the only collective.

    Exact and idempotent: duplicates and retries change nothing. Every rank must call it with the
    same facts, or all of them raise.

    Args:
        records: [N] int64, changed; all ranks' agreed when the epoch began.
        counters: [K] int64, not changed: the buffer's, and what else is to be summed.
        epoch: the running epoch, whose records may differ.
        facts: what must be the same on every rank.
        group: the data-parallel group.

    Returns:
        [K] int64: the sums of the counters, and the minimum of the fourth; the argument itself
        where there is one rank.

    Raises:
        PruneEngineError: ranks are at different points; no record has changed then.

    Example:
        >>> records, counters = torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2, 3, 4, 5])
        >>> exchange(records, counters, epoch=0, facts={"epoch": 0}).tolist()
        [1, 2, 3, 4, 5]
    """
    if alone(group):
        return counters
    floor = (epoch + 1) << 32
    blocks = [records[at : at + BLOCK] for at in range(0, max(1, records.shape[0]), BLOCK)]
    changed = torch.stack([torch.count_nonzero(block >= floor) for block in blocks])
    told = torch.tensor([*facts.values()], dtype=torch.int64, device=records.device)
    table = _gather(torch.cat([told, counters, changed]), group)
    rows = [host_ints(row) for row in table]
    agree(facts, [row[: len(facts)] for row in rows])
    for at, block in enumerate(blocks):
        counts = [row[len(facts) + len(counters) + at] for row in rows]
        if not max(counts):
            continue
        if pairs_are_fewer_bytes(counts, block.shape[0]):
            _exchange_pairs(block, counts, floor, group)
        else:
            _all_reduce_max(block, group)
    return merge_counters(table[:, len(facts) : len(facts) + len(counters)])


def merge_counters(every: Tensor) -> Tensor:
    """Merge the counters of all ranks, [W, K]: sums, but the smallest bad index."""
    merged = every.sum(dim=0)
    merged[BAD_INDEX] = every[:, BAD_INDEX].amin()
    return merged


def swap(sent: Tensor, out: list[int], into: list[int], group: Any = None) -> Tensor:
    """Send each rank its rows and receive from each those for this one.

    Args:
        sent: [sum of ``out``, ...], in the order of the ranks.
        out: rows for each rank.
        into: rows from each rank, which know them by the same arithmetic.
        group: the data-parallel group.

    Returns:
        [sum of ``into``, ...] in the order of the ranks; the argument itself where there is one.

    Example:
        >>> import torch
        >>> swap(torch.tensor([7, 8]), [2], [2]).tolist()
        [7, 8]
    """
    if alone(group):
        return sent
    received = sent.new_empty((sum(into), *sent.shape[1:]))
    dist.all_to_all_single(received, sent.contiguous(), into, out, group=group)  # pyright: ignore[reportUnknownMemberType]
    return received


def agree(facts: Mapping[str, int], rows: list[list[int]]) -> None:
    """Raise, on every rank alike, where ranks are at different points.

    Args:
        facts: name -> this rank's number.
        rows: every rank's numbers.

    Raises:
        PruneEngineError: two ranks' differ.

    Example:
        >>> agree({"epoch": 3}, [[3], [3]])
    """
    differences = [
        f"{name} is " + ", ".join(f"{row[at]} on rank {rank}" for rank, row in enumerate(rows))
        for at, name in enumerate(facts)
        if len({row[at] for row in rows}) > 1
    ]
    if differences:
        raise PruneEngineError(
            "every rank must make its engine with the same arguments, observe as many samples and "
            "call end_epoch() and state_dict() at the same points, but " + "; ".join(differences)
        )


def first_failure(problem: Exception | None, device: torch.device, group: Any = None) -> int | None:
    """Tell all ranks which of them failed first.

    Args:
        problem: this rank's, or None.
        device: the group's.
        group: the data-parallel group.

    Returns:
        The smallest number of a rank that failed, the same on every rank, or None.

    Example:
        >>> first_failure(None, torch.device("cpu")), first_failure(OSError(), torch.device("cpu"))
        (None, 0)
    """
    failed = gather(torch.tensor([problem is not None], device=device), group)
    ranks = torch.nonzero(failed.flatten())
    return int(ranks[0]) if ranks.numel() else None


def fail_together(
    problem: Exception | None,
    elsewhere: Callable[[int], Exception],
    device: torch.device,
    group: Any = None,
) -> None:
    """Raise on every rank where one has failed: none goes on alone or waits for ever.

    Args:
        problem: this rank's, or None.
        elsewhere: makes what to raise where only others failed, from the first one's number.
        device: the group's.
        group: the data-parallel group.

    Raises:
        Exception: a rank has failed.

    Example:
        >>> fail_together(None, lambda rank: OSError(f"rank {rank}"), torch.device("cpu"))
    """
    failed = first_failure(problem, device, group)
    if problem is not None:
        raise problem
    if failed is not None:
        raise elsewhere(failed)


def _exchange_pairs(block: Tensor, counts: list[int], floor: int, group: Any) -> None:
    """Merge a block by (sample << 32 | key) pairs: the high half of a record is known to all."""
    where = torch.nonzero(block >= floor).squeeze(1)
    mine = where.new_zeros(max(counts))
    keys = block.index_select(0, where).bitwise_and_(KEY_MASK)
    torch.bitwise_or(where << 32, keys, out=mine[: where.shape[0]])
    for row, count in zip(_gather(mine, group), counts, strict=True):
        news = (row[:count] & KEY_MASK).bitwise_or_(floor)
        block.scatter_reduce_(0, row[:count] >> 32, news, "amax")
