# SPDX-License-Identifier: Apache-2.0
"""Accelerate itself, unmodified: kept sets of the plain loop, resume, ranks, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _ranks_of import on_ranks
from _real import Digits, Net, credited, equals_alone, figures, flat, plain_run, weights
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import ProjectConfiguration
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.utils.data import DataLoader

import prune_engine as pe
from prune_engine.integrations.accelerate import nominal_steps, prepare

N, SIZE, EPOCHS = 203, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    """Forget the Accelerator of the test before."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Stopped(Exception):
    """Where a run was broken off."""


def accelerator(**options: Any) -> Accelerator:
    return Accelerator(cpu=True, **options)


class Run:
    """A training in Accelerate's own words."""

    def __init__(
        self,
        accelerate: Accelerator,
        policy: Any = INFOBATCH,
        *,
        schedule: Any = None,
        batch_size: int = SIZE,
        dataset: Any = None,
        double: bool = False,
        **options: Any,
    ) -> None:
        self.accelerate = accelerate
        self.dataset = Digits(N) if dataset is None else dataset
        self.net = Net(double=double)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.model, self.optimizer = accelerate.prepare(self.net, optimizer)
        steps = nominal_steps(accelerate, self.dataset, num_epochs=EPOCHS, batch_size=batch_size)
        self.engine, self.loader, self.scheduler = prepare(
            accelerate,
            self.dataset,
            policy,
            num_epochs=EPOCHS,
            batch_size=batch_size,
            scheduler=None if schedule is None else schedule(optimizer, steps),
            **options,
        )
        self.steps = 0

    def train(self, folder: Any = None, save_at: Any = (), *, evaluate: bool = False) -> None:
        for _ in self.engine.epochs():
            for x, y, indices in self.loader:
                with self.accelerate.accumulate(self.model):
                    losses = F.cross_entropy(self.model(x), y, reduction="none")
                    self.accelerate.backward(self.engine.observe(losses, indices))
                    self.optimizer.step()
                    if self.scheduler is not None:
                        self.scheduler.step()
                    self.optimizer.zero_grad()
                self.steps += 1
                if evaluate and self.steps % 10 == 0:
                    self.evaluate()
                if self.steps in save_at:
                    self.accelerate.save_state(str(folder / str(self.steps)))

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            for x, y in self.accelerate.prepare(DataLoader(Digits(40, first=500), 16)):
                assert torch.isfinite(F.cross_entropy(self.model(x), y))
        self.model.train()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_plain_loop(workers, accumulate):
    run = Run(accelerator(gradient_accumulation_steps=accumulate), num_workers=workers)
    with credited() as seen:
        run.train(evaluate=True)
    want, net = plain_run(Digits(N), INFOBATCH, accumulate=accumulate)
    assert run.net.trained == seen == net.trained
    assert figures(run.engine) == figures(want)
    assert torch.equal(weights(run.net), weights(net))
    trained = len(flat(run.net.trained))
    assert trained == run.engine.history.samples_trained < 0.9 * EPOCHS * N
    if not workers:
        assert len(run.dataset.fetched) == trained, "counted in the data set"


@pytest.mark.parametrize("schedule", [OneCycleLR, CosineAnnealingLR])
def test_the_schedule_ends_where_it_should(schedule):
    def make(optimizer: Any, steps: int) -> Any:
        if schedule is OneCycleLR:
            return OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
        return CosineAnnealingLR(optimizer, steps)

    run = Run(accelerator(), schedule=make)
    run.train()
    assert run.steps < EPOCHS * (N // SIZE)
    assert run.scheduler.get_last_lr()[0] < 1e-5


def constant(optimizer: Any, steps: int) -> Any:
    """Leave the rate as it is, as the plain loop does."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Any, steps: int) -> Any:
    return CosineAnnealingLR(optimizer, steps)


@pytest.fixture(scope="module", params=[1, 4])
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    run = Run(accelerator(gradient_accumulation_steps=request.param), schedule=cosine)
    first = N // (SIZE * request.param) * request.param
    # No gradient is in flight there: Accelerate saves none.
    stops = {"inside": first + 8, "epoch's end": first, "evaluation": 40}
    run.train(folder, stops.values(), evaluate=True)
    return run, folder, request.param, stops


@pytest.mark.parametrize("at", ["inside", "epoch's end", "evaluation"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, at):
    # A4: the schedule is saved and restored; register_for_checkpointing is all that is needed.
    run, folder, accumulate, stops = whole
    resumed = Run(accelerator(gradient_accumulation_steps=accumulate), schedule=cosine)
    resumed.accelerate.load_state(str(folder / str(stops[at])))
    resumed.steps = stops[at]
    resumed.train(evaluate=True)
    assert resumed.net.trained == run.net.trained[stops[at] :]
    assert figures(resumed.engine) == figures(run.engine)
    assert torch.equal(weights(resumed.net), weights(run.net))
    assert resumed.scheduler.state_dict() == run.scheduler.state_dict()


def test_batches_that_are_skipped_a_second_time_are_missed(whole):
    # A5: it cannot be prevented, for the loader is the user's by then; it is named.
    _, folder, accumulate, stops = whole
    resumed = Run(accelerator(gradient_accumulation_steps=accumulate), schedule=cosine)
    resumed.accelerate.load_state(str(folder / str(stops["inside"])))
    resumed.loader = skip_first_batches(resumed.loader, 8)
    with pytest.raises(pe.CoverageError, match="served samples were never observed"):
        resumed.train()


def test_a_checkpoint_has_no_pickled_class(whole):
    _, folder, _, stops = whole
    files = list((folder / str(stops["inside"])).glob("custom_checkpoint_*.pkl"))
    assert len(files) == 1
    assert torch.load(files[0], weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"dispatch_batches": True}, "dispatch_batches"),
        ({"use_stateful_dataloader": True}, "skip a second time"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(config, match):
    # A3 and A5.
    with pytest.raises(ValueError, match=match):
        Run(accelerator(dataloader_config=DataLoaderConfiguration(**config)))


@pytest.mark.parametrize("name", ["shuffle", "sampler", "batch_sampler"])
def test_another_order_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} must not be given"):
        Run(accelerator(), **{name: True})


def test_a_loop_that_is_left_early_is_reported():
    run = Run(accelerator())
    for count, (x, y, indices) in enumerate(run.loader, 1):
        run.engine.observe(F.cross_entropy(run.net(x), y, reduction="none"), indices)
        if count == 2:
            break
    report = run.engine.end_epoch(partial=True)
    assert (report.partial, report.observed, report.missing) == (True, 16, N - 16)


def test_metrics_reach_a_tracker(tmp_path):
    accelerate = accelerator(log_with=[Noted()], project_config=ProjectConfiguration(str(tmp_path)))
    run = Run(accelerate)
    accelerate.init_trackers("run")
    run.train()
    accelerate.log(run.engine.metrics(), step=run.steps)
    (tracker,) = accelerate.trackers
    assert tracker.rows[-1]["prune/epoch"] == EPOCHS - 1


def ranks_work(rank: int, size: int, folder: str) -> None:
    for accumulate, split in ((1, False), (4, False), (1, True)):
        accelerate = accelerator(
            gradient_accumulation_steps=accumulate,
            dataloader_config=DataLoaderConfiguration(split_batches=split),
        )
        # A batch of 8 over both; 203 is a multiple of nothing.
        batch_size = 8 if split else 4
        run = Run(accelerate, schedule=constant, batch_size=batch_size, double=True)
        with credited() as seen:
            run.train(Path(folder), [20], evaluate=True)
        assert run.net.trained == seen
        for report in run.engine.history:
            assert report.observed == report.served
            assert (report.missing, report.extra) == (report.dropped_tail, 0)
            assert (report.repeated, report.served % (8 * accumulate)) == (0, 0)
        assert run.engine.done
        assert run.scheduler.scheduler.taken == run.scheduler.scheduler.total_steps
        trained = [None] * size
        torch.distributed.all_gather_object(trained, run.net.trained)
        torch.save([figures(run.engine), trained], f"{folder}/{rank}-{accumulate}-{split}")
        for state in (AcceleratorState, GradientState):
            state._reset_state()
    accelerate = accelerator()
    runs = [Run(accelerate, schedule=cosine, batch_size=4, double=True)]
    runs[0].train(Path(folder), [40])
    assert runs[0].scheduler.get_last_lr()[0] < 1e-8, "A4: not frozen at half of its steps"
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    accelerate = accelerator()
    runs.append(Run(accelerate, schedule=cosine, batch_size=4, double=True))
    accelerate.load_state(f"{folder}/40")
    runs[1].train()
    assert runs[1].net.trained == runs[0].net.trained[40:]
    assert figures(runs[1].engine) == figures(runs[0].engine)
    assert torch.equal(weights(runs[1].net), weights(runs[0].net))
    refused(rank, accelerate)


def refused(rank: int, accelerate: Accelerator) -> None:
    """A2, A1 and A6, on two ranks: each is said in words."""
    dataset = Digits(N)
    engine = pe.PruneEngine(dataset, INFOBATCH, num_epochs=EPOCHS)
    for x, _, indices in engine.loader(dataset, 4):
        engine.observe(x[:, 0], indices)  # a plain loop while an Accelerator is alive
    with pytest.raises(pe.CoverageError, match="every rank trains all samples"):
        engine.end_epoch()
    with pytest.raises(ValueError, match="drop_last=True"):
        Run(accelerate, pe.BPAS(8, target_dsi=0.3), batch_size=4)
    run = Run(accelerate, pe.RandomBatches(8, kept=(25, 10, 5), drop_last=True), batch_size=4)
    run.train()
    assert [report.served for report in run.engine.history] == [200, 80, 40]


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    for accumulate, split in ((1, False), (4, False), (1, True)):
        found = [torch.load(tmp_path / f"{rank}-{accumulate}-{split}") for rank in range(2)]
        assert found[0] == found[1]
        alone = plain_run(Digits(N), INFOBATCH, accumulate=accumulate, double=True)
        equals_alone(found[0], *alone)


def noted_tracker() -> Any:
    from accelerate.tracking import GeneralTracker

    class Noted(GeneralTracker):
        name = "noted"
        requires_logging_directory = False

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[Any] = []

        @property
        def tracker(self) -> Any:
            return self.rows

        def store_init_configuration(self, values: Any) -> None:
            """Nothing to store."""

        def log(self, values: Any, step: Any = None, **kwargs: Any) -> None:
            self.rows.append(values)

    return Noted()


Noted = noted_tracker
