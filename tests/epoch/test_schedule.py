# SPDX-License-Identifier: Apache-2.0
"""Virtual stepping: a pruned run follows the nominal learning-rate curve to its end."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _runs import N, batches, losses_at, observe, through_disk
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import prune_engine as pe
from prune_engine.epoch.plan import make_plan
from prune_engine.errors import LargeWeightWarning
from prune_engine.schedule import VirtualScheduler

SIZE, SAMPLES, EPOCHS = 10, 200, 5
STEPS = EPOCHS * SAMPLES // SIZE


def warm_cosine(optimizer: SGD) -> LRScheduler:
    """Warm up for ten steps, then a cosine."""
    warm = LinearLR(optimizer, 0.1, total_iters=10)
    return SequentialLR(optimizer, [warm, CosineAnnealingLR(optimizer, STEPS - 10)], [10])


def fading(step: int) -> float:  # by name, so that it can be pickled
    return 1 / (1 + step)


SCHEDULES: dict[str, Callable[[SGD], LRScheduler]] = {
    "one_cycle": lambda o: OneCycleLR(o, max_lr=1.0, total_steps=STEPS),
    "cosine": lambda o: CosineAnnealingLR(o, STEPS),
    "sequential": warm_cosine,
    "exponential": lambda o: ExponentialLR(o, 0.97),
    "lambda": lambda o: LambdaLR(o, fading),
}
schedules = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def optimizer_of(rate: float = 0.5) -> SGD:
    """Return an optimizer whose only parameter has no gradient: its steps do nothing."""
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)


def pruned(samples: int = SAMPLES, num_epochs: int = EPOCHS) -> pe.PruneEngine:
    """Return an engine that prunes and weighs nothing, so that no rate is above a schedule's."""
    policy = pe.InfoBatch(0.5, delta=1.0, rescale=False)
    return pe.PruneEngine(samples, policy, num_epochs=num_epochs)


def rate(optimizer: SGD) -> float:
    return optimizer.param_groups[0]["lr"]


def nominal(make: Callable[[SGD], LRScheduler]) -> list[float]:
    """Return the curve of a run without pruning: entry k is the rate after k steps."""
    optimizer = optimizer_of()
    scheduler = make(optimizer)
    curve = [rate(optimizer)]
    last = STEPS - 1 if isinstance(scheduler, OneCycleLR) else STEPS
    for _ in range(last):
        optimizer.step()
        scheduler.step()
        curve.append(rate(optimizer))
    return curve + curve[-1:] * (STEPS - last)


def train(
    engine: pe.PruneEngine, optimizer: SGD, scheduler: Any, *, stop: int | None = None
) -> list[tuple[float, float]]:
    """Run to the end or to a step; return (progress, rate) after each step."""
    marks: list[tuple[float, float]] = []
    for _ in engine.epochs():
        for batch in batches(engine.sampler(align=SIZE), SIZE):
            observe(engine, batch)
            optimizer.step()
            scheduler.step()
            marks.append((engine.progress, rate(optimizer)))
            if len(marks) == stop:
                return marks
    return marks


@schedules
def test_a_pruned_run_follows_the_nominal_curve_and_ends_with_it(make):
    curve = nominal(make)
    engine, optimizer = pruned(), optimizer_of()
    scheduler = engine.wrap_scheduler(make(optimizer), STEPS)
    marks = train(engine, optimizer, scheduler)
    assert len(marks) < 0.9 * STEPS, "the run is shorter than nominal"
    assert [lr for _, lr in marks] == [curve[round(progress * STEPS)] for progress, _ in marks]
    assert marks[-1] == (1.0, curve[-1]), "it ends exactly at the end"
    assert scheduler.get_last_lr() == [curve[-1]]


@schedules
def test_control_plain_stepping_does_not_reach_the_end(make):
    curve = nominal(make)
    engine, optimizer = pruned(), optimizer_of()
    marks = train(engine, optimizer, make(optimizer))
    assert marks[-1][1] != curve[-1]


@schedules
def test_without_pruning_every_step_is_one_step(make):
    curve = nominal(make)
    optimizer = optimizer_of()
    engine = pe.PruneEngine(SAMPLES, pe.KeepAll(), num_epochs=EPOCHS)
    marks = train(engine, optimizer, engine.wrap_scheduler(make(optimizer), STEPS))
    assert [lr for _, lr in marks] == curve[1:]


@schedules
@pytest.mark.parametrize("at", [1, 27, 60])
def test_resumes_at_any_step(make, at):
    runs = []
    for stop in (None, at):
        engine, optimizer = pruned(), optimizer_of()
        scheduler = engine.wrap_scheduler(make(optimizer), STEPS)
        runs.append(train(engine, optimizer, scheduler, stop=stop))
    state = through_disk([engine.state_dict(), optimizer.state_dict(), scheduler.state_dict()])
    engine, optimizer = pruned(), optimizer_of()
    scheduler = engine.wrap_scheduler(make(optimizer), STEPS)
    for part, saved in zip((engine, optimizer, scheduler), state, strict=True):
        part.load_state_dict(saved)
    assert runs[1] + train(engine, optimizer, scheduler) == runs[0]


def test_one_cycle_is_never_stepped_past_its_end():
    optimizer = optimizer_of()
    wrapped = OneCycleLR(optimizer, max_lr=1.0, total_steps=20)
    scheduler = VirtualScheduler(wrapped, 20, lambda: 1.0)
    optimizer.step()
    for _ in range(50):
        scheduler.step()
    assert scheduler.taken == 19
    with pytest.raises(ValueError, match="Tried to step"):  # control: by hand it would be
        for _ in range(3):
            wrapped.step()


def test_progress_that_goes_back_steps_nothing():
    marks = iter([0.5, 0.2, 0.5, 2.0])
    optimizer = optimizer_of()
    scheduler = VirtualScheduler(ExponentialLR(optimizer, 0.5), 10, lambda: next(marks))
    optimizer.step()
    taken = []
    for _ in range(4):
        scheduler.step()
        taken.append(scheduler.taken)
    assert taken == [5, 5, 5, 10], "a scheduler is never stepped back, nor past its total"


def test_edge_case_10_total_steps_out_of_range():
    engine, optimizer = pruned(N, 8), optimizer_of()
    with pytest.raises(ValueError, match="total_steps"):
        engine.wrap_scheduler(ExponentialLR(optimizer, 0.5), 0)
    endless = pe.PruneEngine(3, pe.KeepAll())
    with pytest.raises(ValueError, match="num_epochs"):
        endless.wrap_scheduler(ExponentialLR(optimizer, 0.5), 10)


# --- an LRScheduler, to a framework --------------------------------------------------------------


def wrapped(make: Callable[[SGD], LRScheduler] = SCHEDULES["cosine"]) -> Any:
    engine, optimizer = pruned(), optimizer_of()
    return engine, optimizer, engine.wrap_scheduler(make(optimizer), STEPS)


class Ranked:
    """Steps once for each of several ranks, and no further than total_steps, as Accelerate does."""

    def __init__(self, scheduler: Any, ranks: int) -> None:
        self.scheduler, self.ranks = scheduler, ranks

    def step(self) -> None:
        self.scheduler._step_count += 3  # micro-batches before this one
        for _ in range(self.ranks):
            if self.scheduler._step_count <= self.scheduler.total_steps:
                self.scheduler.step()


@schedules
def test_one_who_steps_once_for_each_rank_reaches_the_end(make):
    curve = nominal(make)
    engine, optimizer = pruned(), optimizer_of()
    scheduler = engine.wrap_scheduler(make(optimizer), STEPS)
    marks = train(engine, optimizer, Ranked(scheduler, 4))
    assert [lr for _, lr in marks] == [curve[round(progress * STEPS)] for progress, _ in marks]


def test_it_is_the_optimizers_scheduler():
    _, optimizer, scheduler = wrapped()
    assert isinstance(scheduler, LRScheduler)
    assert scheduler.optimizer is optimizer
    assert scheduler.base_lrs == [0.5]
    assert scheduler.last_epoch == 0
    assert scheduler.get_last_lr() == scheduler.get_lr() == [rate(optimizer)]


@schedules
def test_a_copy_goes_on_as_the_original(make):
    engine, optimizer, scheduler = wrapped(make)
    train(engine, optimizer, scheduler, stop=11)
    copied, moved = copy.deepcopy([engine, optimizer, scheduler])[1:]
    assert moved.optimizer is copied
    assert (moved.last_epoch, rate(copied)) == (scheduler.last_epoch, rate(optimizer))
    again, its_optimizer, pickled = pickle.loads(pickle.dumps([engine, optimizer, scheduler]))
    assert train(again, its_optimizer, pickled) == train(engine, optimizer, scheduler)


def test_torchs_own_chain_may_be_wrapped():
    def chain(optimizer: SGD) -> Any:
        warm = LinearLR(optimizer, 0.1, total_iters=10)
        return ChainedScheduler([warm, ExponentialLR(optimizer, 0.99)])

    engine, optimizer, scheduler = wrapped(chain)
    train(engine, optimizer, scheduler)
    assert rate(optimizer) == pytest.approx(0.5 * 0.99**STEPS)


class TimmLike:
    """The form of timm's schedulers: they compute a rate from where they are told to be."""

    def __init__(self, optimizer: SGD, t_in_epochs: bool) -> None:
        self.optimizer, self.t_in_epochs = optimizer, t_in_epochs

    def _set(self, at: int) -> None:
        self.optimizer.param_groups[0]["lr"] = 1.0 - at / STEPS

    def step(self, epoch: int, metric: Any = None) -> None:
        if self.t_in_epochs:
            self._set(epoch)

    def step_update(self, num_updates: int, metric: Any = None) -> None:
        if not self.t_in_epochs:
            self._set(num_updates)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


@pytest.mark.parametrize("t_in_epochs", [False, True])
def test_schedulers_that_are_told_where_they_are(t_in_epochs):
    engine, optimizer, scheduler = wrapped(lambda o: TimmLike(o, t_in_epochs))
    train(engine, optimizer, scheduler, stop=10)
    assert scheduler.get_last_lr() == [pytest.approx(1.0 - scheduler.last_epoch / STEPS)]
    train(engine, optimizer, scheduler)
    assert (rate(optimizer), scheduler.last_epoch) == (0.0, STEPS)


def test_a_scheduler_that_waits_for_a_metric_is_refused_and_stepped_by_hand():
    engine, optimizer = pruned(), optimizer_of()
    plateau = ReduceLROnPlateau(optimizer, patience=0)
    with pytest.raises(TypeError, match=r"must not wait for a metric.*at the end of each epoch"):
        engine.wrap_scheduler(plateau, STEPS)
    inside = TimmLike(optimizer, False)
    inside.lr_scheduler = plateau
    with pytest.raises(TypeError, match="must not wait for a metric"):
        engine.wrap_scheduler(inside, STEPS)
    for _ in engine.epochs():
        for batch in batches(engine.sampler(), SIZE):
            observe(engine, batch)
            optimizer.step()
        plateau.step(1.0)
    assert rate(optimizer) < 0.5


@pytest.mark.parametrize(
    "make",
    [lambda o: CosineAnnealingLR(o, 90), lambda o: OneCycleLR(o, max_lr=1.0, total_steps=90)],
    ids=["cosine", "one_cycle"],
)
def test_a_scheduler_made_for_another_length_is_refused(make):
    engine, optimizer = pruned(), optimizer_of()
    with pytest.raises(ValueError, match=r"made for, got 100 and \w+\(\w+=90\)"):
        engine.wrap_scheduler(make(optimizer), STEPS)
    engine.wrap_scheduler(make(optimizer), 90)


def test_what_is_wrapped_twice_or_is_no_state_is_refused():
    engine, _, scheduler = wrapped()
    with pytest.raises(TypeError, match="wrapped already"):
        engine.wrap_scheduler(scheduler, STEPS)
    with pytest.raises(ValueError, match="state_dict must be that of a wrapped scheduler"):
        scheduler.load_state_dict({"last_epoch": 3})


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_the_rate_follows_what_is_trained_and_not_how_often_it_is_observed(looks):
    def rates(count: int) -> list[float]:
        engine, optimizer, scheduler = wrapped()
        found = []
        for epoch in engine.epochs():
            for batch in batches(engine.sampler(), SIZE):
                indices = torch.tensor(batch)
                for _ in range(count):
                    engine.observe(losses_at(batch, epoch), indices)
                optimizer.step()
                scheduler.step()
                found.append(rate(optimizer))
        return found

    assert rates(looks) == rates(1)


# --- the learning rate of who weighs most -------------------------------------------------------


def heavy(weight_cap: float | None = None) -> pe.PruneEngine:
    """Return an engine whose low samples weigh 4 from the second epoch on."""
    policy = pe.InfoBatch(0.75, delta=1.0, weight_cap=weight_cap)
    return pe.PruneEngine(SAMPLES, policy, num_epochs=EPOCHS)


def train_epochs(engine: pe.PruneEngine, scheduler: LRScheduler, count: int) -> None:
    for _ in range(count):
        for batch in batches(engine.sampler(), SIZE):
            observe(engine, batch)
            scheduler.optimizer.step()
            scheduler.step()
        engine.end_epoch()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "lambda"])
def test_a_weight_that_takes_the_rate_beyond_the_peak_is_warned_of_once(name):
    engine, optimizer = heavy(), optimizer_of()
    scheduler = engine.wrap_scheduler(SCHEDULES[name](optimizer), STEPS)
    train_epochs(engine, scheduler, 1)  # weights of 1: no warning, which would be an error
    with pytest.warns(LargeWeightWarning, match="a sample that weighs 4 at") as told:
        train_epochs(engine, scheduler, EPOCHS - 1)
    assert len(told) == 1


def test_control_no_warning_below_the_peak():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train_below_the_peak()
    assert told == []


def train_below_the_peak():
    engine, optimizer = heavy(weight_cap=1.0), optimizer_of()
    train_epochs(engine, engine.wrap_scheduler(warm_cosine(optimizer), STEPS), EPOCHS)
    slow = pe.PruneEngine(SAMPLES, pe.InfoBatch(0.5, delta=1.0), num_epochs=EPOCHS)
    optimizer = optimizer_of(0.5)
    # A schedule that begins at a tenth of its peak, and ends before half of it.
    inner = LinearLR(optimizer, 0.1, 0.4, total_iters=STEPS)
    train_epochs(slow, slow.wrap_scheduler(inner, STEPS), EPOCHS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("reduction", ["weighted_mean", "mean"])
def test_a_weight_is_not_warned_of_where_each_step_divides_it_out(fused, reduction):
    subset = pe.policies.Subset(range(SAMPLES), [7.0] + [1.0] * (SAMPLES - 1))
    engine, optimizer = pe.PruneEngine(SAMPLES, subset, num_epochs=1), optimizer_of()
    scheduler = engine.wrap_scheduler(ExponentialLR(optimizer, 0.97), STEPS)

    def step():
        indices = torch.arange(SIZE)
        if fused:
            logits, labels = torch.zeros(SIZE, 2), torch.zeros(SIZE, dtype=torch.int64)
            engine.cross_entropy_observe(logits, labels, indices, reduction=reduction)
        else:
            engine.observe(torch.ones(SIZE), indices, reduction=reduction)
        optimizer.step()
        scheduler.step()

    if reduction == "mean":  # control
        with pytest.warns(LargeWeightWarning, match="a sample that weighs 7 at"):
            step()
    else:
        step()


def test_the_effective_rate_is_that_of_the_largest_weight_in_use():
    engine, optimizer = heavy(), optimizer_of(0.5)
    assert engine.effective_lr(optimizer) == 0.5
    with pytest.raises(ValueError, match="optimizer must be given"):
        engine.effective_lr()
    assert "prune/effective_lr" not in engine.metrics()
    scheduler = engine.wrap_scheduler(ExponentialLR(optimizer, 0.97), STEPS)
    train_epochs(engine, scheduler, 1)
    assert engine.plan.weights.max() == 4
    assert engine.effective_lr() == 4 * rate(optimizer)
    assert engine.metrics()["prune/effective_lr"] == engine.effective_lr()
    assert engine.effective_lr(optimizer_of(2.0)) == 8
    again = copy.deepcopy(engine)
    assert again.effective_lr(optimizer) == engine.effective_lr()


def test_a_weight_that_nobody_has_is_not_counted():
    engine = pe.PruneEngine(4, pe.policies.Subset([0, 1], [2.0, 3.0]), num_epochs=1)
    assert engine.plan.largest_weight == 3
    table = pe.policies.weight_table(2.0, 9.0)
    selection = pe.policies.Selection(torch.tensor([2, 1], dtype=torch.uint8), table)
    plan = make_plan(pe.epoch.ScoreBuffer(2), selection, seed=0, epoch=0)
    assert plan.largest_weight == 2


def test_rates_on_a_device_are_not_read_in_a_step():
    """A tensor without numbers stands for one whose numbers the host would wait for."""
    engine = pe.PruneEngine(4, pe.policies.Subset([0, 1], [2.0, 3.0]), num_epochs=1)
    elsewhere = torch.tensor(0.5, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(elsewhere)  # control: reading it shows

    class Rates:
        base_lrs = (0.5,)

        def __init__(self):
            self.rates = [elsewhere]

        def step(self):
            pass

        def get_last_lr(self):
            return self.rates

    inner = Rates()
    scheduler = engine.wrap_scheduler(inner, 4)
    scheduler.step()
    inner.rates.append(torch.tensor(0.5))
    with pytest.warns(LargeWeightWarning, match=r"weighs 3 at the learning rate 0\.5"):
        scheduler.step()
