# SPDX-License-Identifier: Apache-2.0
"""Virtual stepping: a pruned run follows the nominal learning-rate curve to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _runs import batches, infobatch, observe, through_disk
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

import prune_engine as pe
from prune_engine.schedule import VirtualScheduler

SIZE, SAMPLES, EPOCHS = 10, 200, 5
STEPS = EPOCHS * SAMPLES // SIZE


def warm_cosine(optimizer: SGD) -> LRScheduler:
    """Warm up for ten steps, then a cosine."""
    warm = LinearLR(optimizer, 0.1, total_iters=10)
    return SequentialLR(optimizer, [warm, CosineAnnealingLR(optimizer, STEPS - 10)], [10])


SCHEDULES: dict[str, Callable[[SGD], LRScheduler]] = {
    "one_cycle": lambda o: OneCycleLR(o, max_lr=1.0, total_steps=STEPS),
    "cosine": lambda o: CosineAnnealingLR(o, STEPS),
    "sequential": warm_cosine,
    "exponential": lambda o: ExponentialLR(o, 0.97),
    "lambda": lambda o: LambdaLR(o, lambda step: 1 / (1 + step)),
}
schedules = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def optimizer_of(rate: float = 0.5) -> SGD:
    """Return an optimizer whose only parameter has no gradient: its steps do nothing."""
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)


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
    engine, optimizer = infobatch(SAMPLES, EPOCHS), optimizer_of()
    scheduler = engine.wrap_scheduler(make(optimizer), STEPS)
    marks = train(engine, optimizer, scheduler)
    assert len(marks) < 0.9 * STEPS, "the run is shorter than nominal"
    assert [lr for _, lr in marks] == [curve[round(progress * STEPS)] for progress, _ in marks]
    assert marks[-1] == (1.0, curve[-1]), "it ends exactly at the end"
    assert scheduler.get_last_lr() == [curve[-1]]


@schedules
def test_control_plain_stepping_does_not_reach_the_end(make):
    curve = nominal(make)
    engine, optimizer = infobatch(SAMPLES, EPOCHS), optimizer_of()
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
        engine, optimizer = infobatch(SAMPLES, EPOCHS), optimizer_of()
        scheduler = engine.wrap_scheduler(make(optimizer), STEPS)
        runs.append(train(engine, optimizer, scheduler, stop=stop))
    state = through_disk([engine.state_dict(), optimizer.state_dict(), scheduler.state_dict()])
    engine, optimizer = infobatch(SAMPLES, EPOCHS), optimizer_of()
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
    engine, optimizer = infobatch(), optimizer_of()
    with pytest.raises(ValueError, match="total_steps"):
        engine.wrap_scheduler(ExponentialLR(optimizer, 0.5), 0)
    endless = pe.PruneEngine(3, pe.KeepAll())
    with pytest.raises(ValueError, match="num_epochs"):
        endless.wrap_scheduler(ExponentialLR(optimizer, 0.5), 10)
