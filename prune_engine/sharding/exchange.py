# SPDX-License-Identifier: Apache-2.0
"""What ranks that divide the scores tell one another, once per epoch.

Each record goes to its sample's owner, each rank's next samples come from their owners: two
all-to-all exchanges of a few bytes a sample. Nobody asks for anything, because a receiver knows by
arithmetic what comes: records follow the ascending order of their samples; samples follow that of
their ranks in the list of all kept ones, which a receiver has from the shuffle of its positions
and an owner from the shuffle's inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import LIMBS, SUM_WORDS
from prune_engine.epoch import ranks
from prune_engine.epoch.exact_sum import sum_in_units
from prune_engine.epoch.score_buffer import KEY_MASK, Audit
from prune_engine.ops.to_host import host_ints
from prune_engine.sharding.buffer import ShardedBuffer
from prune_engine.sharding.layout import FETCH_BYTES, edges, shared
from prune_engine.sharding.local_samples import Share

# Samples of one rank exchanged at a time. It bounds what an exchange allocates, and what is below
# 32 MB an allocator keeps: fresh memory costs more than all the arithmetic here.
ROUND = 1 << 20


def return_records(
    buffer: ShardedBuffer,
    counters: Tensor,
    *,
    epoch: int,
    facts: Mapping[str, int],
    group: Any = None,
) -> Tensor:
    """Send what this rank recorded to the owners, who keep the largest record of each sample.

    Exact and idempotent like ``ranks.exchange``: duplicates and retries change nothing. A
    record goes as 8 bytes: the sample's number within its owner's range, and the key.

    Args:
        buffer: a shard with the epoch's share; its own records change.
        counters: [K] int64, not changed; the last is a minimum, the others are sums.
        epoch: the running epoch.
        facts: what must be the same on every rank.
        group: the data-parallel group.

    Returns:
        [K] int64: the counters of all ranks (``ranks.merge_counters``).

    Raises:
        PruneEngineError: ranks are at different points; no record has changed then.
    """
    share, (rank, size) = buffer.share, ranks.world(group)
    assert share is not None
    told = torch.tensor([*facts.values()], dtype=torch.int64, device=buffer.device)
    table = ranks.gather(torch.cat([told, counters]), group)
    ranks.agree(facts, _rows(table[:, : len(facts)]))
    starts = edges(buffer.num_samples, size)
    limits = torch.tensor(starts, dtype=torch.int64, device=buffer.device)
    bounds = host_ints(torch.searchsorted(share.samples, limits))  # of each owner's in the share
    rounds = range(0, share.largest, ROUND)
    sizes: list[list[list[int]]] = []
    if rounds:
        counts = torch.stack([_count_recorded(share, at, bounds) for at in rounds])
        sizes = [_rows(table) for table in ranks.gather(counts, group)]
    for number, at in enumerate(rounds):
        out = sizes[rank][number]
        pairs, keys = share.samples[at : at + ROUND], share.records[at : at + ROUND]
        if sum(out) < len(keys):
            where = torch.nonzero(keys).squeeze(1)
            pairs, keys = pairs.index_select(0, where), keys.index_select(0, where)
        else:
            pairs = pairs.clone()
        for owner, (first, last) in enumerate(pairwise(accumulate(out, initial=0))):
            pairs[first:last].sub_(starts[owner])
        into = [sizes[other][number][rank] for other in range(size)]
        came = ranks.swap(
            pairs.bitwise_left_shift_(32).bitwise_or_(keys & KEY_MASK), out, into, group
        )
        news = (came & KEY_MASK).bitwise_or_((epoch + 1) << 32)
        buffer.records.scatter_reduce_(0, came >> 32, news, "amax")
    return ranks.merge_counters(table[:, len(facts) :])


def _rows(table: Tensor) -> list[list[int]]:
    return [host_ints(row) for row in table]


def _count_recorded(share: Share, at: int, bounds: list[int]) -> Tensor:
    """Count a round's records by their owners."""
    within = [min(max(bound, at), at + ROUND) for bound in bounds]
    return torch.stack(
        [torch.count_nonzero(share.records[first:last]) for first, last in pairwise(within)]
    )


def audit_shards(buffer: ShardedBuffer, *, epoch: int, group: Any = None) -> Audit:
    """Recompute the exact sum of all shards and compare what was seen with the plan.

    Args:
        buffer: a shard whose records have been returned; ``score_sum`` becomes its own, ``total``
            that of all.
        epoch: the epoch that ended.
        group: the data-parallel group.

    Returns:
        The counts of all shards together.
    """
    result = ops.audit(buffer.records, buffer.weight_class, epoch=epoch, backend=buffer.backend)
    buffer.score_sum.copy_(result[:SUM_WORDS])
    # On the host, whose ints do not overflow: the limbs of 2^31 samples would.
    columns = zip(*_rows(ranks.gather(result, group)), strict=True)
    words = [sum(column) for column in columns]
    audit = Audit(*words[LIMBS:])
    buffer.total = (sum_in_units(words), audit.seen)
    return audit


def make_share(
    buffer: ShardedBuffer, kept: Tensor, *, start: int, seed: int, epoch: int, group: Any = None
) -> Share:
    """Fetch the samples of this rank's positions, with their weight classes, from their owners.

    The order is that of ``ops.order`` over the list of all kept samples, which is nowhere whole:
    position p has rank pi(p) in it; that falls into the list of the owner before whom no more than
    as many are kept. A sample comes as 5 bytes: number within the owner's range, weight class.

    Args:
        buffer: a shard.
        kept: int32, ascending: what it keeps, numbers within its own range.
        start: positions before it are trained.
        seed: in 0..2^63-1.
        epoch: the epoch.
        group: the data-parallel group.

    Returns:
        The share; nothing is recorded in it yet.
    """
    rank, size = ranks.world(group)
    device = kept.device
    count = torch.tensor([kept.shape[0]], dtype=torch.int64, device=kept.device)
    counts = host_ints(ranks.gather(count, group).flatten())
    before = list(accumulate(counts, initial=0))
    num_kept = before[-1]
    positions = shared(num_kept, start, rank, size)
    key: dict[str, Any] = {"seed": seed, "epoch": epoch, "backend": buffer.backend}
    ranked = torch.empty(len(positions), dtype=torch.int64, device=device)
    for at in range(0, len(positions), ROUND):
        part = positions[at : at + ROUND]
        numbers = torch.arange(part.start, part.stop, size, device=device)
        ranked[at : at + ROUND] = ops.shuffle(numbers, num_kept, **key)
    # Ranks for now: a sample takes the room of its rank.
    samples, by = _sorted(ranked, num_kept)
    del ranked
    numbers = torch.arange(len(positions), dtype=torch.int32, device=device)
    place = torch.empty_like(numbers).scatter_(0, by, numbers)
    del by, numbers
    classes = torch.empty(len(positions), dtype=torch.uint8, device=kept.device)

    rounds = range(0, max(counts), ROUND)
    cuts = [
        [first + min(at, most) for first, most in zip(before, counts, strict=False)]
        for at in (*rounds, max(counts))
    ]
    limits = torch.tensor(cuts, dtype=torch.int64, device=kept.device)
    slots = _rows(torch.searchsorted(samples, limits))
    starts = edges(buffer.num_samples, size)
    for number, at in enumerate(rounds):
        listed = kept[at : at + ROUND]
        first = before[rank] + at
        numbers = torch.arange(first, first + listed.shape[0], device=kept.device)
        to = ops.unshuffle(numbers, num_kept, **key).sub_(start)
        trained = to < 0 if start else None
        to.remainder_(size)
        if trained is not None:
            to.masked_fill_(trained, size)
        # Few bits: a sort by radix takes one pass for every eight.
        to = to.to(torch.uint8 if size < 256 else torch.int32)
        out = host_ints(torch.bincount(to, minlength=size + 1))[:size]
        chosen = listed.index_select(0, torch.argsort(to, stable=True)[: sum(out)])
        into = [slots[number + 1][owner] - slots[number][owner] for owner in range(size)]
        came = ranks.swap(
            _packed(chosen, buffer.weight_class, out), _bytes(out), _bytes(into), group
        )
        for owner, (first, last) in enumerate(pairwise(accumulate(into, initial=0))):
            room = slice(slots[number][owner], slots[number + 1][owner])
            near, classes[room] = _unpacked(came[FETCH_BYTES * first : FETCH_BYTES * last])
            samples[room] = near
            samples[room].add_(starts[owner])
    return Share(samples, classes, place, num_kept, start, (rank, size))


def _sorted(ranks: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Sort distinct ranks below n, which this may change; return them and where each was."""
    if not ranks.is_cpu or n > 1 << 31:
        return torch.sort(ranks)
    # NumPy sorts numbers with vector instructions, ten times as fast as torch sorts pairs; so a
    # pair becomes a number.
    pairs = ranks.bitwise_left_shift_(32).bitwise_or_(torch.arange(len(ranks)))
    pairs.numpy().sort()
    return pairs >> 32, pairs.bitwise_and_(KEY_MASK)


def _bytes(counts: list[int]) -> list[int]:
    return [FETCH_BYTES * count for count in counts]


def _packed(chosen: Tensor, weight_class: Tensor, out: list[int]) -> Tensor:
    """Put samples and their classes into one message for each rank: all samples, all classes."""
    classes = weight_class.index_select(0, chosen)
    sent = classes.new_empty(FETCH_BYTES * len(classes))
    for first, last in pairwise(accumulate(out, initial=0)):
        middle = FETCH_BYTES * first + 4 * (last - first)
        sent[FETCH_BYTES * first : middle] = chosen[first:last].view(torch.uint8)
        sent[middle : FETCH_BYTES * last] = classes[first:last]
    return sent


def _unpacked(message: Tensor) -> tuple[Tensor, Tensor]:
    """Return a message's samples, int32, and their classes."""
    middle = len(message) // FETCH_BYTES * 4
    samples = message[:middle].clone()  # aligned, as a view may not be
    return samples.view(torch.int32), message[middle:]
