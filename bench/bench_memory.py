# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of one plan, each in a fresh process, state included.

Counted: the growth of the resident set from just before the state (records, or scores and weights)
is made to its peak while an epoch is planned, after the same work at small N has loaded all code.
The bound is 9 bytes a sample and 4 a kept sample.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

TABLE = "memory"
KINDS = (
    "pe plan",
    "pe plan, whole order",
    "engine.end_epoch(), 1000 batches served",
    "vectorised torch planner",
    "published planner",
)
BOUNDED = KINDS[0]
WARM_UP = 50_000
CHUNK = 1 << 19
BATCH = 256


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


class Peak:
    """The peak of the resident set since `reset`."""

    def __init__(self) -> None:
        """Finds out whether the kernel lets the high-water mark be reset."""
        self.method = "VmHWM, reset through clear_refs" if self.reset() else "ru_maxrss"

    def reset(self) -> bool:
        """Sets the high-water mark to the resident set as it is now; False if that is refused."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def read(self) -> int:
        """The high-water mark in bytes."""
        if self.method == "ru_maxrss":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return _status_bytes("VmHWM")

    def base(self) -> int:
        """Where growth is counted from: the resident set, or the mark where it cannot be reset."""
        return self.read() if self.method == "ru_maxrss" else _status_bytes("VmRSS")


def _chunks(num_samples: int) -> Iterator[tuple[Any, Any]]:
    """(indices, scores) of the whole data set, never all of it at a time."""
    import torch
    from data import synthetic_scores

    for start in range(0, num_samples, CHUNK):
        count = min(CHUNK, num_samples - start)
        yield (
            torch.arange(start, start + count),
            torch.from_numpy(synthetic_scores(count, seed=start)),
        )


def _stored_scores(num_samples: int) -> Any:
    import torch

    scores = torch.empty(num_samples)
    for indices, values in _chunks(num_samples):
        scores[indices[0] : int(indices[-1]) + 1] = values
    return scores


def _prepare(kind: str, num_samples: int) -> tuple[Callable[[], Any], Callable[[Any], int]]:
    """Makes the state of one kind: (the work to be measured, its result's number of kept)."""
    import numpy as np
    import published
    import torch
    import torch_planner
    from data import PRUNE_RATIO, PruneState, empty_engine, feed
    from torch.utils.data import BatchSampler

    import prune_engine as pe

    if kind == "published planner":
        planner = published.Published(
            _stored_scores(num_samples), PRUNE_RATIO, np.random.RandomState(0)
        )
        return planner.plan, len
    if kind == "vectorised torch planner":
        scores, generator = _stored_scores(num_samples), torch.Generator()
        return lambda: torch_planner.plan(scores, PRUNE_RATIO, generator), lambda r: len(r[0])
    if kind == "engine.end_epoch(), 1000 batches served":
        engine = empty_engine(num_samples)
        feed(engine, _chunks(num_samples))

        def epoch() -> Any:
            engine.end_epoch()
            for batch in islice(BatchSampler(engine.sampler(), BATCH, drop_last=False), 1000):
                del batch
            return engine

        return epoch, lambda e: e.plan.num_kept
    state = PruneState.from_chunks(num_samples, _chunks(num_samples))
    if kind == "pe plan":
        return lambda: state.plan(epoch=1), lambda r: len(r[1])

    def plan_and_order() -> Any:
        weight_class, kept = state.plan(epoch=1)
        return weight_class, kept, pe.ops.order(kept, range(len(kept)), seed=0, epoch=1)

    return plan_and_order, lambda r: len(r[1])


def measure_here(kind: str, num_samples: int) -> dict[str, Any]:
    """Measures one kind in this process, which should be a fresh one."""
    warm_up, _ = _prepare(kind, WARM_UP)
    warm_up()
    del warm_up
    gc.collect()
    peak = Peak()
    base = peak.base()
    work, count_kept = _prepare(kind, num_samples)
    gc.collect()
    peak.reset()
    result = work()
    grown = peak.read() - base
    kept = count_kept(result)
    return {
        "kind": kind,
        "n": num_samples,
        "num_kept": kept,
        "peak_bytes": grown,
        "bound_bytes": 9 * num_samples + 4 * kept,
        "method": peak.method,
    }


def measure(kind: str, num_samples: int) -> dict[str, Any]:
    """Measures one kind in a fresh process.

    Returns:
        kind, n, num_kept, peak_bytes (growth, state included), bound_bytes, method.

    Raises:
        RuntimeError: the process failed; its last words are in the message.
    """
    # Without a fixed mmap threshold glibc keeps freed blocks and counts them twice.
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(1 << 18), OMP_WAIT_POLICY="passive")
    done = subprocess.run(
        [sys.executable, __file__, kind, str(num_samples)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"memory of {kind!r} at {num_samples}: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@pytest.mark.parametrize("kind", KINDS)
def test_memory(benchmark: Any, num_samples: int, kind: str) -> None:
    """Puts the peak of one kind beside its time in the report of pytest-benchmark."""
    benchmark.group = TABLE
    measured = benchmark.pedantic(measure, args=(kind, num_samples), rounds=1)
    benchmark.extra_info.update(measured)
    if kind == BOUNDED and num_samples >= 1_000_000:
        assert measured["peak_bytes"] <= 1.05 * measured["bound_bytes"]


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], int(sys.argv[2]))))
