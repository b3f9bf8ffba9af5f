# SPDX-License-Identifier: Apache-2.0
"""One training step's bookkeeping: record the losses, look up the weights, rescale, reduce.

A timed call is STEPS steps, each with fresh random indices and a fresh loss tensor that hangs in
an autograd graph, as in a training loop; times are per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import harness
import numpy as np
import published
import pytest
import torch
from data import PRUNE_RATIO, PruneState, observed_engine, synthetic_scores
from harness import Alternative
from torch import Tensor

TABLE = "observe"
VERSUS = "published update"
RELATIVE_TO = "np scatter (floor)"
UNIT = "us"
BATCHES = (256, 4096)
STEPS = 64
BYTES_PER_SAMPLE = 8 + 4 + 16 + 1 + 8  # index, loss, record read and written, class, two results

Steps = Sequence[tuple[Tensor, Tensor]]


class ObserveData:
    """Stores of N scores in epoch 1, and batches of `batch` losses to put into them."""

    def __init__(self, num_samples: int, batch: int) -> None:
        """Observes every sample once and plans epoch 1, on both sides."""
        self.batch = self.items = batch
        self.num_samples = num_samples
        self.scores = torch.from_numpy(synthetic_scores(num_samples))
        self.engine = observed_engine(self.scores)
        self.state = PruneState(self.scores)
        self.weight_class = self.state.plan(epoch=1)[0]
        self.epoch = torch.tensor([1])  # A tensor, as an engine keeps it: no conversion per step.
        self.published = published.Published(
            self.scores.clone(), PRUNE_RATIO, np.random.RandomState(0)
        )
        self.published.weights[self.weight_class == 2] = 2.0
        self.array = self.scores.numpy()

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"batch": self.batch, "steps_per_call": STEPS}


def _steps(data: ObserveData, number: int, grad: bool) -> Steps:
    """STEPS fresh (losses, indices); each round's losses are larger, so every record is written."""
    rng = torch.Generator().manual_seed(number)
    steps = []
    for _ in range(STEPS):
        indices = torch.randint(data.num_samples, (data.batch,), generator=rng)
        losses = torch.rand(data.batch, generator=rng) + float(number)
        # Times one: the losses of a model are not leaves, and the published update needs that.
        steps.append((losses.requires_grad_() * 1.0 if grad else losses, indices))
    return steps


def _arrays(data: ObserveData, number: int) -> list[tuple[Any, Any]]:
    return [(losses.numpy(), i.numpy()) for losses, i in _steps(data, number, grad=False)]


def _engine(data: ObserveData, steps: Steps) -> None:
    for losses, indices in steps:
        data.engine.observe(losses, indices)


def _ops(data: ObserveData, steps: Steps) -> None:
    for losses, indices in steps:
        data.state.observe(losses, indices, data.weight_class, epoch=data.epoch)


def _published(data: ObserveData, steps: Steps) -> None:
    for losses, indices in steps:
        data.published.update(losses, indices)


def _plain_mean(_data: ObserveData, steps: Steps) -> None:
    for losses, _ in steps:
        losses.mean()


def _torch_scatter(data: ObserveData, steps: Steps) -> None:
    for losses, indices in steps:
        data.scores[indices] = losses


def _np_scatter(data: ObserveData, steps: Sequence[tuple[Any, Any]]) -> None:
    for losses, indices in steps:
        data.array[indices] = losses


def _bytes(data: ObserveData) -> int:
    return BYTES_PER_SAMPLE * data.batch


_graph = partial(Alternative, prepare=partial(_steps, grad=True), inner=STEPS)
_detached = partial(Alternative, prepare=partial(_steps, grad=False), inner=STEPS)

ALTERNATIVES = (
    _graph("engine.observe(losses, indices)", _engine, bytes_moved=_bytes),
    _detached("pe.ops.observe", _ops, bytes_moved=_bytes),
    _graph(VERSUS, _published),
    _graph("losses.mean() (no pruning)", _plain_mean),
    _detached("torch scatter", _torch_scatter, bytes_moved=lambda d: 16 * d.batch),
    Alternative(RELATIVE_TO, _np_scatter, _arrays, inner=STEPS,
                bytes_moved=lambda d: 16 * d.batch),
)  # fmt: skip


@pytest.fixture(scope="module", params=BATCHES, ids=lambda b: f"B{b}")
def data(num_samples: int, request: pytest.FixtureRequest) -> ObserveData:
    """The data, made once for all rows of a batch size."""
    return ObserveData(num_samples, request.param)


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_observe(benchmark: Any, data: ObserveData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)
