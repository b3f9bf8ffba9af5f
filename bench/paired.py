# SPDX-License-Identifier: Apache-2.0
"""Two checkouts in one run: what a change of the exact sums costs, operator by operator.

``python bench/paired.py BEFORE AFTER [--rounds 41] [--threads 1]`` starts a process of each, in
which one imports what lies there and is built, and asks them in turns: in every round each is
called once for each row, in a fresh random order, while the other waits. Times are of the calling
thread's CPU clock, which other programs of the machine do not advance; ratios are medians of
per-round ratios. Both keep their own memory, so neither finds the other's in its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N, MANY = 1_281_167, 10_000_000
CALLS = {256: 64, 4096: 8}  # batches of a timed call of observe


def rows() -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is timed here: name -> (call, how many operations it is)."""
    import torch

    import prune_engine as pe
    from prune_engine import backends

    kernels: Any = backends.load("cpu")
    generator = torch.Generator().manual_seed(0)

    def observe(batch: int) -> Callable[[], None]:
        buffer = pe.epoch.ScoreBuffer(N, device="cpu")
        order = torch.randperm(N, generator=generator)
        losses = torch.empty(N).exponential_(4.0, generator=generator)
        pairs = list(zip(losses.split(batch), order.split(batch), strict=True))[:-1]
        state = buffer.observe_arguments
        # The schema that takes the state in one list, or the one before.
        rest: tuple[Any, ...] = state if len(state) == 6 else (list(state), True)
        position = 0

        def call() -> None:
            nonlocal position
            for _ in range(CALLS[batch]):
                if position == len(pairs):  # every record is news again
                    position = 0
                    buffer.epoch.add_(1)
                kernels.observe(*pairs[position], None, *rest)
                position += 1

        return call

    def audit(scores: torch.Tensor) -> Callable[[], object]:
        buffer = pe.epoch.ScoreBuffer(len(scores), device="cpu")
        buffer.observe(scores, torch.arange(len(scores)))
        buffer.weight_class.random_(0, 3, generator=generator)
        return lambda: kernels.audit(buffer.records, buffer.weight_class, 0)

    losses = torch.empty(MANY).exponential_(4.0, generator=generator)
    bits = torch.randint(-(2**31), 2**31, (MANY,), generator=generator).to(torch.int32)
    finite = torch.where(bits.view(torch.float32).isfinite(), bits, bits ^ 0x40000000)
    means = pe.epoch.ScoreBuffer(1000, device="cpu")
    means.observe(losses[:1000], torch.arange(1000))

    def threshold() -> None:
        for _ in range(1000):
            kernels.mean_threshold(means.score_sum)

    return {
        "observe, B = 256": (observe(256), CALLS[256]),
        "observe, B = 4,096": (observe(4096), CALLS[4096]),
        "audit, 10,000,000 losses": (audit(losses), 1),
        "audit, 10,000,000 floats of any exponent and sign": (audit(finite.view(torch.float32)), 1),
        "mean_threshold": (threshold, 1000),
    }


def serve() -> None:
    """Answer each name on standard input with the microseconds of an operation."""
    made = rows()
    print(json.dumps(list(made)), flush=True)
    for line in sys.stdin:
        call, count = made[line.strip()]
        began = time.thread_time_ns()
        call()
        print((time.thread_time_ns() - began) / 1000 / count, flush=True)


class Side:
    """A process that imports what one checkout holds."""

    def __init__(self, checkout: Path, threads: int) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": str(threads),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with code {self.process.wait()}")
        return line

    def microseconds(self, name: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """Return the rows as Markdown: medians with p20 and p80, and the ratio before / after."""
    lines = [
        "| operator | before us | p20 - p80 | after us | p20 - p80 | before / after | p20 - p80 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, pairs in found.items():
        before, after = zip(*pairs, strict=True)
        ratios = [a / b for a, b in pairs]
        cells = [f"{figure:,.2f}" for figure in (*spread(before), *spread(after), *spread(ratios))]
        words = [f"{cells[k]} | {cells[k + 1]} - {cells[k + 2]}" for k in (0, 3, 6)]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines)


def spread(figures: Any) -> tuple[float, float, float]:
    """Return the median, p20 and p80."""
    fifths = statistics.quantiles(figures, n=5)
    return statistics.median(figures), fifths[0], fifths[3]


def main() -> None:
    """Run the comparison, or one side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="BEFORE AFTER")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help="one side; started by this program")
    options = parser.parse_args()
    if options.serve:
        return serve()
    if len(options.checkouts) != 2:
        parser.error(f"two checkouts are needed, got {len(options.checkouts)}")
    sides = [Side(checkout, options.threads) for checkout in options.checkouts]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides[0].names}
    chance = random.Random(0)
    for at in range(options.rounds + 1):
        for name in chance.sample(sides[0].names, len(found)):
            order = chance.sample((0, 1), 2)
            times = {k: sides[k].microseconds(name) for k in order}
            if at:  # the first round warms up
                found[name].append((times[0], times[1]))
    for side in sides:
        side.end()
    print(f"{options.rounds} rounds, {options.threads} thread, load {os.getloadavg()[0]:.2f}\n")
    print(table(found))


if __name__ == "__main__":
    main()
