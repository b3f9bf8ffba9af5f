# SPDX-License-Identifier: Apache-2.0
"""Who owns which samples where the scores are divided among ranks, and what that costs.

Pure arithmetic on Python ints: right at any number of samples, and no memory that grows with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from prune_engine.bands import MAX_INDEX, PLAN_BLOCK

OWN_BYTES = 8 + 1  # of an owned sample: record, weight class
SHARE_BYTES = 8 + 4 + 1 + 8  # of a trained one: number, place in the order, class, record
PEAK_BYTES = 8 + 8 + 8  # of a trained one while its share is made: rank, sorted, sorted by
FETCH_BYTES = 4 + 1  # on the wire: number within the owner's range, class
RECORD_BYTES = 8  # on the wire: number within the owner's range, key of the score


def check_shard(num_samples: int, rank: int, size: int) -> None:
    """Refuse a share of a data set that there cannot be.

    Args:
        num_samples: N, must be in 0..2^62.
        rank: must be in 0..size-1.
        size: must be at least 1.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> check_shard(10**10, 0, 8)
    """
    if not 0 <= num_samples <= MAX_INDEX:
        raise ValueError(f"num_samples must be in 0..2^62, got {num_samples}")
    if not 0 <= rank < size:
        raise ValueError(
            f"shard must be (rank, world size) with 0 <= rank < size, got {(rank, size)}"
        )


def owned(num_samples: int, rank: int, size: int) -> range:
    """Return the samples that a rank owns: whole plan blocks of 4096, as equal as these allow.

    Block b of B belongs to the one rank q with ``floor(q B / W) <= b < floor((q + 1) B / W)``.
    Whole blocks, so that a shard's plan draws as the data set's does.

    Args:
        num_samples: N, in 0..2^62.
        rank: q, in 0..size-1.
        size: W.

    Returns:
        Neighbouring samples; the ranges of all ranks follow one another and cover 0..N-1. No two
        differ by more than a block and the last block's rest.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> [owned(10**10, rank, 3) for rank in (0, 1, 2)][1]
        range(3333332992, 6666665984)
    """
    check_shard(num_samples, rank, size)
    blocks = -(-num_samples // PLAN_BLOCK)
    edges = [min(num_samples, blocks * q // size * PLAN_BLOCK) for q in (rank, rank + 1)]
    return range(*edges)


def owner(index: int, num_samples: int, size: int) -> int:
    """Return the rank that owns a sample, without a table.

    Args:
        index: in 0..num_samples-1.
        num_samples: N.
        size: W.

    Returns:
        The rank whose ``owned`` range has it.

    Raises:
        IndexError: the sample does not exist.

    Example:
        >>> owner(9_999_999_999, 10**10, 3)
        2
    """
    if not 0 <= index < num_samples:
        raise IndexError(f"index must be in 0..{num_samples - 1}, got {index}")
    blocks = -(-num_samples // PLAN_BLOCK)
    return ((index // PLAN_BLOCK + 1) * size - 1) // blocks


def edges(num_samples: int, size: int) -> list[int]:
    """Return where the ranges of the ranks begin, and N.

    Args:
        num_samples: N.
        size: W.

    Returns:
        W + 1 numbers, ascending.

    Example:
        >>> edges(10_000, 2)
        [0, 4096, 10000]
    """
    return [*(owned(num_samples, rank, size).start for rank in range(size)), num_samples]


def shared(num_kept: int, start: int, rank: int, size: int) -> range:
    """Return the positions of an epoch that a rank trains.

    Args:
        num_kept: positions of the epoch.
        start: those before it are trained.
        rank: q.
        size: W.

    Returns:
        ``start + q, start + q + W, ...``

    Example:
        >>> list(shared(10, 4, 1, 2))
        [5, 7, 9]
    """
    return range(start + rank, max(num_kept, start + rank), size)


@dataclass(frozen=True)
class ShardCost:
    """What a rank holds and receives, in bytes; computed, not measured.

    Args:
        owned: records and weight classes of its own samples.
        share: numbers, classes and pending records of the samples that it trains.
        peak: its own samples, the list of those kept, and what making the share takes for a moment
            (but for what ``torch.sort`` takes for itself).
        wire: received in an epoch from other ranks, on average: the order is random, so that
            (W - 1) / W of what a rank trains is owned by others.
        whole: what a rank would hold without dividing the scores.
        whole_wire: what it would receive.

    Example:
        >>> cost = shard_cost(10**6, 2)
        >>> isinstance(cost, ShardCost), cost.owned < cost.whole
        (True, True)
    """

    owned: int
    share: int
    peak: int
    wire: int
    whole: int
    whole_wire: int


def shard_cost(num_samples: int, size: int, kept_share: float = 0.7) -> ShardCost:
    """Work out what dividing the scores among ranks takes, for any number of samples.

    Args:
        num_samples: N.
        size: W.
        kept_share: the share of the samples that an epoch trains, in [0, 1].

    Returns:
        Bytes of one rank; rows of a few numbers a rank and the buffers of an exchange, which do
        not grow with N, are left out.

    Example:
        >>> cost = shard_cost(10**9, 8)
        >>> cost.owned // 10**6, cost.share // 10**6, cost.wire // 10**6
        (1125, 1837, 995)
    """
    own = max(len(owned(num_samples, rank, size)) for rank in range(size))
    kept = round(kept_share * num_samples)
    mine = -(-kept // size)
    elsewhere = mine * (size - 1) // size
    others = kept * (size - 1) // size
    return ShardCost(
        owned=OWN_BYTES * own,
        share=SHARE_BYTES * mine,
        peak=(OWN_BYTES + 4) * own + max(SHARE_BYTES, PEAK_BYTES) * mine,
        wire=(FETCH_BYTES + RECORD_BYTES) * elsewhere,
        whole=OWN_BYTES * num_samples + 4 * kept,
        whole_wire=min(RECORD_BYTES * others, 16 * num_samples * (size - 1) // size),
    )
