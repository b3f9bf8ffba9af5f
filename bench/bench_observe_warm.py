# SPDX-License-Identifier: Apache-2.0
"""One training step's bookkeeping where everything is in the caches: the calls themselves.

Ten of the steps of `bench_observe.py` over as few samples, again and again, and no other memory is
read before a timed call, which is short, so that little else runs in it. Times are per step. What
counts is the ratio to the mean that a loop without pruning takes, of the same round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bench_observe
from harness import Alternative

TABLE = "observe_warm"
VERSUS = RELATIVE_TO = "losses.mean() (no pruning)"
UNIT = "us"
ROWS = ("engine.observe(losses, indices)", VERSUS)
BATCH = 256
STEPS = 10
SAMPLES = STEPS * BATCH
PASSES = 20


class WarmData(bench_observe.ObserveData):
    """Few samples, whose records stay in a core's own cache."""

    def __init__(self) -> None:
        """Observes every sample once and plans epoch 1."""
        super().__init__(SAMPLES, BATCH)

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"batch": self.batch, "steps_per_pass": STEPS, "passes_per_call": PASSES}


def _often(call: Callable[[Any, Any], object]) -> Callable[[Any, Any], None]:
    def repeated(data: WarmData, steps: Any) -> None:
        for _ in range(PASSES):
            call(data, steps[:STEPS])

    return repeated


def _warm(row: Alternative) -> Alternative:
    return replace(row, call=_often(row.call), inner=STEPS * PASSES, bytes_moved=None)


ALTERNATIVES = tuple(_warm(row) for row in bench_observe.ALTERNATIVES if row.name in ROWS)
