# SPDX-License-Identifier: Apache-2.0
"""Time calls on a device, with cold caches, in rounds that take them in a fresh random order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gpu.operators import Call, Operator
from gpu.place import Place

MIN_ROUNDS = 3
SECONDS_PER_ROW = 1.0  # slow rows take part in fewer rounds


class Clock:
    """Times one call: by events on a GPU, by the wall elsewhere (to test this program).

    The cache is emptied by reading: what is written to empty it would still have to leave it
    during the call. The read also keeps the device busy while the host enqueues the call.
    """

    def __init__(self, place: Place) -> None:
        self._on_gpu = place.on_gpu
        self._flush = torch.ones(place.flush_mib << 18, device=place.device)  # float32

    def __call__(self, call: Call) -> float:
        """Microseconds."""
        self._flush.sum()
        if not self._on_gpu:
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) * 1e6
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


@dataclass
class Row:
    """The times of one alternative in microseconds, or why there are none."""

    table: str
    n: int
    work: Operator
    refused: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return f"{self.table}|{self.n}|{self.work.name}"

    def percentile(self, share: float) -> float:
        """The value that this share of the times does not exceed (nearest rank)."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def as_dict(self) -> dict[str, Any]:
        """The row of a ledger."""
        row: dict[str, Any] = {
            "part": "benchmark",
            "table": self.table,
            "n": self.n,
            "name": self.work.name,
            "bytes": self.work.bytes,
            "times_us": [round(value, 3) for value in self.times],
        }
        if self.times:
            for name, share in (("p20_us", 0.2), ("p50_us", 0.5), ("p80_us", 0.8)):
                row[name] = round(self.percentile(share), 3)
        if self.refused:
            row["note"] = f"refused: {self.refused}"
        return row


class DeviceLost(RuntimeError):
    """This process can use the device no more."""


def check_device(error: RuntimeError, on_gpu: bool) -> None:
    """Tell a refusal, after which the device serves on, from a fault that ends this process.

    Raises:
        DeviceLost: with the words of the fault.
    """
    if on_gpu:
        try:
            torch.cuda.synchronize()
        except RuntimeError as fault:
            raise DeviceLost(str(error).splitlines()[0]) from fault


def measure(
    clock: Clock,
    rows: Sequence[Row],
    rounds: int,
    on_gpu: bool,
    begin: Callable[[str], object] = lambda key: None,
) -> Iterator[list[Row]]:
    """Time every alternative in interleaved rounds.

    Args:
        clock: times one call.
        rows: the alternatives.
        rounds: at most.
        on_gpu: whether a failure may have taken the device along.
        begin: is given a row's key before its first call.

    Yields:
        After the first calls and after each round, the rows that this changed.

    Raises:
        DeviceLost: the row that was begun last broke the device.
    """
    shuffler = random.Random(0)
    left: dict[int, int] = {}

    def timed(row: Row, warm: bool) -> float | None:
        begin(row.key)
        try:
            row.work.prepare()
            if warm:
                row.work.call()
                row.work.prepare()
            return clock(row.work.call)
        except RuntimeError as error:
            check_device(error, on_gpu)
            row.refused = str(error).splitlines()[0]
            return None

    for number, row in enumerate(rows):
        took = timed(row, warm=True)
        if took is not None:
            fitting = int(SECONDS_PER_ROW * 1e6 / max(took, 1.0))
            left[number] = max(MIN_ROUNDS, min(rounds, fitting))
    yield [row for row in rows if row.refused]
    while left:
        turn = list(left)
        shuffler.shuffle(turn)
        for number in turn:
            row = rows[number]
            took = timed(row, warm=False)
            if took is not None:
                row.times.append(took / row.work.calls)
            left[number] -= 1
            if row.refused or left[number] == 0:
                del left[number]
        yield [rows[number] for number in sorted(turn)]
