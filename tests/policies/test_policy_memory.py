# SPDX-License-Identifier: Apache-2.0
"""The two seams of policies that rank: explicit decisions, and memory that the run owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, batches, epochs, figures, losses_at, observe, serve, through_disk
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.bands import weight_table
from prune_engine.epoch.plan import make_plan

TABLE = weight_table(2.5, *(k / 8 for k in range(1, 254)))


class Totals(pe.policies.PolicyMemory):
    """The sum of every sample's scores over the epochs, and how many epochs there were."""

    def __init__(self, n: int) -> None:
        self.total = torch.zeros(n, dtype=torch.float64)
        self.ended: list[int] = []

    def end_epoch(self, buffer: pe.epoch.ScoreBuffer, epoch: int) -> None:
        assert int(buffer.epoch) == epoch, "the classes are still of the epoch that ended"
        self.total += buffer.scores.nan_to_num()
        self.ended.append(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total.clone(), "ended": list(self.ended)}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        came = state.get("total")
        if not isinstance(came, torch.Tensor) or came.shape != self.total.shape:
            return [f"total: expected {self.total.shape[0]} numbers"]
        return []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total.copy_(state["total"])
        self.ended = list(state["ended"])


@dataclass(frozen=True)
class Hardest(pe.policies.Policy):
    """Keep the half with the largest totals, the first of them with a weight of its own."""

    def memory(self, buffer: pe.epoch.ScoreBuffer, seed: int) -> Totals:
        return Totals(buffer.num_samples)

    def rule(self, buffer, progress, memory=None) -> pe.policies.Selection:
        assert isinstance(memory, Totals)
        classes = torch.ones(buffer.num_samples, dtype=torch.uint8)
        if memory.ended:
            order = memory.total.argsort(stable=True)
            classes[order[: buffer.num_samples // 2]] = 0
            classes[order[-1]] = 2
        return pe.policies.Selection(classes, TABLE, torch.tensor([float(len(memory.ended))]))


def hardest(n: int = N, **options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(n, Hardest(), num_epochs=8, **options)


# --- decisions made already ---------------------------------------------------------------------


@given(
    n=st.integers(0, 9000),
    dropped=st.floats(0, 1),
    backend=st.sampled_from(["cpu", "reference"]),
    ahead=st.booleans(),
)
def test_a_selection_is_the_plan(n, dropped, backend, ahead):
    generator = torch.Generator().manual_seed(n)
    classes = torch.randint(1, 256, (n,), generator=generator, dtype=torch.uint8)
    classes[torch.rand(n, generator=generator) < dropped] = 0
    buffer = pe.epoch.ScoreBuffer(n, backend=backend)
    chosen = pe.policies.Selection(classes, TABLE)
    if n and not classes.any():  # no policy means an epoch without any sample
        with pytest.raises(ValueError, match="weight_class must keep a sample"):
            make_plan(buffer, chosen, seed=1, epoch=4, ahead=ahead)
        return
    plan = make_plan(buffer, chosen, seed=1, epoch=4, ahead=ahead)
    assert_bitwise(plan.kept, classes.nonzero()[:, 0].to(torch.int32), "kept")
    assert_bitwise(plan.weight_class, classes, "classes")
    assert_bitwise(plan.weights, torch.tensor(TABLE)[classes.long()], "weights")
    assert sorted(plan.indices.tolist()) == plan.kept.tolist()
    assert (plan.weight_class is buffer.weight_class) == (not ahead)
    assert int(buffer.epoch) == (0 if ahead else 4)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_plan_copies_the_selection(ahead):
    classes, buffer = torch.ones(5, dtype=torch.uint8), pe.epoch.ScoreBuffer(5)
    plan = make_plan(buffer, pe.policies.Selection(classes, TABLE), seed=0, epoch=0, ahead=ahead)
    classes.zero_()
    assert plan.weights.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.ones(3, dtype=torch.uint8), "weight_class must be a vector of 4 elements"),
        (
            torch.tensor([1, 3, 1, 1], dtype=torch.uint8),
            r"weight_class must be in 0\.\.2, the classes with a weight, got 3",
        ),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_and_nothing_changes(classes, message):
    buffer = pe.epoch.ScoreBuffer(4)
    with pytest.raises(ValueError, match=message):
        make_plan(buffer, pe.policies.Selection(classes, weight_table(2.5)), seed=0, epoch=3)
    assert_bitwise(buffer.weight_class, [1] * 4, "classes")
    assert int(buffer.epoch) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3), TABLE), TypeError, "weight_class must be torch.uint8, got torch.float32"),
        ((torch.ones(1, 1, dtype=torch.uint8), TABLE), ValueError, "weight_class must be a vector"),
        (
            (torch.ones(1, dtype=torch.uint8), (0.0, 2.0)),
            ValueError,
            "weight_table must have 2 to 256",
        ),
        (
            (torch.ones(1, dtype=torch.uint8), TABLE, torch.ones(1, dtype=torch.float64)),
            TypeError,
            "thresholds must be torch.float32",
        ),
    ],
)
def test_a_selection_checks_itself(arguments, error, message):
    with pytest.raises(error, match=message):
        pe.policies.Selection(*arguments)


# --- memory -------------------------------------------------------------------------------------


def test_memory_is_told_of_every_epoch_before_the_next_rule():
    engine, want = hardest(), torch.zeros(N, dtype=torch.float64)
    scores = torch.full((N,), torch.nan)
    for epoch in range(4):
        served = serve(engine)
        scores[served] = losses_at(served, epoch)
        want += scores.nan_to_num()
        report = engine.end_epoch()
        assert report.next_threshold == epoch + 1, "the selection's thresholds are reported"
        order = want.argsort(stable=True)
        assert_bitwise(engine.plan.kept.long(), order[N // 2 :].sort().values, "kept")
        assert engine.plan.weights[order[-1]].item() == 2.5


def test_two_runs_share_no_memory():
    policy = Hardest()
    first, second = (pe.PruneEngine(N, policy, num_epochs=8) for _ in range(2))
    epochs(first, 2)
    serve(second)
    assert second.end_epoch().next_threshold == 1.0


def test_an_epoch_that_failed_its_audit_is_not_remembered():
    engine = hardest()
    with pytest.raises(pe.CoverageError):
        engine.end_epoch()
    serve(engine)
    assert engine.end_epoch().next_threshold == 1.0


@pytest.mark.parametrize("at", [0, 1, 7, 10, 12, 20, 31])
def test_a_restored_run_remembers(at):
    whole, stopped, resumed = hardest(seed=3), hardest(seed=3), hardest(seed=3)
    want = train(whole, 40)
    got = train(stopped, at)
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    got += train(resumed, 40 - at)
    assert got == want
    assert figures(resumed) == figures(whole)


def train(engine: pe.PruneEngine, count: int) -> list[list[int]]:
    """Train some batches across epochs; return them."""
    done: list[list[int]] = []
    while len(done) < count:
        for batch in batches(engine.sampler(), 10):
            observe(engine, batch)
            done.append(batch)
            if len(done) == count:
                break
        if engine.cursor == engine.served:
            engine.end_epoch()
    return done


def test_control_a_run_that_forgets_goes_another_way():
    whole, stopped, resumed = hardest(), hardest(), hardest()
    want = train(whole, 40)
    got = train(stopped, 22)
    state = stopped.state_dict()
    state["memory"]["total"] = state["memory"]["total"].flip(0)
    resumed.load_state_dict(state)
    assert got + train(resumed, 18) != want


@pytest.mark.parametrize("ahead", [0, 2])
def test_flow_remembers_and_resumes(ahead):
    def flowing() -> pe.PruneEngine:
        return pe.PruneEngine(N, Hardest(), mode="flow", num_epochs=12)

    def framework_epoch(engine: pe.PruneEngine) -> list[list[int]]:
        """Train a constant number of batches, each some batches later than it was drawn."""
        waiting: list[list[int]] = []
        done: list[list[int]] = []
        for batch in batches(engine.sampler(align=10), 10):
            waiting.append(batch)
            if len(waiting) > ahead:
                done.append(waiting.pop(0))
                observe(engine, done[-1])
        for batch in waiting:
            observe(engine, batch)
        return done + waiting

    stopped, resumed = flowing(), flowing()
    for _ in range(3):
        framework_epoch(stopped)
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    for _ in range(3):
        assert framework_epoch(resumed) == framework_epoch(stopped)
    ended = [report.epoch for report in resumed.history]
    assert resumed.state_dict()["memory"]["ended"] == ended == list(range(len(ended)))
    assert len(ended) > 8
    assert {report.planned for report in resumed.history} == {N, N // 2}


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (None, "memory: expected dict, got NoneType"),
        ([1], "memory: expected dict, got list"),
        ({}, "memory.total: expected 100 numbers"),
        ({"total": torch.zeros(3)}, "memory.total: expected 100 numbers"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused_whole(memory, message):
    engine, twin = hardest(), hardest()
    state = {**hardest().state_dict(), "memory": memory}
    train(engine, 17)
    train(twin, 17)
    with pytest.raises(pe.StateMismatchError, match=message):
        engine.load_state_dict(state)
    assert train(engine, 9) == train(twin, 9)


def test_a_memory_where_none_is_kept_is_refused():
    engine = pe.PruneEngine(N, pe.InfoBatch(), num_epochs=8)
    state = {**engine.state_dict(), "memory": {"total": torch.zeros(N)}}
    with pytest.raises(pe.StateMismatchError, match="memory: expected None, got dict"):
        engine.load_state_dict(state)


def test_a_state_of_before_there_was_memory_is_refused():
    engine = hardest()
    state = {**engine.state_dict(), "version": 1}
    with pytest.raises(pe.StateMismatchError, match="version: expected 3, got 1"):
        engine.load_state_dict(state)
