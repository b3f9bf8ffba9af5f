# SPDX-License-Identifier: Apache-2.0
"""How fast a kernel could be: its bytes over the memory's rate, its instructions over the issue's.

``python bench/floors.py`` prints both for every operator at its full size; the tables of a sitting
(``gpu/tables.py``) print them beside what was measured, so that a gap explains itself: a row near
the larger of the two is done, one far above both waits for something else (latency, atomics,
launches). Instructions are those of ``results/sass.json``, read from the machine code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RATES = Path(__file__).resolve().parent / "results" / "sass.json"
WARP = 32


@dataclass(frozen=True)
class Machine:
    """A GPU, as far as the model goes.

    Args:
        multiprocessors: how many.
        issue: instructions that one of them begins a cycle, each for a warp.
        gigahertz: its clock under load.
        copy: bytes a microsecond, read and written together.
        arch: whose machine code it runs.
    """

    multiprocessors: int
    issue: int
    gigahertz: float
    copy: float
    arch: str


H200 = Machine(132, 4, 1.98, 4.3e6, "sm_90")


@dataclass(frozen=True)
class Work:
    """What an operator does with an item.

    Args:
        counted: the bytes an item that a benchmark's row counts: each array once.
        moved: the bytes an item that its kernels move, more where they read again.
        kernels: the kernels that see each item, by their names in ``sass.json``.
    """

    counted: float
    moved: float
    kernels: tuple[str, ...]


# By a row's name. What is not here has no model: a launch alone, a rival, a kernel of few threads.
DIGITS = ("digit", "later digit", "later digit")
RECORDS = ("digit of records", "later digit of records", "later digit of records")
WORKS: dict[str, Work] = {
    "plan": Work(9, 9, ("plan",)),
    "plan, fixed counts": Work(9, 12, ("histogram", "refine", "decide")),
    "order, all": Work(8, 8, ("order",)),
    "audit": Work(9, 9, ("audit",)),
    "percentiles": Work(4, 12, DIGITS),
    "percentiles of records": Work(8, 24, RECORDS),
    "top half": Work(5, 17, (*DIGITS, "mask")),  # where no tie is to be settled
    "observe": Work(37, 37, ("observe",)),
    "cross_entropy_observe": Work(2, 2, ("cross_entropy_observe",)),
    "cross_entropy_grad": Work(4, 4, ("cross_entropy_grad",)),
    "activation_std": Work(2, 2, ("moments",)),
    "moments": Work(2, 2, ("moments",)),
    "relu_moments": Work(4, 4, ("relu_moments",)),
    "relu_moments_": Work(4, 4, ("relu_moments",)),
    "gelu_moments": Work(4, 4, ("gelu_moments",)),
}


@dataclass(frozen=True)
class Bound:
    """The least microseconds that a call can take.

    Args:
        memory: to move its bytes.
        issue: to begin its instructions.
    """

    memory: float
    issue: float

    @property
    def least(self) -> float:
        """The larger of the two: both go on at once."""
        return max(self.memory, self.issue)


@cache
def instructions(arch: str) -> Mapping[str, float]:
    """Instructions an item of each kernel, of one architecture; empty where none were read."""
    found: dict[str, dict[str, float]] = json.loads(RATES.read_text(encoding="utf-8"))[
        "instructions an item"
    ]
    return found.get(arch, {})


def bound(
    name: str, size: float, machine: Machine = H200, rates: Mapping[str, float] | None = None
) -> Bound | None:
    """The bound of a row of a benchmark.

    Args:
        name: the row's.
        size: the bytes that the row counts.
        machine: that it ran on.
        rates: instructions an item by kernel; default those of the machine's architecture.

    Returns:
        None where there is no model of it, or no size.

    Example:
        >>> rates = {"plan": 10.0}
        >>> machine = Machine(100, 4, 1.0, 1e6, "sm_90")
        >>> bound("plan", 9e6, machine, rates)
        Bound(memory=9.0, issue=0.78125)
    """
    work = WORKS.get(name)
    known = instructions(machine.arch) if rates is None else rates
    if work is None or not size or not all(kernel in known for kernel in work.kernels):
        return None
    items = size / work.counted
    begun = items / WARP * sum(known[kernel] for kernel in work.kernels)
    cycles = begun / (machine.multiprocessors * machine.issue)
    return Bound(items * work.moved / machine.copy, cycles / (machine.gigahertz * 1e3))


N22 = 14_197_122
SIZES: dict[str, float] = {
    "plan": 9 * N22,
    "plan, fixed counts": 9 * N22,
    "order, all": 8 * 0.65 * N22,  # what is kept of a usual epoch
    "audit": 9 * N22,
    "percentiles": 4 * N22,
    "percentiles of records": 8 * N22,
    "top half": 5 * N22,
    "observe": 37 * 65_536,
    "cross_entropy_observe": 2 * 2048 * 50_257,
    "cross_entropy_grad": 4 * 2048 * 50_257,
    "activation_std": 2 * 256 * 9_608_704,
}


def main(argv: Sequence[str]) -> int:
    """Print the bounds of every operator; returns the exit status."""
    print("| operator | memory us | issue us | bound by |\n| --- | ---: | ---: | --- |")
    for name, size in SIZES.items():
        if found := bound(name, size):
            by = "memory" if found.memory >= found.issue else "issue"
            print(f"| {name} | {found.memory:.1f} | {found.issue:.1f} | {by} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
