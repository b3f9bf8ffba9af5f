# SPDX-License-Identifier: Apache-2.0
"""The three calls of a sitting, lists of parts with a limit, each whole by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu import counters, machine, sanitizer, suites, versions
from gpu.session import Session

Run = Callable[[Session, float], object]
LOOK_SECONDS = 20.0  # between two looks at the clocks


@dataclass(frozen=True)
class Part:
    """One part of a call.

    Args:
        name: on the command line.
        limit: seconds.
        run: does it; puts its rows into the session's ledger.
    """

    name: str
    limit: float
    run: Run


def tests(session: Session, limit: float) -> None:
    """The compiled kernels' own."""
    markers = "cuda and not triton and not distributed"
    suites.run(session, "compiled kernels", limit, markers, f"not ({suites.SLOW})")


def slow_tests(session: Session, limit: float) -> None:
    """Those of Triton and of the compiler."""
    markers = "cuda and not distributed"
    suites.run(session, "Triton and torch.compile", limit, markers, suites.SLOW)


def nccl(session: Session, limit: float) -> None:
    """Every collective on one rank."""
    suites.run(session, "NCCL", limit, "cuda and distributed")


def benchmark(session: Session, limit: float) -> None:
    """All rows; the clocks are looked at under load and after."""
    looked = [session.spent()]

    def look() -> None:
        if session.spent() - looked[-1] >= LOOK_SECONDS or len(looked) == 1:
            looked.append(session.spent())
            session.ledger.put(*machine.look(f"under load, {looked[-1]:.0f} s"))

    session.follow("benchmark", session.module("benchmark"), limit, after_table=look)
    session.ledger.put(*machine.look("after the benchmark"))


def triton_benchmark(session: Session, limit: float) -> None:
    """Triton's kernels of the same operators."""
    backend = "triton" if session.place.on_gpu else session.place.backend
    command = session.module("benchmark", "--backend", backend, "--rounds", "5")
    session.follow("benchmark", command, limit)


def capture(session: Session, limit: float) -> None:
    """Each operator's first call, in a capture."""
    session.follow("capture", session.module("capture"), limit)


def compiled(session: Session, limit: float) -> None:
    """Steps under torch.compile."""
    session.follow("compile", session.module("compiled"), limit, silence=90.0)


def training(session: Session, limit: float) -> None:
    """A minute of training, with and without pruning."""
    session.follow("training", session.module("training"), limit)


CALLS: dict[int, tuple[Part, ...]] = {
    1: (Part("tests", 110, tests), Part("benchmark", 140, benchmark)),
    2: (Part("counters", 75, counters.run), Part("sanitizer", 200, sanitizer.run)),
    3: (
        Part("capture", 25, capture),
        Part("compile", 45, compiled),
        Part("nccl", 25, nccl),
        Part("slow-tests", 70, slow_tests),
        Part("training", 70, training),
        Part("versions", 45, versions.run),
        Part("triton", 40, triton_benchmark),
    ),
}
SECONDS = {1: 280.0, 2: 220.0, 3: 240.0}  # of a whole call: each is made to end by itself
PARTS = tuple(part.name for parts in CALLS.values() for part in parts)
