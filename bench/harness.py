# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: every alternative once a round, in a fresh random order, with cold caches.

Two clocks are read around each call. `wall` is what a user waits. `cp` is the critical path in CPU
time, max(this thread, all other threads together): with passive OpenMP waits it is the wall time a
quiet machine would show, so it stays comparable when something else is running.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

MIB = 1 << 20
MIN_FLUSH_MIB = 192
MAX_FLUSH_MIB = 1024
READ_LIMIT_MIB = 512
TASKS = Path("/proc/self/task")
READ_LIMIT = "read limit"


def _nothing(_data: Any, _round: int) -> None:
    """The default preparation: the call needs no argument."""


@dataclass(frozen=True)
class Alternative:
    """One way to do the work of a table.

    Attributes:
        name: the row's name; rows are told apart by (name, threads).
        call: `call(data, argument)`, the timed work.
        prepare: `prepare(data, round)` makes `argument`, outside the timing.
        threads: what `torch.set_num_threads` is set to.
        every: takes part in rounds 0, every, 2 * every, ...; slow rows take part in fewer.
        inner: units of work (steps, batches) in one call; times are reported per unit.
        bytes_moved: `bytes_moved(data)`, the bytes one unit must read and write, each array once.
    """

    name: str
    call: Callable[[Any, Any], object]
    prepare: Callable[[Any, int], Any] = _nothing
    threads: int = 1
    every: int = 1
    inner: int = 1
    bytes_moved: Callable[[Any], int] | None = None

    def __str__(self) -> str:
        """The row's name as pytest and the progress line show it."""
        return f"{self.name} [{self.threads}t]"


@dataclass(frozen=True)
class Spread:
    """Median with the 20th and the 80th percentile; `count` values."""

    p20: float
    median: float
    p80: float
    count: int


@dataclass
class Row:
    """What was measured of one alternative: one entry a round, None where it took no part."""

    name: str
    threads: int
    inner: int
    bytes_moved: int | None
    wall_ns: list[int | None] = field(default_factory=list)
    cp_ns: list[int | None] = field(default_factory=list)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Summarises the values that are there (percentiles interpolate linearly).

    Returns:
        None if no value is there.

    Example:
        >>> spread([1.0, None, 3.0, 2.0])
        Spread(p20=1.4, median=2.0, p80=2.6, count=3)
    """
    there = [float(v) for v in values if v is not None]
    if not there:
        return None
    p20, median, p80 = (round(float(v), 12) for v in np.percentile(there, (20, 50, 80)))
    return Spread(p20, median, p80, len(there))


def paired_ratio(top: Sequence[float | None], bottom: Sequence[float | None]) -> Spread | None:
    """Summarises top / bottom over the rounds in which both took part.

    The ratio is formed inside each round and the median taken last, so a slow minute of the
    machine, which touches both, cancels.

    Example:
        >>> paired_ratio([10, None, 40], [1, 5, 2]).median
        15.0
    """
    pairs = zip(top, bottom, strict=True)
    return spread([a / b for a, b in pairs if a is not None and b is not None and b > 0])


def other_threads_cpu_ns() -> dict[int, int] | None:
    """CPU time of every thread of this process but the calling one, by thread id.

    Reads each thread's own CPU clock (clock id `~tid << 3 | 6`, Linux's
    CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED): the counter behind /proc/self/task/<tid>/schedstat, but
    up to date for threads that are running now.

    Returns:
        None where there is no /proc/self/task (not Linux).
    """
    if not TASKS.is_dir():
        return None
    own = threading.get_native_id()
    times = {}
    for tid in map(int, os.listdir(TASKS)):
        if tid == own:
            continue
        try:
            times[tid] = time.clock_gettime_ns((~tid << 3) | 6)
        except OSError:  # The thread ended between the listing and the reading.
            continue
    return times


def critical_path_ns(own: int, before: dict[int, int], after: dict[int, int]) -> int:
    """max(`own`, CPU time all other threads together spent from `before` to `after`), in ns.

    Example:
        >>> critical_path_ns(10, {7: 5}, {7: 25, 8: 4})  # Thread 8 is new.
        24
    """
    return max(own, sum(ns - before.get(tid, 0) for tid, ns in after.items()))


def last_level_cache_mib() -> int:
    """Size of the largest cache the kernel names, in MiB; 0 where it names none."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(p.read_text().strip().rstrip("K")) // 1024 for p in sizes), default=0)


def default_flush_mib() -> int:
    """1.25 times the last-level cache, at least 192 and at most 1024 MiB."""
    return min(MAX_FLUSH_MIB, max(MIN_FLUSH_MIB, last_level_cache_mib() * 5 // 4))


class ColdCaches:
    """Reads `mib` MiB of other memory, so the next call starts with its data out of the caches."""

    def __init__(self, mib: int) -> None:
        """Allocates and touches the memory that is read; 0 turns the reading off."""
        self.mib = mib
        self._other = torch.ones(mib * MIB // 4)

    def __call__(self) -> None:
        """Reads all of it, on as many threads as torch has now (which also wakes them)."""
        if self.mib:
            torch.sum(self._other)


def time_once(
    call: Callable[[Any, Any], object], data: Any, argument: Any
) -> tuple[int, int | None]:
    """One call: (wall ns, cp ns or None). The result is freed after the clocks are read."""
    before = other_threads_cpu_ns()
    start_cpu = time.thread_time_ns()
    start = time.perf_counter_ns()
    result = call(data, argument)
    wall = time.perf_counter_ns() - start
    own = time.thread_time_ns() - start_cpu
    after = other_threads_cpu_ns()
    del result
    if before is None or after is None:
        return wall, None
    return wall, critical_path_ns(own, before, after)


def interleave(
    alternatives: Sequence[Alternative],
    data: Any,
    *,
    rounds: int,
    flush: ColdCaches,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _line: None,
) -> list[Row]:
    """Times all alternatives in `rounds` rounds after one untimed call of each.

    Args:
        alternatives: distinct (name, threads).
        data: what the alternatives work on; passed to `prepare`, `call`, `bytes_moved`.
        rounds: number of rounds, >= 1.
        flush: called before every timed call.
        seed: of the random order inside a round.
        progress: takes one line a round.

    Returns:
        Rows in the order of `alternatives`; every list has `rounds` entries.

    Raises:
        ValueError: two alternatives share name and threads.
    """
    if len({(a.name, a.threads) for a in alternatives}) != len(alternatives):
        raise ValueError("alternatives: expected distinct (name, threads), got a repeated pair")
    rows = [
        Row(a.name, a.threads, a.inner, a.bytes_moved(data) if a.bytes_moved else None)
        for a in alternatives
    ]
    shuffler = random.Random(seed)
    threads_before = torch.get_num_threads()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for alternative in alternatives:
            torch.set_num_threads(alternative.threads)
            alternative.call(data, alternative.prepare(data, 0))
        for number in range(rounds):
            chosen = [i for i, a in enumerate(alternatives) if number % a.every == 0]
            shuffler.shuffle(chosen)
            for row in rows:
                row.wall_ns.append(None)
                row.cp_ns.append(None)
            for i in chosen:
                torch.set_num_threads(alternatives[i].threads)
                argument = alternatives[i].prepare(data, number + 1)
                flush()
                wall, cp = time_once(alternatives[i].call, data, argument)
                rows[i].wall_ns[-1], rows[i].cp_ns[-1] = wall, cp
                del argument
            gc.collect()
            progress(f"round {number + 1}/{rounds}")
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()
    return rows


def read_limits(threads: Sequence[int] = (1, 2)) -> Iterator[Alternative]:
    """Alternatives that read 512 MiB once, by `torch.dot(x, x)`: the measured read limit.

    dot is used because it was the fastest of sum, dot, amax, norm and NumPy's sum at reading.
    """
    other = torch.ones(READ_LIMIT_MIB * MIB // 4)
    for count in threads:
        yield Alternative(
            READ_LIMIT,
            lambda _data, _argument: torch.dot(other, other),
            threads=count,
            bytes_moved=lambda _data: READ_LIMIT_MIB * MIB,
        )


def run_under_pytest(benchmark: Any, table: str, alternative: Alternative, data: Any) -> None:
    """Times one alternative with pytest-benchmark: 5 cold rounds (3 for slow rows), one call each.

    Args:
        benchmark: the pytest-benchmark fixture.
        table: its group.
        alternative: what is timed; one call is `inner` units.
        data: what it works on.
    """
    flush = ColdCaches(default_flush_mib())
    numbers = iter(range(1, 1 << 20))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(alternative.threads)

    def setup() -> tuple[tuple[Any, Any], dict[str, Any]]:
        argument = alternative.prepare(data, next(numbers))
        flush()
        return (data, argument), {}

    benchmark.group = table
    benchmark.extra_info.update(threads=alternative.threads, units_per_call=alternative.inner)
    try:
        benchmark.pedantic(
            alternative.call, setup=setup, rounds=3 if alternative.every > 1 else 5, iterations=1
        )
    finally:
        torch.set_num_threads(threads_before)
