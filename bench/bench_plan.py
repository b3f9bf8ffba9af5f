# SPDX-License-Identifier: Apache-2.0
"""Planning an epoch: who is kept, with which weight, in which order.

Rows that only sort, select or average do less than a plan (no draw, no order); they stand here
because the ICLR 2024 paper's Table 11 measures the cost of a selection rule by them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import harness
import numpy as np
import published
import pytest
import torch
import torch_planner
from data import PRUNE_RATIO, PruneState, synthetic_scores
from harness import Alternative

import prune_engine as pe
from prune_engine.epoch.plan import make_plan
from prune_engine.epoch.policy import Policy, Progress
from prune_engine.policies import OrderDP, Proportional

TABLE = "plan"
VERSUS = "published planner"
RELATIVE_TO = "np.mean"
UNIT = "ms"
# What an engine does at an epoch's end once the scores are merged and audited.
WHOLE = "{}: rule() and plan"
KEEP = 0.3  # of OrderDP
POLICIES: tuple[Policy, ...] = (pe.InfoBatch(PRUNE_RATIO), Proportional(0.35), OrderDP(KEEP))
SLOW = 2  # Rows of 0.1 to 10 s take part in every second round.


class PlanData:
    """The same N scores as each alternative keeps them between epochs."""

    def __init__(self, num_samples: int) -> None:
        """Makes the scores and observes them once, in epoch 0."""
        self.items = num_samples
        self.array = synthetic_scores(num_samples)
        self.scores = torch.from_numpy(self.array)
        self.state = PruneState(self.scores)
        self.middle = num_samples // 2
        self.published = published.Published(self.scores, PRUNE_RATIO, np.random.RandomState(0))
        self.num_kept = int(self.state.plan(epoch=1)[1].shape[0])
        self.buffer = pe.epoch.ScoreBuffer(num_samples, device="cpu")
        self.buffer.records.copy_(self.state.records)
        self.buffer.refresh_sum()

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"num_kept": self.num_kept}


def _plan_kept(fixed: bool, data: PlanData, epoch: int) -> object:
    return data.state.plan(epoch=epoch, fixed=fixed)


def _plan_order(fixed: bool, data: PlanData, epoch: int) -> object:
    weight_class, kept = data.state.plan(epoch=epoch, fixed=fixed)
    order = pe.ops.order(kept, range(kept.shape[0]), seed=0, epoch=epoch)
    return weight_class, kept, order


def _plan_whole(policy: Policy, data: PlanData, epoch: int) -> object:
    rule = policy.rule(data.buffer, Progress(epoch, epoch, None, 0))
    return make_plan(data.buffer, rule, seed=0, epoch=epoch)


def _plan_levels(data: PlanData, epoch: int) -> object:
    return data.state.plan_levels(epoch=epoch, target=data.num_kept, least=22938)


def _plan_top(data: PlanData, epoch: int) -> object:
    return data.state.plan_top(epoch=epoch, k=int(KEEP * data.items), cut=32768)


def _cells(data: PlanData, _: int) -> object:
    return pe.ops.cells(data.state.records)


def _torch_plan(data: PlanData, generator: torch.Generator) -> object:
    return torch_planner.plan(data.scores, PRUNE_RATIO, generator)


def _epoch(_data: PlanData, number: int) -> int:
    return number


def _generator(_data: PlanData, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def _plan_bytes(data: PlanData) -> int:
    return 9 * data.items + 4 * data.num_kept


def _order_bytes(data: PlanData) -> int:
    return 9 * data.items + 12 * data.num_kept


def _top_bytes(data: PlanData) -> int:
    return 9 * data.items + 4 * int(KEEP * data.items)


def _level_bytes(data: PlanData) -> int:
    return _plan_bytes(data) + _cell_bytes(data)


def _cell_bytes(data: PlanData) -> int:
    return 8 * data.items


def _read_bytes(data: PlanData) -> int:
    return 4 * data.items


def _whole(threads: int) -> list[Alternative]:
    """A row of each policy; bytes as of its operators."""
    moved = (_plan_bytes, _level_bytes, _top_bytes)
    return [
        Alternative(
            WHOLE.format(type(policy).__name__),
            partial(_plan_whole, policy),
            prepare=_epoch,
            threads=threads,
            bytes_moved=each,
        )
        for policy, each in zip(POLICIES, moved, strict=True)
    ]


def _ours() -> list[Alternative]:
    rows = []
    for threads in (1, 2):
        row = partial(Alternative, prepare=_epoch, threads=threads)
        rows += [
            row("pe plan", partial(_plan_kept, False), bytes_moved=_plan_bytes),
            row("pe plan by levels", _plan_levels, bytes_moved=_level_bytes),
            row("pe plan of OrderDP", _plan_top, bytes_moved=_top_bytes),
            row("pe cells", _cells, bytes_moved=_cell_bytes),
            row("pe plan, whole order", partial(_plan_order, False), bytes_moved=_order_bytes),
            *_whole(threads),
        ]
    rows.append(
        row("pe plan (fixed counts), whole order", partial(_plan_order, True),
            bytes_moved=_order_bytes)
    )  # fmt: skip
    return rows


ALTERNATIVES = (
    *_ours(),
    Alternative(VERSUS, lambda d, _: d.published.plan(), every=SLOW),
    Alternative("vectorised torch planner", _torch_plan, _generator, 2, SLOW),
    Alternative("np.argsort", lambda d, _: np.argsort(d.array), every=SLOW),
    Alternative("torch.sort", lambda d, _: torch.sort(d.scores), threads=2, every=SLOW),
    Alternative("np.sort", lambda d, _: np.sort(d.array)),
    Alternative("torch.kthvalue", lambda d, _: torch.kthvalue(d.scores, d.middle), threads=2),
    Alternative("np.percentile", lambda d, _: np.percentile(d.array, 50)),
    Alternative("np.partition", lambda d, _: np.partition(d.array, d.middle)),
    Alternative(RELATIVE_TO, lambda d, _: d.array.mean(), bytes_moved=_read_bytes),
    Alternative("torch.mean", lambda d, _: d.scores.mean(), bytes_moved=_read_bytes),
    Alternative("torch.mean", lambda d, _: d.scores.mean(), threads=2, bytes_moved=_read_bytes),
)


@pytest.fixture(scope="module")
def data(num_samples: int) -> PlanData:
    """The data, made once for all rows."""
    return PlanData(num_samples)


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_plan(benchmark: Any, data: PlanData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)
