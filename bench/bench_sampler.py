# SPDX-License-Identifier: Apache-2.0
"""Serving the indices of a batch of 256 through torch's own `BatchSampler`.

A timed call serves BATCHES batches; times are per batch. Iterators go on where the last round
left them and start again at the end of the epoch, so a start's cost is paid as often as it is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import harness
import numpy as np
import published
import pytest
import torch
from data import PRUNE_RATIO, observed_engine, synthetic_scores
from harness import Alternative
from torch.utils.data import BatchSampler, RandomSampler

TABLE = "sampler"
VERSUS = "published sampler"
RELATIVE_TO = "range (floor)"
UNIT = "us"
BATCH = 256
BATCHES = 256


class Server:
    """An endless run of batches over a sampler that is made anew for every epoch."""

    def __init__(self, make: Callable[[], Iterable[int]]) -> None:
        """Starts before the first batch; `make` is called when an epoch begins."""
        self._make = make
        self._batches: Iterator[list[int]] = iter(())

    def serve(self, count: int) -> None:
        """Asks for `count` batches, each a list of BATCH ints, and drops them."""
        for _ in range(count):
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(BatchSampler(self._make(), BATCH, drop_last=False))
                next(self._batches)


class SamplerData:
    """One planned epoch behind each kind of sampler."""

    def __init__(self, num_samples: int) -> None:
        """Plans epoch 1 with the engine and with the published steps."""
        self.items = BATCH
        scores = torch.from_numpy(synthetic_scores(num_samples))
        engine = observed_engine(scores)
        planner = published.Published(scores, PRUNE_RATIO, np.random.RandomState(0))
        order = planner.plan()
        everything = range(num_samples)
        self.num_kept = engine.plan.num_kept
        self.ours = Server(engine.sampler)
        self.published = Server(lambda: published.Sampler(order))
        self.random = Server(lambda: RandomSampler(everything, generator=torch.Generator()))
        self.range = Server(lambda: everything)

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"num_kept": self.num_kept, "batch": BATCH, "batches_per_call": BATCHES}


ALTERNATIVES = (
    Alternative("engine.sampler()", lambda d, _: d.ours.serve(BATCHES), inner=BATCHES),
    Alternative(VERSUS, lambda d, _: d.published.serve(BATCHES), inner=BATCHES),
    Alternative("torch RandomSampler (no pruning)", lambda d, _: d.random.serve(BATCHES),
                inner=BATCHES),
    Alternative(RELATIVE_TO, lambda d, _: d.range.serve(BATCHES), inner=BATCHES),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(num_samples: int) -> SamplerData:
    """The data, made once for all rows."""
    return SamplerData(num_samples)


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_sampler(benchmark: Any, data: SamplerData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)
