# SPDX-License-Identifier: Apache-2.0
"""Plans, orders and keep decisions over NumPy arrays, for programs and workers without torch.

The decisions are those of ``prune_engine.ops``, bit for bit; importing this module imports no
torch. Arrays that are passed are never changed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if importlib.util.find_spec("prune_engine._host") is None:
    # Torch operators in its place would defeat its purpose: workers that import no torch.
    raise ImportError(
        "prune_engine.host is not in this wheel: a py3-none wheel serves every Python and leaves "
        "out the compiled NumPy module; install the wheel of your Python (cp3xx), or build from "
        "source"
    )

from prune_engine import _host
from prune_engine.bands import (
    MAX_SAMPLES,
    check_fraction,
    check_sampling,
    dropping_band,
    kept_weight,
)
from prune_engine.host.arrays import (
    Integers,
    bool_vector,
    float32,
    int64_vector,
    integer,
    score_vector,
    seed_epoch,
)

MAX_INDICES = 2**62  # the largest n of bijection
MAX_THREADS = 1024

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class HostPlan:
    """The samples of one epoch, their weights and their order, as NumPy arrays.

    Args:
        weight_class: uint8 [N]; 0 = dropped, 1 = kept with weight 1, 2 = kept with ``weight``.
        kept: int32 [num_kept], ascending.
        threshold: float32; the samples strictly below it are low.
        weight: weight of the kept low samples, a float32 value.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Example:
        >>> scores = np.array([0.0, 0.0, 0.0, 0.0, 9.0, np.nan], dtype=np.float32)
        >>> made = plan(scores, prune_ratio=0.5, seed=0, epoch=1)
        >>> made.weight_class.tolist(), made.kept.tolist(), made.weight
        ([0, 0, 2, 0, 1, 1], [2, 4, 5], 2.0)
    """

    weight_class: NDArray[np.uint8]
    kept: NDArray[np.int32]
    threshold: np.float32
    weight: float
    seed: int
    epoch: int

    def __len__(self) -> int:
        """Return the number of kept samples."""
        return len(self.kept)

    def order(self, positions: Integers, *, num_threads: int = 1) -> NDArray[np.int32]:
        """Return the samples at some positions of the epoch: ``kept[pi(position)]``.

        ``pi`` is the bijection of ``bijection`` (SEMANTICS 3.7), so a batch, a rank's share or
        everything is random access.

        Args:
            positions: a range, or integers [M]; each in 0..num_kept-1.
            num_threads: in 1..1024.

        Returns:
            int32 [M], in the order of ``positions``.

        Raises:
            IndexError: a position is out of range.
            TypeError: positions are not integers.
            ValueError: they are not a vector, or num_threads is out of range.

        Example:
            >>> made = plan(np.zeros(4, np.float32), prune_ratio=0.5, seed=0, epoch=0)
            >>> sorted(made.order(range(4)).tolist())
            [0, 1, 2, 3]
        """
        size = len(self.kept)
        threads = integer("num_threads", num_threads, 1, MAX_THREADS)
        # A range of at most one position may have any step: it goes as an array.
        given, start, step, count = None, 0, 1, 0
        if not isinstance(positions, range) or not positions[1:]:
            given = int64_vector("positions", positions)
        elif min(positions[0], positions[-1]) < 0 or max(positions[0], positions[-1]) >= size:
            raise IndexError(f"positions must be in 0..{size - 1}, got {positions}")
        else:
            start, step, count = positions.start, positions.step, len(positions)
        return _host.order(self.kept, given, start, step, count, self.seed, self.epoch, threads)

    @property
    def indices(self) -> NDArray[np.int32]:
        """The whole training order, int32 [num_kept], made when asked for."""
        return self.order(range(len(self.kept)))

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weight of every sample, float32 [N], 0 where dropped; made when asked for."""
        return np.array([0.0, 1.0, self.weight], dtype=np.float32)[self.weight_class]


def plan(
    scores: NDArray[np.floating[Any]],
    *,
    prune_ratio: float,
    seed: int,
    epoch: int,
    threshold: float | None = None,
    sampling: str = "bernoulli",
    num_threads: int = 1,
) -> HostPlan:
    """Decide an epoch by InfoBatch's rule, from scores.

    Each sample strictly below the threshold is dropped with probability r; the kept ones weigh
    1 / (1 - r), all others 1 (Qin et al., "InfoBatch", ICLR 2024, eq. 4 and 5; SEMANTICS 3.2 to
    3.4). Equal to ``pe.ops`` on records of the same scores. Memory beyond ``scores``: 1 byte per
    sample, 4 per kept one and about 1 MB per thread; contiguous float32 scores are not copied.

    Args:
        scores: [N] float32, N < 2^31, finite, or nan = never seen (kept, weight 1); float16 and
            float64 are rounded to float32, as ``observe`` does.
        prune_ratio: r, in [0, 1).
        seed: in 0..2^63-1.
        epoch: the epoch being planned, in 0..2^31-2.
        threshold: finite in float32; None = the exact mean of the scores (``mean_threshold``).
        sampling: ``"bernoulli"`` (independent draws) or ``"fixed"`` (exactly floor((1 - r) n) of
            the n low samples stay: those with the largest draws, ties to the smaller index).
        num_threads: in 1..1024; 1 starts no thread.

    Returns:
        The plan; the same bits for any number of threads.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape or number does not fit, or a score is inf.

    Example:
        >>> scores = np.array([0.1, 0.2, 3.0], dtype=np.float32)
        >>> made = plan(scores, prune_ratio=0.5, seed=0, epoch=0, threshold=1.0, sampling="fixed")
        >>> len(made), made.weights.tolist()
        (2, [2.0, 0.0, 1.0])
    """
    values = score_vector(scores)
    check_fraction("prune_ratio", prune_ratio, zero=True, one=False)
    check_sampling(sampling)
    seed, epoch = seed_epoch(seed, epoch)
    threads = integer("num_threads", num_threads, 1, MAX_THREADS)
    mean = _host.mean_threshold(values, threads)  # refuses inf, whatever the threshold
    limit = np.float32(mean) if threshold is None else float32("threshold", threshold)
    band, fixed = dropping_band(prune_ratio, 2), sampling == "fixed"
    weight_class, kept = _host.plan(
        values,
        float(limit),
        band.cut,
        band.keep_num,
        band.keep_den if fixed else 0,
        seed,
        epoch,
        threads,
    )
    weight = float(np.float32(kept_weight(band, fixed=fixed)))
    return HostPlan(weight_class, kept, limit, weight, seed, epoch)


def mean_threshold(scores: NDArray[np.floating[Any]], *, num_threads: int = 1) -> np.float32:
    """Return the exact mean of scores as a threshold.

    The smallest float32 x with ``code(x) >= ceil(sum of codes / number seen)``, where code is the
    40-bit fixed-point score (SEMANTICS 3.1, 3.2), so ``score < threshold`` says exactly "below the
    mean". With nothing seen it is -FLT_MAX: nobody is below.

    Args:
        scores: [N] float32, N < 2^31, finite, or nan = never seen (no part of the mean).
        num_threads: in 1..1024.

    Returns:
        The threshold; no rounding or order of summation shows in it.

    Raises:
        TypeError: scores are not floating.
        ValueError: they are not a vector, or hold inf.

    Example:
        >>> float(mean_threshold(np.array([0.5, np.nan, 1.0], dtype=np.float32)))
        0.75
    """
    threads = integer("num_threads", num_threads, 1, MAX_THREADS)
    return np.float32(_host.mean_threshold(score_vector(scores), threads))


def keep(
    indices: Integers,
    epoch: int,
    *,
    seed: int,
    prune_ratio: float,
    low: NDArray[np.bool_] | Sequence[bool] | None = None,
) -> NDArray[np.bool_]:
    """Say which samples an epoch keeps, without any plan: for a stream, or one of its workers.

    Sample i is dropped iff ``low[i]`` and ``keep_draw(i) < min(65535, floor(r * 65536 + 0.5))``
    (SEMANTICS 3.3): a pure function of (seed, epoch, index), so workers and ranks agree on every
    sample without a word. It is the decision that ``plan`` makes with independent draws.

    Args:
        indices: [M] integers in 0..2^63-1, in any order: each sample's own number.
        epoch: in 0..2^31-2.
        seed: in 0..2^63-1.
        prune_ratio: r, in [0, 1).
        low: bool [M], which samples may be dropped; None = all (a random subset).

    Returns:
        bool [M], in the order of ``indices``.

    Raises:
        IndexError: an index is negative.
        TypeError: an argument has the wrong type.
        ValueError: a shape or number does not fit.

    Example:
        >>> keep([0, 1, 2, 10**12], 1, seed=0, prune_ratio=0.5).tolist()
        [False, False, True, False]
    """
    chosen = int64_vector("indices", indices)
    seed, epoch = seed_epoch(seed, epoch)
    check_fraction("prune_ratio", prune_ratio, zero=True, one=False)
    mask = None if low is None else bool_vector("low", low, len(chosen))
    return _host.keep(chosen, mask, dropping_band(prune_ratio, 2).cut, seed, epoch)


def share(
    items: Sequence[_Item], *, rank: int = 0, world_size: int = 1, worker: int = 0, workers: int = 1
) -> Sequence[_Item]:
    """Return one worker's share of the shards (or chunks) of a stream: every rank, no overlap.

    Item i belongs to rank ``i % world_size``, and there to worker ``(i // world_size) % workers``.
    With ``keep`` on the samples of each item, all workers of all ranks together serve what the
    plan keeps, each sample once. Their counts differ; where ranks must take equally many steps,
    each can count every rank's share, for ``keep`` needs no word from the others.

    Args:
        items: names of shards, or a range of starts; the same sequence everywhere.
        rank: in 0..world_size-1.
        world_size: number of ranks.
        worker: in 0..workers-1, such as ``torch.utils.data.get_worker_info().id``.
        workers: loader workers of each rank.

    Returns:
        A slice of ``items``, in their order; perhaps empty.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is out of range.

    Example:
        >>> [list(share(range(7), rank=q, world_size=2, worker=w, workers=2))
        ...  for q in (0, 1) for w in (0, 1)]
        [[0, 4], [2, 6], [1, 5], [3]]
    """
    ranks = integer("world_size", world_size, 1, MAX_SAMPLES)
    each = integer("workers", workers, 1, MAX_SAMPLES)
    first = integer("rank", rank, 0, ranks - 1)
    return items[first + ranks * integer("worker", worker, 0, each - 1) :: ranks * each]


def keep_draw(indices: Integers, *, seed: int, epoch: int) -> NDArray[np.uint16]:
    """Return the 16-bit keep draws of samples.

    Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) with key
    seed and counter (index >> 3, stream 0, epoch); the index picks 16 of its 128 bits
    (SEMANTICS 3.3).

    Args:
        indices: [M] integers in 0..2^63-1, in any order.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        uint16 [M], in the order of ``indices``.

    Raises:
        IndexError: an index is negative.
        TypeError: an argument has the wrong type.
        ValueError: a shape or number does not fit.

    Example:
        >>> keep_draw(range(3), seed=0, epoch=0).tolist()
        [59605, 26151, 50573]
    """
    chosen = int64_vector("indices", indices)
    return _host.keep_draw(chosen, *seed_epoch(seed, epoch))


def bijection(positions: Integers, n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute positions of [0, n): the keyed shuffle behind ``order``.

    A Feistel network on a 2^k x ceil(n / 2^k) grid with cycle walking (after Mitchell et al.,
    "Bandwidth-Optimal Random Shuffling for GPUs", 2022; SEMANTICS 3.7).

    Args:
        positions: [M] integers, each in 0..n-1.
        n: in 0..2^62.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        int64 [M], in the order of ``positions``; over all positions, each of 0..n-1 once.

    Raises:
        IndexError: a position is out of range.
        TypeError: an argument has the wrong type.
        ValueError: a shape or number does not fit.

    Example:
        >>> sorted(bijection(range(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    chosen = int64_vector("positions", positions)
    size = integer("n", n, 0, MAX_INDICES)
    return _host.bijection(chosen, size, *seed_epoch(seed, epoch))


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> NDArray[np.uint32]:
    """Run Philox4x32-10 once (Salmon et al., SC 2011): all randomness here comes from it.

    Args:
        counter: four words in 0..2^32-1.
        key: two words in 0..2^32-1.

    Returns:
        uint32 [4].

    Raises:
        TypeError: a word is not an integer.
        ValueError: there are not four and two words, or one is out of range.

    Example:
        >>> [f"{word:08x}" for word in philox4x32([0, 0, 0, 0], [0, 0])]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    words = [
        [integer(f"{name}[{i}]", word, 0, 2**32 - 1) for i, word in enumerate(given)]
        for name, given in (("counter", counter), ("key", key))
    ]
    for name, given, size in (("counter", words[0], 4), ("key", words[1], 2)):
        if len(given) != size:
            raise ValueError(f"{name} must have {size} words, got {len(given)}")
    return np.array(_host.philox4x32(*words), dtype=np.uint32)
