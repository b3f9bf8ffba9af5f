# SPDX-License-Identifier: Apache-2.0
"""Ignite itself, unmodified: epochs of their own lengths, resume, limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from _ranks_of import on_ranks
from _real import Digits, Net, credited, equals_alone, figures, flat, plain_run, weights
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import CosineAnnealingLR

import prune_engine as pe
from prune_engine.integrations.ignite import attach

N, SIZE, EPOCHS = 203, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)


class Run:
    """A trainer in Ignite's own words, with an evaluation after each epoch and inside."""

    def __init__(
        self,
        policy: Any = INFOBATCH,
        *,
        accumulate: int = 1,
        workers: int = 0,
        size: int = SIZE,
        double: bool = False,
        schedule: bool = False,
    ) -> None:
        self.net, self.dataset = Net(double=double), Digits(N)
        self.model = self.net
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.engine = pe.PruneEngine(self.dataset, policy, num_epochs=EPOCHS)
        self.loader = self.engine.loader(
            self.dataset, size, accumulate=accumulate, num_workers=workers, resume="length"
        )
        self.accumulate = accumulate
        steps = EPOCHS * (N // SIZE // accumulate)
        cosine = CosineAnnealingLR(self.optimizer, steps)
        self.scheduler = self.engine.wrap_scheduler(cosine, steps) if schedule else None
        self.trainer = Engine(self.update)
        attach(self.trainer, self.engine, self.loader)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.evaluate)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=10), self.evaluate)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.note)
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self.begun)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.ended)
        self.states: dict[Any, Any] = {}
        self.lengths: list[Any] = []
        self.ends: list[Any] = []
        self.iterations: list[int] = []

    def update(self, trainer: Any, batch: Any) -> float:
        x, y, indices = batch
        self.net.train()
        losses = F.cross_entropy(self.model(x), y, reduction="none")
        loss = self.engine.observe(losses, indices) / self.accumulate
        loss.backward()
        if (trainer.state.iteration) % self.accumulate == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.scheduler is not None:
                self.scheduler.step()
        return loss.item()

    def evaluate(self) -> None:
        self.net.eval()
        Engine(lambda _, batch: self.net(batch[0])).run([(Digits(40, first=500).x,)])

    def note(self, trainer: Any) -> None:
        self.iterations.append(trainer.state.iteration)
        self.states[trainer.state.iteration] = self.state()

    def state(self) -> dict[str, Any]:
        model = {name: value.clone() for name, value in self.net.state_dict().items()}
        parts = {"model": model, "engine": self.engine.state_dict()}
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler.state_dict()
            parts["optimizer"] = self.optimizer.state_dict()
        return parts

    def begun(self, trainer: Any) -> None:
        self.lengths.append(trainer.state.epoch_length)

    def ended(self, trainer: Any) -> None:
        self.ends.append(self.state())

    def go(self, **options: Any) -> None:
        self.trainer.run(self.loader, **{"max_epochs": EPOCHS, **options})

    def restore(self, state: Any) -> None:
        self.net.load_state_dict(state["model"])
        self.engine.load_state_dict(state["engine"])
        if self.scheduler is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_plain_loop(workers, accumulate):
    run = Run(workers=workers, accumulate=accumulate)
    with credited() as seen:
        run.go()
    want, net = plain_run(Digits(N), INFOBATCH, accumulate=accumulate)
    assert run.net.trained == seen == net.trained
    assert figures(run.engine) == figures(want)
    assert torch.equal(weights(run.net), weights(net))
    assert run.lengths == [report.served // SIZE for report in run.engine.history]
    if not workers:
        assert len(run.dataset.fetched) == len(flat(seen)) < 0.9 * EPOCHS * N


def test_a_run_of_short_epochs_is_not_taken_for_done():
    # Ignite is done, too, when its iterations reach max_epochs times the length of an epoch: with
    # a short last one that is before its end, and it says nothing.
    run = Run(pe.RandomBatches(SIZE, kept=(25, 12, 3)))
    run.go()
    assert run.lengths == [25, 12, 3]
    assert sum(run.lengths[:2]) >= EPOCHS * run.lengths[2], "control: it would be"
    assert len(run.engine.history) == EPOCHS


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_resumed_run_is_the_run_that_was_never_stopped(accumulate):
    run = Run(accumulate=accumulate, schedule=True)
    run.go()
    assert run.scheduler.get_last_lr()[0] < 1e-9
    first = run.engine.history[0].served // SIZE
    for at in (first + 4, 40):  # inside; after an evaluation
        resumed = Run(accumulate=accumulate, schedule=True)
        resumed.restore(run.states[at])
        resumed.go()
        assert resumed.net.trained == run.net.trained[at:], at
        assert resumed.iterations == run.iterations[at:]
        assert figures(resumed.engine) == figures(run.engine)
        assert torch.equal(weights(resumed.net), weights(run.net))
    resumed = Run(accumulate=accumulate, schedule=True)
    resumed.restore(run.ends[0])  # an epoch's end
    resumed.go()
    assert resumed.net.trained == run.net.trained[first:]
    assert torch.equal(weights(resumed.net), weights(run.net))


@pytest.mark.parametrize("stop", ["terminate", "terminate_epoch", "max_iters"])
def test_limits_are_reported_and_no_error(stop):
    run = Run()
    if stop == "max_iters":
        run.go(max_epochs=None, max_iters=30)
    else:
        at = Events.ITERATION_COMPLETED(once=30)
        run.trainer.add_event_handler(at, lambda trainer: getattr(trainer, stop)())
        run.go()
    assert run.engine.history[1].partial
    trained = sum(report.served for report in run.engine.history)
    assert trained == len(flat(run.net.trained)) == run.engine.history.samples_trained
    if stop == "terminate_epoch":
        assert len(run.engine.history) == EPOCHS, "it goes on with the next"
        assert not run.engine.history[2].partial
    else:
        assert trained == 30 * SIZE


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_after_a_terminated_one_is_of_its_own_plan(workers):
    run = Run(workers=workers)
    at = Events.ITERATION_COMPLETED(once=10)
    run.trainer.add_event_handler(at, lambda trainer: trainer.terminate_epoch())
    with credited() as seen:
        run.go()
    assert run.net.trained == seen
    assert [report.extra for report in run.engine.history] == [0] * EPOCHS


@pytest.mark.parametrize(
    ("options", "match"),
    [({"max_epochs": 5}, "num_epochs=3"), ({"epoch_length": 7}, "epoch_length must not be given")],
)
def test_what_cannot_be_served_is_refused_at_the_start(options, match):
    run = Run()
    with pytest.raises(ValueError, match=match):
        run.go(**options)
    assert run.net.trained == []


def test_other_things_are_refused():
    run = Run()
    with pytest.raises(TypeError, match="ignite Engine"):
        attach(run.engine, run.engine, run.loader)
    with pytest.raises(TypeError, match="PruneEngine"):
        attach(run.trainer, run.trainer, run.loader)
    with pytest.raises(ValueError, match="resume='length'"):
        attach(run.trainer, run.engine, run.engine.loader(run.dataset, SIZE))


def test_metrics_reach_what_loggers_read():
    run = Run()
    seen: list[float] = []
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda trainer: seen.append(trainer.state.metrics["prune/epoch"])
    )
    run.go()
    assert seen == [0.0, 1.0, 2.0]


def ranks_work(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo")
    run = Run(accumulate=4, size=4, double=True)
    run.model = torch.nn.parallel.DistributedDataParallel(run.net)
    with credited() as seen:
        run.go()
    assert run.net.trained == seen
    for report in run.engine.history:
        assert (report.observed, report.missing) == (report.served, report.dropped_tail)
        assert (report.extra, report.repeated, report.served % 32) == (0, 0, 0)
    trained = [None] * size
    dist.all_gather_object(trained, run.net.trained)
    torch.save([figures(run.engine), trained], f"{folder}/{rank}")


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    alone = plain_run(Digits(N), INFOBATCH, accumulate=4, double=True)
    equals_alone(torch.load(tmp_path / "0"), *alone)
