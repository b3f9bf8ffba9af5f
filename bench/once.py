# SPDX-License-Identifier: Apache-2.0
"""Calls each operator once at N = 14,197,122, for a profiler to look at.

ncu --profile-from-start off ... python bench/once.py      # counters of each operator's kernels
python bench/once.py --library FILE --rounds 9             # its median times, of any _ops.so

Before each operator a kernel that only waits (``spin_kernel``) tells the profiler's reader where
the next one begins. Only these calls are inside the profiler's window.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu import events
from gpu.clock import Clock, DeviceLost, Row, measure
from gpu.operators import Operator, all_operators
from gpu.place import PLACES, Place

IMAGES = 64  # a quarter of the benchmark's: a profiler saves and restores what kernels write
SPIN = 1000  # cycles


def kernels_of(place: Place, backend: str | None, library: Path | None) -> Any:
    """A backend's operators, or those of a library by itself."""
    if library is None:
        return place.kernels(backend)
    torch.ops.load_library(str(library))
    return torch.ops.prune_engine


def begin(operator: Operator, on_gpu: bool) -> None:
    """Tell whoever counts or listens which operator comes."""
    events.emit("begin", key=operator.name)
    if on_gpu:
        torch.cuda._sleep(SPIN)


def once(works: Sequence[Operator], on_gpu: bool, seconds: float) -> None:
    """Call each, alone on the device; a profiler that is ended may tell nothing, so end in time."""
    end = time.monotonic() + seconds
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for work in works:
        if time.monotonic() > end:
            events.emit("cut", key=work.name)
            break
        begin(work, on_gpu)
        work.call()
        if on_gpu:
            torch.cuda.synchronize()
        events.emit("end", key=work.name)
    if on_gpu:
        torch.cuda.profiler.stop()


def timed(works: Sequence[Operator], place: Place, rounds: int) -> int:
    """Time all; returns the exit status."""
    rows = [Row("once", place.n, work) for work in works if work.name not in events.finished()]
    say = lambda key: events.emit("begin", key=key.rpartition("|")[2])  # noqa: E731
    try:
        for changed in measure(Clock(place), rows, rounds, place.on_gpu, say):
            events.emit("rows", rows=[row.as_dict() for row in changed])
    except DeviceLost as fault:
        events.emit("fault", why=str(fault))
        return events.LOST
    for row in rows:
        events.emit("end", key=row.work.name)
        if row.times:
            print(f"{row.work.name:<28} {row.percentile(0.5):10.1f} us")
    return 0


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench/once.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=PLACES, default="full")
    parser.add_argument("--backend", help="default: cuda")
    parser.add_argument("--library", type=Path, help="an _ops.so; default: this package's")
    parser.add_argument("--rounds", type=int, default=0, help="time this often instead")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no operator after these")
    arguments = parser.parse_args(argv)
    place = PLACES[arguments.size]
    kernels = kernels_of(place, arguments.backend, arguments.library)
    images = min(IMAGES, place.images)
    works = all_operators(kernels, place.n, place.logits[0], images, place.side, place.device)
    if arguments.rounds:
        return timed(works, place, arguments.rounds)
    once(works, place.on_gpu, arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
