# SPDX-License-Identifier: Apache-2.0
"""Memory: 9 bytes per sample and 4 per kept one at the peak of an epoch's end; no list of ints."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import deque
from pathlib import Path

import pytest

import prune_engine as pe

N = 12_000_000
SLACK = 12 << 20  # allocator, chunks and threads' stacks: far below one byte per sample more

# VmHWM is the peak of resident memory since the process began: one process, one measurement.
MEASURE = """
import sys
import torch
import prune_engine as pe

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))

n, hold = int(sys.argv[1]), sys.argv[2]
warm = pe.PruneEngine(10_000, pe.InfoBatch(delta=1.0), num_epochs=2)
warm.observe(torch.rand(10_000, generator=torch.Generator()), torch.arange(10_000))
warm.end_epoch()
for _ in warm.sampler():
    pass
before = resident("VmRSS")

engine = pe.PruneEngine(n, pe.InfoBatch(0.5, delta=1.0), num_epochs=4, coverage="ignore")
step = 1 << 16
for at in range(0, n, step):  # touch every record
    indices = torch.arange(at, min(n, at + step))
    engine.observe(((indices * 40503) % 65521).float(), indices)
held = [engine.plan.kept] if hold == "kept" else []
engine.end_epoch()
kept = [n, engine.plan.num_kept]
for position, index in enumerate(engine.sampler()):
    if position == 100_000:
        break
engine.end_epoch()
print(resident("VmHWM") - before, max(kept), kept[1])
"""


def peak(hold: str, n: int = N) -> tuple[int, int, int]:
    """Return (peak bytes above the start, most samples kept, samples kept by the last plan)."""
    command = [sys.executable, "-c", MEASURE, str(n), hold]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, most, last = map(int, done.stdout.split())
    return grown, most, last


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM")


@needs_proc
def test_an_epochs_end_takes_9_bytes_per_sample_and_4_per_kept_one():
    grown, most, last = peak("nothing")
    assert last < 0.8 * N, "the second epoch is a pruned one"
    assert grown <= 9 * N + 4 * most + SLACK, f"{(grown - 9 * N - 4 * most) / N:.2f} bytes more"


@needs_proc
@pytest.mark.full("a control that takes long")
def test_control_holding_the_old_list_of_the_kept_goes_beyond():
    grown, most, _ = peak("kept")
    assert grown > 9 * N + 4 * most + SLACK


def traced(work) -> int:
    """Return the peak of Python's own allocations while some work runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_sampler_never_makes_a_list_of_its_length():
    n = 300_000
    engine = pe.PruneEngine(n, pe.KeepAll(), num_epochs=1)
    stream = traced(lambda: deque(engine.sampler(), maxlen=0))
    whole = traced(lambda: list(engine.sampler()))
    assert stream < 2 << 20, "some 16 thousand ints at a time"
    assert whole > 8 * n, "control: a list of all is seen"


def test_a_state_and_a_plan_hold_nothing_else_of_length_n():
    n = 50_000
    engine = pe.PruneEngine(n, pe.KeepAll(), num_epochs=1)
    tensors = [v for part in (engine.buffer, engine.plan) for v in vars(part).values()]
    long = {v.data_ptr(): v.nbytes for v in tensors if hasattr(v, "nbytes") and v.numel() >= n}
    assert sorted(long.values()) == [n, 4 * n, 8 * n]
