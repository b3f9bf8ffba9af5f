# SPDX-License-Identifier: Apache-2.0
"""Policies written outside the package, with public names alone, do what the package's do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from _assertions import assert_bitwise
from _conformance import Conformance, engine_of, weight_z
from _ranks import Ranks
from _runs import N, batches, epochs, figures, losses_at, observe, plain, serve, through_disk
from torch import Tensor

import prune_engine as pe

HALVES = (0.0, 1.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.0)


def generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


# --- a policy over fixed batches ----------------------------------------------------------------


class Order:
    """The living blocks of neighbours, each epoch in another order (``pe.policies.Selection``)."""

    def __init__(self, alive: list[int], size: int, seed: int) -> None:
        self.alive, self.size, self.seed = alive, size, seed

    def samples(self) -> Tensor:
        blocks = torch.tensor(self.alive, dtype=torch.int32)[:, None] * self.size
        return (blocks + torch.arange(self.size, dtype=torch.int32)).flatten()

    def order(self, kept: Tensor, positions: Tensor | range, epoch: int) -> Tensor:
        turns = torch.randperm(len(self.alive), generator=generator(self.seed, epoch))
        return kept.view(-1, self.size)[turns].flatten()[torch.as_tensor(positions)]


class Blocks(pe.policies.PolicyMemory):
    """Which blocks are alive: from the second epoch's end on, the best learned one leaves."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.alive = list(range(count))

    def end_epoch(self, buffer: pe.epoch.ScoreBuffer, epoch: int) -> None:
        if epoch >= 1 and self.alive:
            scores = buffer.scores[: self.count * self.size].view(self.count, self.size)
            self.alive.remove(min(self.alive, key=scores.mean(1).tolist().__getitem__))

    def arrangement(self) -> Order:
        return Order(list(self.alive), self.size, self.seed)

    def nominal(self) -> int:
        return self.count * self.size

    @property
    def exhausted(self) -> bool:
        return not self.alive

    def state_dict(self) -> dict[str, Any]:
        return {"alive": list(self.alive)}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        return [] if isinstance(state.get("alive"), list) else ["alive: expected a list"]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.alive = list(state["alive"])


@dataclass(frozen=True)
class LearnedBlocks(pe.policies.Policy):
    size: int = 10
    rescale: bool = False

    @property
    def fixed_batch(self) -> int:
        return self.size

    def memory(self, buffer: pe.epoch.ScoreBuffer, seed: int) -> Blocks:
        return Blocks(buffer.num_samples // self.size, self.size, seed)

    def rule(self, buffer, progress, memory=None) -> pe.policies.Selection:
        assert isinstance(memory, Blocks)
        order = memory.arrangement()
        classes = torch.zeros(buffer.num_samples, dtype=torch.uint8)
        classes[order.samples().long()] = 1
        return pe.policies.Selection(classes, HALVES, arrangement=order)


# --- a policy that looks at the batch -----------------------------------------------------------


class Marks(pe.policies.PolicyMemory):
    """Whose loss was below its batch's mean when last seen: 2 * (epoch + 1), plus 1 if it was."""

    def __init__(self, n: int) -> None:
        self.marks = torch.zeros(n, dtype=torch.int64)
        self.epoch = 0
        self.group: Any = None

    def begin_run(self, run: Any) -> None:
        self.group = run.process_group

    def after_record(self, indices: Tensor, losses: Tensor, score: Tensor, extras: Any) -> None:
        self.marks[indices] = 2 * (self.epoch + 1) + (losses < losses.mean()).long()

    def end_epoch(self, buffer: pe.epoch.ScoreBuffer, epoch: int) -> None:
        self.marks = self.merged()
        self.epoch = epoch + 1

    def merged(self) -> Tensor:
        """Return what the rank that saw a sample last knows of it."""
        marks = self.marks.clone()
        if dist.is_initialized():
            dist.all_reduce(marks, op=dist.ReduceOp.MAX, group=self.group)
        return marks

    def state_dict(self) -> dict[str, Any]:
        return {"marks": self.merged(), "epoch": self.epoch}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        came = state.get("marks")
        fits = isinstance(came, Tensor) and came.shape == self.marks.shape
        return [] if fits else ["marks: expected one number for each sample"]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.marks, self.epoch = state["marks"].clone(), state["epoch"]


@dataclass(frozen=True)
class BelowTheMean(pe.policies.Policy):
    """Drop half of what was below its batch's mean; the other half counts twice."""

    def memory(self, buffer: pe.epoch.ScoreBuffer, seed: int) -> Marks:
        return Marks(buffer.num_samples)

    def rule(self, buffer, progress, memory=None) -> pe.policies.Selection:
        assert isinstance(memory, Marks)
        low = memory.marks % 2 == 1
        draws = torch.rand(len(low), generator=generator(progress.seed, progress.epoch))
        classes = torch.where(low, torch.where(draws < 0.5, 2, 0), 1)
        return pe.policies.Selection(classes.to(torch.uint8), HALVES)


# --- a class per sample -------------------------------------------------------------------------


@dataclass(frozen=True)
class Terces(pe.policies.Policy):
    """Of the lowest third keep a quarter, of the middle half, with weights 4 and 2."""

    def rule(self, buffer, progress, memory=None) -> pe.policies.Selection:
        rank = buffer.scores.nan_to_num(nan=float("inf")).argsort(stable=True).argsort()
        third = 3 * rank // max(1, buffer.num_samples)
        third[buffer.scores.isnan()] = 2
        share = torch.tensor([0.25, 0.5, 1.0])[third]
        draws = torch.rand(len(third), generator=generator(progress.seed, progress.epoch))
        classes = torch.where(draws < share, torch.tensor([3, 2, 1])[third], 0)
        return pe.policies.Selection(classes.to(torch.uint8), HALVES, torch.tensor([0.25, 0.5]))


OUTSIDE: list[pe.policies.Policy] = [LearnedBlocks(), BelowTheMean(), Terces()]


@pytest.fixture(params=OUTSIDE, ids=str)
def policy(request: pytest.FixtureRequest) -> pe.policies.Policy:
    return request.param


class TestOutside(Conformance):
    POLICIES = OUTSIDE


# --- what each of them decided ------------------------------------------------------------------


def test_fixed_batches_are_served_whole_and_leave_one_by_one():
    engine = pe.PruneEngine(N + 3, LearnedBlocks(), num_epochs=20)
    left = []
    for epoch in engine.epochs():
        stream = list(batches(engine.sampler(), 10))
        assert all(sorted(batch) == list(range(min(batch), min(batch) + 10)) for batch in stream)
        left.append(len(stream))
        serve(engine)
        lowest = min(stream, key=lambda batch: losses_at(batch, epoch).mean().item())
        report = engine.end_epoch()
        assert set(stream[0]) <= set(range(N)), "the incomplete batch is left out"
        if epoch:
            assert not set(lowest) & set(engine.plan.kept.tolist())
    assert left == [10, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert report.ended_early
    assert report.nominal_trained == 11 * N, "not 3 more an epoch"
    assert report.dsi == pytest.approx(1 - 10 * sum(left) / (11 * N))


def test_a_batch_that_the_ranks_cannot_share_is_refused_for_a_strangers_policy_too():
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 ranks, got 10"):
        engine_of(LearnedBlocks()).sampler(shard=(0, 3))
    with pytest.raises(ValueError, match="mode must be 'epoch' for LearnedBlocks, got 'flow'"):
        pe.PruneEngine(N, LearnedBlocks(), mode="flow", num_epochs=9)


def test_what_was_below_its_batchs_mean_is_what_may_go():
    engine = engine_of(BelowTheMean(), seed=1)
    low = torch.zeros(N, dtype=torch.bool)
    overall = torch.zeros(N, dtype=torch.bool)
    for epoch in range(4):
        everything = torch.tensor(list(engine.sampler()))
        for batch in batches(iter(everything.tolist()), 10):
            losses = losses_at(batch, epoch)
            low[batch] = losses < losses.mean()
        losses = losses_at(everything, epoch)
        overall[everything] = losses < losses.mean()
        serve(engine)
        engine.end_epoch()
        weights = engine.plan.weights
        assert bool((weights[~low] == 1).all())
        assert set(weights[low].tolist()) == {0.0, 2.0}
    assert not torch.equal(low, overall), "control: the epoch's mean would decide otherwise"


def test_classes_and_weights_of_every_sample_are_as_selected():
    assert abs(weight_z(Terces())) < 5
    engine = engine_of(Terces())
    epochs(engine, 2)
    assert set(engine.plan.weights.tolist()) == {0.0, 1.0, 2.0, 4.0}
    assert engine.plan.threshold.tolist() == [0.25, 0.5]


@pytest.mark.parametrize("at", [5, 30, 137, 250])
def test_resume_at_any_position_restores_the_memory_bit_for_bit(policy, at):
    def run(engine: pe.PruneEngine, upto: int) -> None:
        while (done := engine.history.samples_trained + engine.cursor) < upto:
            batch = list(engine.sampler())[: min(10 - engine.cursor % 10, upto - done)]
            observe(engine, batch)
            if engine.cursor == engine.plan.num_kept:
                engine.end_epoch()

    stopped, resumed, fresh = (engine_of(policy, seed=9) for _ in range(3))
    run(stopped, at)
    state = through_disk(stopped.state_dict())
    resumed.load_state_dict(state)
    assert list(resumed.sampler()) == list(stopped.sampler())
    run(stopped, 400)
    run(resumed, 400)
    assert plain(resumed.state_dict()) == plain(stopped.state_dict())
    assert figures(resumed) == figures(stopped)
    assert plain(fresh.state_dict()) != plain(stopped.state_dict()), "control"


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "control"])
def test_a_memory_merges_over_the_group_that_the_run_told_it(merge):
    world = Ranks(2)

    def work(rank: int) -> list[list[int]]:
        engine = engine_of(BelowTheMean(), process_group=group)
        plans = []
        for _ in range(3):
            serve(engine)
            engine.end_epoch()
            plans.append(engine.plan.kept.tolist())
        assert engine._run.memory.group is group
        return plans

    group = object()
    alone = mock.patch.object(Marks, "merged", lambda self: self.marks.clone())
    here = mock.patch.object(sys.modules[__name__], "dist", world)
    with here, nullcontext() if merge else alone:
        try:
            first, second = world.run(work)
        except pe.PruneEngineError:
            assert not merge, "ranks that go two ways plan not as many samples, and are told"
            return
    assert (first == second) == merge


# --- the hooks ----------------------------------------------------------------------------------


class Log(pe.policies.PolicyMemory):
    """Everything that it was told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.monitor: Any = None

    def begin_run(self, run: Any) -> None:
        self.told.append(("begin_run", run.total))

    def attach(self, monitor: Any) -> bool:
        self.monitor = monitor
        return True

    def before_record(self, indices: Tensor) -> None:
        if self.monitor is not None and self.monitor.take() is None:
            raise RuntimeError("nothing was seen")
        self.told.append(("before_record", indices.tolist()))

    def after_record(self, indices: Tensor, losses: Tensor, score: Tensor, extras: Any) -> None:
        assert not losses.requires_grad
        assert not score.requires_grad
        self.told.append(("after_record", indices.tolist(), losses, score, extras))

    def end_epoch(self, buffer: pe.epoch.ScoreBuffer, epoch: int) -> None:
        self.told.append(("end_epoch", epoch))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        return []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Listening(pe.policies.Policy):
    def memory(self, buffer: pe.epoch.ScoreBuffer, seed: int) -> Log:
        return Log()

    def rule(self, buffer, progress, memory=None) -> pe.policies.Rule:
        assert isinstance(memory, Log)
        memory.told.append(("rule", progress.epoch))
        return pe.policies.Rule.keep_all(buffer.device)


def listening(n: int = 4, **options: Any) -> tuple[pe.PruneEngine, Log]:
    engine = engine_of(Listening(), n, **options)
    return engine, engine._run.memory


def test_the_hooks_are_called_in_this_order():
    engine, log = listening()
    engine.observe(losses_at(range(4)), torch.arange(4))
    engine.end_epoch()
    assert [told[:2] for told in log.told] == [
        ("begin_run", 10),
        ("rule", 0),
        ("before_record", [0, 1, 2, 3]),
        ("after_record", [0, 1, 2, 3]),
        ("end_epoch", 0),
        ("rule", 1),
    ]


def test_after_record_sees_the_losses_and_the_score():
    engine, log = listening()
    losses = losses_at(range(4)).requires_grad_()
    score = losses_at(range(4), 1)
    engine.observe(losses, torch.arange(4), score=score)
    engine.observe(losses, torch.arange(4))
    (_, _, first, seen, extras), (_, _, _, itself, _) = log.told[3::2]
    assert_bitwise(first, losses.detach(), "losses")
    assert_bitwise(seen, score, "score")
    assert_bitwise(itself, losses.detach(), "score")
    assert extras.logits is extras.targets is None


def test_after_record_sees_one_loss_per_sample_of_a_reducer():
    engine, log = listening()
    tokens = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    engine.observe(
        tokens, torch.arange(4), reducer=pe.losses.Tokens(torch.ones(4, 5, dtype=torch.bool))
    )
    assert log.told[-1][2].shape == log.told[-1][3].shape == (4,)


def test_after_record_sees_logits_and_targets_where_the_engine_does():
    engine, log = listening()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([0, 2, 1, 0])
    engine.cross_entropy_observe(
        logits, targets, torch.arange(4), label_smoothing=0.2, score="el2n"
    ).backward()
    _, _, losses, score, extras = log.told[-1]
    plainly = torch.nn.functional.cross_entropy(
        logits.detach(), targets, label_smoothing=0.2, reduction="none"
    )
    torch.testing.assert_close(losses, plainly, rtol=1e-6, atol=1e-6)
    assert_bitwise(score, engine.scores(), "score")
    assert_bitwise(extras.logits, logits.detach(), "logits")
    assert_bitwise(extras.targets, targets, "targets")
    assert not extras.logits.requires_grad


def test_the_losses_of_weighed_samples_are_not_weighed():
    engine = engine_of(Terces(), 300)
    epochs(engine, 1)
    chosen = torch.nonzero(engine.plan.weights > 1)[:, 0]

    class Heavy(Log):
        pass

    log = Heavy()
    engine._run.memory = engine._run.watcher = log
    logits = torch.randn(len(chosen), 3, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(len(chosen), dtype=torch.int64)
    weighed = engine.cross_entropy_observe(logits, targets, chosen, reduction="none")
    losses = log.told[-1][2]
    torch.testing.assert_close(
        losses,
        torch.nn.functional.cross_entropy(logits, targets, reduction="none"),
        rtol=1e-6,
        atol=1e-6,
    )
    assert bool((weighed > 1.9 * losses).all()), "control"


def test_before_record_stops_a_batch_before_anything_is_recorded():
    class Blind:
        def take(self) -> None:
            return None

    engine, log = listening()
    engine.attach(Blind())
    with pytest.raises(RuntimeError, match="nothing was seen"):
        engine.observe(losses_at(range(4)), torch.arange(4))
    logits, targets = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="nothing was seen"):
        engine.cross_entropy_observe(logits, targets, torch.arange(4))
    assert not engine.buffer.records.any()
    assert engine.cursor == 0
    assert [told[0] for told in log.told] == ["begin_run", "rule"]


def test_a_batch_that_was_refused_is_not_told():
    engine, log = listening()
    with pytest.raises(IndexError):
        engine.observe(losses_at(range(2)), torch.tensor([0, 9]))
    assert [told[0] for told in log.told] == ["begin_run", "rule", "before_record"]


@pytest.mark.parametrize("calls", [False, True], ids=["left out", "control"])
def test_a_hook_that_was_left_out_is_not_called(calls):
    class Loud(Blocks):
        def after_record(self, *arguments: Any) -> None:
            super().after_record(*arguments)

    kind = Loud if calls else Blocks
    refuse = mock.patch.object(pe.policies.PolicyMemory, "after_record", side_effect=AssertionError)
    with refuse, mock.patch.object(LearnedBlocks, "memory", lambda *_: kind(10, 10, 0)):
        engine = engine_of(LearnedBlocks())
        if not calls:
            serve(engine)
            return
        with pytest.raises(AssertionError):
            serve(engine)


# --- what is refused ----------------------------------------------------------------------------


def test_a_memory_that_could_not_be_saved_cannot_be_made():
    class Forgetful(pe.policies.PolicyMemory):
        def end_epoch(self, buffer: pe.epoch.ScoreBuffer, epoch: int) -> None: ...

    with pytest.raises(TypeError, match="state_dict"):
        Forgetful()  # type: ignore[abstract]


def test_what_is_no_memory_is_refused_when_the_engine_is_made():
    with (
        mock.patch.object(LearnedBlocks, "memory", lambda *_: {"alive": []}),
        pytest.raises(TypeError, match=r"memory\(\) of LearnedBlocks must return a PolicyMemory"),
    ):
        engine_of(LearnedBlocks())


@dataclass(frozen=True)
class Unbacked(LearnedBlocks):
    """Arranges its samples, and does not say so where a restored run asks."""

    def rule(self, buffer, progress, memory=None) -> pe.policies.Selection:
        return super().rule(buffer, progress, Blocks(10, 10, 0))


@pytest.mark.parametrize("memory", [None, Log()], ids=["none", "silent"])
def test_an_arrangement_that_a_state_could_not_bring_back_is_refused(memory):
    with (
        mock.patch.object(Unbacked, "memory", lambda *_: memory),
        pytest.raises(ValueError, match=r"Unbacked must return from arrangement\(\)"),
    ):
        engine_of(Unbacked())


def test_a_monitor_is_refused_by_a_memory_that_does_not_look():
    class Sees:
        def take(self) -> Tensor:
            return torch.zeros(1, 3, dtype=torch.float64)

    with pytest.raises(TypeError, match="looks at activations"):
        engine_of(BelowTheMean()).attach(Sees())


def test_a_state_whose_arrangement_has_other_samples_is_refused():
    engine = engine_of(LearnedBlocks())
    epochs(engine, 3)
    state = engine.state_dict()
    state["memory"]["alive"].pop()
    fresh = engine_of(LearnedBlocks())
    before = fresh.state_dict()
    with pytest.raises(pe.StateMismatchError, match="keeps 80 samples, and memory arranges 70"):
        fresh.load_state_dict(state)
    assert str(fresh.state_dict()) == str(before)


# --- what is checked, and when ------------------------------------------------------------------


class Undecorated(pe.policies.Policy):
    def rule(self, buffer, progress, memory=None) -> pe.policies.Rule:
        return pe.policies.Rule.keep_all(buffer.device)


@dataclass
class Melting(Undecorated):
    keep: float = 0.5


@dataclass(frozen=True)
class Holds(Undecorated):
    value: Any = None


@dataclass(frozen=True)
class Told(Undecorated):
    def describe(self) -> Any:
        return ["no", "dict"]


class OfAFrozenOne(pe.InfoBatch):
    """Inherits a dataclass, whose fields its own would not be told of."""


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (Undecorated(), "policy must be a frozen dataclass or have a describe"),
        (Melting(), "policy must be a frozen dataclass"),
        (OfAFrozenOne(), "policy must be a frozen dataclass"),
        (Holds(torch.ones(2)), "value of Holds must be .* got Tensor: wrap it in PerSample"),
        (Holds((1, object())), "value of Holds must be a number"),
        (Holds([1, 2]), "take tuples for lists in Holds"),
        (Told(), r"describe\(\) of Told must return a dict, got list"),
        (Undecorated, "policy must be a Policy, such as InfoBatch"),
        (None, "policy must be a Policy"),
    ],
    ids=lambda given: given if isinstance(given, str) else "policy",
)
def test_what_cannot_be_told_and_compared_is_refused_when_the_engine_is_made(policy, match):
    with pytest.raises(TypeError, match=match):
        engine_of(policy)


@pytest.mark.parametrize("value", [0.5, (1, "two", None), pe.policies.PerSample([1, 2])], ids=str)
def test_control_plain_parameters_are_taken(value):
    engine = engine_of(Holds(value))
    other = engine_of(Holds(value))
    other.load_state_dict(through_disk(engine.state_dict()))
    with pytest.raises(pe.StateMismatchError, match="policy"):
        engine_of(Holds(0.25)).load_state_dict(engine.state_dict())


@dataclass(frozen=True)
class Breaks(pe.policies.Policy):
    """Is in order until an epoch, in which its rule returns what a test asks for."""

    what: str = "none"
    at: int = 2

    def rule(self, buffer, progress, memory=None) -> Any:
        if progress.epoch != self.at:
            return pe.policies.Rule.keep_all(buffer.device)
        classes = torch.ones(buffer.num_samples, dtype=torch.uint8)
        table = pe.policies.weight_table()
        return {
            "none": lambda: None,
            "tensor": lambda: classes,
            "empty": lambda: pe.policies.Selection(classes * 0, table),
            "class": lambda: pe.policies.Selection(classes * 2, table),
            "length": lambda: pe.policies.Selection(classes[:3], table),
            "nan": lambda: pe.policies.Selection(classes, (0.0, 1.0, float("nan"))),
            "negative": lambda: pe.policies.Selection(classes, (0.0, 1.0, -1.0, 2.0)),
            "zero": lambda: pe.policies.Selection(classes * 2, (0.0, 1.0, 0.0, 2.0)),
            "list": lambda: pe.policies.Selection(classes, [0.0, 1.0]),
        }[self.what]()


FAULTS = {
    "none": r"rule\(\) of Breaks must return a Rule, .* got NoneType for epoch",
    "tensor": "got Tensor for epoch .*: wrap the classes, Selection",
    "empty": "weight_class must keep a sample",
    "class": r"weight_class must be in 0\.\.1",
    "length": "weight_class must be a vector of 100",
    "nan": "weight_table must be positive and finite",
    "negative": "weight_table must be positive and finite",
    "zero": "weight_table must be positive and finite",
    "list": "weight_table must be a tuple, got list",
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_a_rule_is_told_and_costs_nothing(what):
    with pytest.raises((TypeError, ValueError), match=FAULTS[what]):
        engine_of(Breaks(what, at=0))
    engine, control = engine_of(Breaks(what)), engine_of(Breaks(what, at=99))
    for each in (engine, control):
        serve(each)
        each.end_epoch()
        serve(each)
    with pytest.raises((TypeError, ValueError), match=FAULTS[what]):
        engine.end_epoch()
    assert engine.epoch == 1, "the epoch has not ended"
    saved, expected = engine.state_dict(), control.state_dict()
    assert plain(saved["buffer"]) == plain(expected["buffer"])
    resumed = engine_of(Breaks(what))
    resumed.load_state_dict(through_disk(saved))
    assert resumed.plan.kept.tolist() == engine.plan.kept.tolist() == list(range(N))


class Counts(pe.policies.PolicyMemory):
    """Counts the epochs that it was told of."""

    count = 0

    def end_epoch(self, buffer: pe.epoch.ScoreBuffer, epoch: int) -> None:
        self.count = self.count + 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        return []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


@dataclass(frozen=True)
class BreaksOnce(pe.policies.Policy):
    def memory(self, buffer: pe.epoch.ScoreBuffer, seed: int) -> Counts:
        return Counts()

    def rule(self, buffer, progress, memory=None) -> Any:
        return None if progress.epoch == broken[0] else pe.policies.Rule.keep_all(buffer.device)


broken = [-1]


def test_an_epoch_that_could_not_end_is_not_counted_twice_by_the_memory():
    engine = engine_of(BreaksOnce())
    serve(engine)
    broken[0] = 1
    with pytest.raises(TypeError, match="got NoneType for epoch 1"):
        engine.end_epoch()
    broken[0] = -1
    engine.end_epoch()
    assert engine.state_dict()["memory"] == {"count": 1}
    assert engine.epoch == 1


def test_a_strangers_class_with_a_name_of_ours_does_not_take_its_state():
    theirs = dataclass(frozen=True)(type("InfoBatch", (Undecorated,), {"__module__": "theirs"}))()
    assert theirs.describe()["policy"] == "theirs:InfoBatch"
    ours = engine_of(pe.InfoBatch())
    with pytest.raises(pe.StateMismatchError, match="policy"):
        engine_of(theirs).load_state_dict(ours.state_dict())
    engine_of(theirs).load_state_dict(engine_of(theirs).state_dict())
