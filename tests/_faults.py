# SPDX-License-Identifier: Apache-2.0
"""Start a program, kill it, and compare it with one that was never stopped."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from _fault_program import Fate, Job, Outcome, ticking, train, without_a_fault
from _ranks import Killed, Ranks

ROOT = Path(__file__).resolve().parent.parent


NOBODY = -1


SMALL = Job()


def raise_killed() -> None:
    raise Killed


def attempt(size: int, job: Job, file: Path, victim: int = NOBODY, at: int = 0) -> Outcome | None:
    """Run ranks that are threads; None when the victim died before the end."""
    fate = Fate(raise_killed, victim, at)
    with ticking(fate, durable=False):
        try:
            return Ranks(size).run(lambda rank: train(job, file, fate))[0]
        except Killed:
            return None


def assert_as_never_stopped(outcome: Outcome, never: Outcome) -> None:
    assert all(set(row) <= {0, 1} for row in outcome.times_trained), "trained twice"
    assert outcome.times_trained == never.times_trained, "the same samples in every epoch"
    assert outcome.figures == never.figures
    assert outcome.records == never.records
    assert outcome.order == never.order


def check_random_kills(seed: int, folder: Path, job: Job = SMALL, ticks: int = 30) -> int:
    """Kill a run up to four times at random points, let it end, and compare; return the kills."""
    draws = random.Random(seed)
    short = seed % 4 == 3  # the last batches are short: then the tail depends on the world size
    job = replace(job, every=draws.randint(1, 7), sick=draws.choice([0, 0, 7]))
    sizes = [draws.choice([2, 3])] * 5 if short else draws.choices([1, 2, 3, 4], k=5)
    if short:
        job = replace(job, align=1)
        plain = replace(job, every=10**9, divided=False)
        never = attempt(sizes[0], plain, folder / "never")
        assert never is not None
    else:
        never = without_a_fault(job, folder)
    kills = 0
    for size in sizes[:-1]:
        # A run ticks more often than that, on each rank; what was saved shortens the next.
        victim, at = draws.randrange(size), draws.randint(1, ticks)
        outcome = attempt(size, job, folder / "run.pt", victim, at)
        kills += outcome is None
        if outcome is not None:
            break
    else:
        outcome = attempt(sizes[-1], job, folder / "run.pt")
    assert outcome is not None
    assert_as_never_stopped(outcome, never)
    return kills


def torchrun(folder: Path, ranks: int, *arguments: str) -> int:
    """Run the program with that many ranks; return the exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(ROOT / "tests" / "_fault_program.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*command, str(folder), *arguments]
    return subprocess.run(words, env=environment, capture_output=True).returncode
