# SPDX-License-Identifier: Apache-2.0
"""Lightning itself, unmodified: the Trainer and Fabric."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from _ranks_of import on_ranks
from _real import Digits, Net, credited, equals_alone, figures, flat, plain_run, weights
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader

import prune_engine as pe
from prune_engine.integrations.lightning import Prune, prepare

N, SIZE, EPOCHS = 203, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(L.LightningModule):
    """A module as its author writes it; only the loss goes through the engine."""

    def __init__(self, engine: pe.PruneEngine, schedule: str | None = None, **options: Any) -> None:
        super().__init__()
        self.net = Net(**options)
        self.engine = engine
        self.schedule = schedule
        self.validated: list[int] = []
        self.rates: list[float] = []

    def training_step(self, batch: Any, index: int) -> Any:
        x, y, indices = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        return self.engine.observe(losses, indices)

    def on_train_batch_end(self, *args: Any) -> None:
        self.rates.append(self.optimizers().param_groups[0]["lr"])

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.current_epoch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        if self.schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if self.schedule == "cosine":
            scheduler: Any = CosineAnnealingLR(optimizer, steps)
        else:
            scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Run:
    """An engine, a module and a Trainer."""

    def __init__(
        self,
        folder: Path,
        policy: Any = INFOBATCH,
        *,
        schedule: str | None = None,
        workers: int = 0,
        accumulate: int = 1,
        size: int = SIZE,
        callbacks: Any = (),
        double: bool = False,
        loader: Any = None,
        **options: Any,
    ) -> None:
        self.dataset = Digits(N)
        self.engine = pe.PruneEngine(self.dataset, policy, num_epochs=EPOCHS)
        self.module = Module(self.engine, schedule, double=double)
        given = {"max_epochs": EPOCHS, "logger": False, "enable_progress_bar": False}
        given |= {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
        given |= {"enable_model_summary": False, "default_root_dir": str(folder)}
        given |= {"accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0}
        self.trainer = L.Trainer(**{**given, **options}, callbacks=[Prune(self.engine), *callbacks])
        self.loader = loader or self.engine.loader(
            self.dataset, size, accumulate=accumulate, resume="length", num_workers=workers
        )
        self.held_out = DataLoader(Digits(40, first=500), 16)

    def fit(self, checkpoint: Any = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few workers, small epochs
            self.trainer.fit(self.module, self.loader, self.held_out, ckpt_path=checkpoint)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_plain_loop(tmp_path, workers, accumulate):
    run = Run(tmp_path, workers=workers, accumulate=accumulate)
    with credited() as seen:
        run.fit()
    want, net = plain_run(Digits(N), INFOBATCH, accumulate=accumulate)
    assert run.module.net.trained == seen == net.trained
    assert figures(run.engine) == figures(want)
    assert torch.equal(weights(run.module.net), weights(net))
    trained = len(flat(seen))
    assert trained == run.engine.history.samples_trained < 0.9 * EPOCHS * N
    if not workers:
        assert len(run.dataset.fetched) == trained, "counted in the data set"
    assert run.trainer.global_step == trained // SIZE // accumulate


def test_it_validates_after_each_epoch_however_short(tmp_path):
    # L2: without the loader being asked for anew, in epoch 0 only.
    run = Run(tmp_path)
    run.fit()
    assert run.module.validated == [0, 1, 2]
    halves = Run(tmp_path, val_check_interval=0.5)
    halves.fit()
    assert halves.module.validated == [0, 0, 1, 1, 2, 2]
    assert halves.module.net.trained == run.module.net.trained


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_schedule_ends_where_it_should(tmp_path, schedule, accumulate):
    # L4, with the module's own use of estimated_stepping_batches.
    run = Run(tmp_path, schedule=schedule, accumulate=accumulate)
    run.fit()
    assert run.trainer.global_step < EPOCHS * (N // SIZE // accumulate)
    assert run.module.rates[-1] < 1e-5
    assert max(run.module.rates) > 0.09


EVERY = {
    "inside": {"every_n_train_steps": 1, "save_on_train_epoch_end": False},
    "epoch's end": {"save_on_train_epoch_end": True},
    "evaluation": {"save_on_train_epoch_end": False},
    "default": {},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run per way of saving; each keeps all its checkpoints."""
    made: dict[Any, Any] = {}

    def run_of(kind: str, accumulate: int) -> Any:
        if (kind, accumulate) not in made:
            folder = tmp_path_factory.mktemp("whole")
            saving = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **EVERY[kind])
            run = Run(
                folder,
                schedule="cosine",
                accumulate=accumulate,
                callbacks=[saving],
                enable_checkpointing=True,
            )
            run.fit()
            made[kind, accumulate] = (
                run,
                sorted(int(path.stem.partition("=")[2]) for path in folder.glob("*.ckpt")),
            )
        return made[kind, accumulate]

    return run_of


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("which", [0, 1])
def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, kind, accumulate, which, tmp_path):
    # L1 ("default" and "evaluation": saved when all of the epoch is trained) and L3 ("inside").
    run, steps = whole(kind, accumulate)
    step = steps[[len(steps) // 5, len(steps) // 2][which]] if kind == "inside" else steps[which]
    # With workers, who read ahead as soon as there is a loader.
    resumed = Run(tmp_path, schedule="cosine", accumulate=accumulate, workers=2 - 2 * which)
    resumed.fit(f"{run.trainer.checkpoint_callback.dirpath}/step={step}.ckpt")
    assert resumed.module.net.trained == run.module.net.trained[step * accumulate :]
    assert figures(resumed.engine) == figures(run.engine)
    assert torch.equal(weights(resumed.module.net), weights(run.module.net))
    assert resumed.trainer.global_step == run.trainer.global_step
    assert resumed.module.rates[-1] == run.module.rates[-1]


def test_the_state_of_a_checkpoint_is_plain_data(whole):
    run, steps = whole("evaluation", 1)
    path = f"{run.trainer.checkpoint_callback.dirpath}/step={steps[0]}.ckpt"
    saved = torch.load(path, weights_only=True)["callbacks"]["prune_engine"]
    assert saved["epoch"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"fast_dev_run": 3},
        {"max_steps": 5, "max_epochs": -1},
        {"max_steps": 30, "max_epochs": -1},
    ],
    ids=str,
)
def test_limits_are_reported_and_no_error(tmp_path, options):
    # L5.
    run = Run(tmp_path, **options)
    run.fit()
    trained = len(flat(run.module.net.trained))
    assert run.engine.history[-1].partial
    assert sum(report.served for report in run.engine.history) == trained
    assert trained == SIZE * (options.get("max_steps") or int(options["fast_dev_run"]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit_train_batches": 0.5}, "Subset"),
        ({"limit_train_batches": 7}, "Subset"),
        ({"overfit_batches": 2}, "overfit_batches"),
        ({"max_epochs": 5}, "num_epochs=3"),
        ({"reload_dataloaders_every_n_epochs": 2}, "must be 1"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, options, match):
    run = Run(tmp_path, **options)
    with pytest.raises(ValueError, match=match):
        run.fit()
    assert run.module.net.trained == []


@pytest.mark.parametrize("resume", ["rest", "replay"])
def test_a_loader_that_could_not_resume_is_refused_at_the_start(tmp_path, resume):
    run = Run(tmp_path)
    run.loader = run.engine.loader(run.dataset, SIZE, resume=resume)
    with pytest.raises(ValueError, match="resume='length'"):
        run.fit()


def test_another_loader_is_refused_at_the_start(tmp_path):
    run = Run(tmp_path)
    other = pe.PruneEngine(N, INFOBATCH, num_epochs=EPOCHS)
    run.loader = other.loader(run.dataset, SIZE, resume="length")
    with pytest.raises(ValueError, match="of the engine that Prune was given"):
        run.fit()
    plain = Run(tmp_path, loader=DataLoader(run.dataset, SIZE, shuffle=True))
    with pytest.raises(ValueError, match="RandomSampler"):
        plain.fit()


def test_an_engine_that_has_trained_is_refused(tmp_path):
    run = Run(tmp_path)
    run.fit()
    again = Run(tmp_path)
    again.trainer.callbacks[0].engine = run.engine
    with pytest.raises(pe.PruneEngineError, match="must be new"):
        again.fit()


def test_an_early_stop_is_no_error(tmp_path):
    stop = EarlyStopping("val_loss", patience=0, min_delta=10.0)
    run = Run(tmp_path, callbacks=[stop])
    run.fit()
    assert len(run.engine.history) == 2
    assert not run.engine.done

    class Inside(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 30

    inside = Run(tmp_path, callbacks=[Inside()])
    inside.fit()
    assert inside.engine.history[-1].partial
    assert len(inside.module.net.trained) == 30


class Bar(TQDMProgressBar):
    """Notes what it draws."""

    totals: list[Any]

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        super().on_train_epoch_end(trainer, module)
        self.totals.append((self.train_progress_bar.n, self.train_progress_bar.total))


def test_metrics_reach_the_logger_and_the_bar_is_honest(tmp_path):
    bar, log = Bar(), CSVLogger(tmp_path)
    bar.totals = []
    run = Run(tmp_path, logger=log, enable_progress_bar=True, callbacks=[bar], log_every_n_steps=1)
    run.fit()
    served = [report.served // SIZE for report in run.engine.history]
    assert bar.totals == [(each, each) for each in served]
    assert len(set(served)) > 1
    lines = Path(log.log_dir, "metrics.csv").read_text().splitlines()
    at = lines[0].split(",").index("prune/epoch")
    assert [line.split(",")[at] for line in lines[1:] if line.split(",")[at]] == [
        "0.0",
        "1.0",
        "2.0",
    ]


def ranks_work(rank: int, size: int, folder: str) -> None:
    for accumulate in (1, 4):
        # The loader is made here, before there are ranks: they are counted when it is iterated.
        at = 32 // accumulate
        saving = ModelCheckpoint(
            f"{folder}/{accumulate}", filename="{step}", save_top_k=-1, every_n_train_steps=at
        )
        options = {"strategy": "ddp", "devices": 2, "accumulate": accumulate, "double": True}
        run = Run(Path(folder), **options, size=4, callbacks=[saving], enable_checkpointing=True)
        with credited() as seen:
            run.fit()
        assert run.module.net.trained == seen
        for report in run.engine.history:
            assert report.observed == report.served
            assert (report.missing, report.extra) == (report.dropped_tail, 0)
            assert (report.repeated, report.served % (8 * accumulate)) == (0, 0)
        assert run.engine.done
        resumed = Run(Path(folder), **options, size=4)
        resumed.fit(f"{folder}/{accumulate}/step={at}.ckpt")
        assert resumed.module.net.trained == run.module.net.trained[32:]
        assert figures(resumed.engine) == figures(run.engine)
        assert torch.equal(weights(resumed.module.net), weights(run.module.net))
        trained = [None] * size
        torch.distributed.all_gather_object(trained, run.module.net.trained)
        torch.save([figures(run.engine), trained], f"{folder}/{rank}-{accumulate}")


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    for accumulate in (1, 4):
        found = [torch.load(tmp_path / f"{rank}-{accumulate}") for rank in range(2)]
        assert found[0] == found[1]
        alone = plain_run(Digits(N), INFOBATCH, accumulate=accumulate, double=True)
        equals_alone(found[0], *alone)


# Fabric ------------------------------------------------------------------------------------------


class Loop:
    """A loop with Fabric, in its own words."""

    def __init__(
        self,
        fabric: Any,
        *,
        accumulate: int = 1,
        double: bool = False,
        constant: bool = False,
        **options: Any,
    ):
        self.fabric, self.accumulate = fabric, accumulate
        self.net = Net(double=double)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.model, self.optimizer = fabric.setup(self.net, optimizer)
        self.dataset = Digits(N)
        size = SIZE // fabric.world_size
        steps = EPOCHS * (N // (SIZE * accumulate))
        self.engine, self.loader, self.scheduler = prepare(
            fabric,
            self.dataset,
            INFOBATCH,
            num_epochs=EPOCHS,
            batch_size=size,
            accumulate=accumulate,
            scheduler=ConstantLR(optimizer, 1.0)
            if constant
            else CosineAnnealingLR(optimizer, steps),
            **options,
        )
        self.steps = 0
        self.held_out = torch.utils.data.DataLoader(Digits(40, first=N), SIZE)

    @property
    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer}
        return {**parts, "engine": self.engine, "scheduler": self.scheduler}

    def step(self, x: Any, y: Any, indices: Any) -> None:
        self.steps += 1
        last = self.steps % self.accumulate == 0
        with self.fabric.no_backward_sync(self.model, enabled=not last):
            losses = F.cross_entropy(self.model(x), y, reduction="none")
            loss = self.engine.observe(losses, indices) / self.accumulate
            self.fabric.backward(loss)
        if last:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()

    def validate(self) -> None:
        with torch.no_grad():
            for x, _ in self.held_out:
                self.model(x)

    def train(self, path: Any = None, save_at: int | str | None = None) -> None:
        for epoch in self.engine.epochs():
            for number, batch in enumerate(self.loader):
                self.step(*batch)
                if number == 3:
                    self.validate()
                if self.steps == save_at:
                    self.fabric.save(path, self.state)
            self.validate()
            if save_at == "validated" and epoch == 0:
                self.fabric.save(path, self.state)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_fabric_trains_and_resumes(tmp_path, accumulate, workers):
    path, at = tmp_path / "state.ckpt", 32
    fabric = L.Fabric(accelerator="cpu", devices=1)
    loop = Loop(fabric, accumulate=accumulate, num_workers=workers)
    with credited() as seen:
        loop.train(path, at)
    assert loop.net.trained == seen
    assert loop.scheduler.get_last_lr()[0] < 1e-9
    assert loop.engine.history.dsi > 0.05
    resumed = Loop(fabric, accumulate=accumulate)
    fabric.load(path, resumed.state)
    resumed.train()
    assert resumed.net.trained == loop.net.trained[at:]
    assert figures(resumed.engine) == figures(loop.engine)
    assert torch.equal(weights(resumed.net), weights(loop.net))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_fabric_keeps_the_plain_loops_sets(accumulate, workers):
    fabric = L.Fabric(accelerator="cpu", devices=1)
    loop = Loop(fabric, accumulate=accumulate, constant=True, num_workers=workers)
    loop.train()
    want, net = plain_run(Digits(N), INFOBATCH, accumulate=accumulate)
    assert loop.net.trained == net.trained
    assert figures(loop.engine) == figures(want)
    assert torch.equal(weights(loop.net), weights(net))
    if not workers:  # who has workers fetches in them
        assert sorted(loop.dataset.fetched) == sorted(flat(net.trained))
        assert len(loop.dataset.fetched) < 0.95 * EPOCHS * N


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("when", ["end", "validated"])
def test_fabric_resumes_into_the_end_of_an_epoch(tmp_path, accumulate, when):
    path, fabric = tmp_path / "state.ckpt", L.Fabric(accelerator="cpu", devices=1)
    first = N // (SIZE * accumulate) * accumulate  # batches of the epoch
    loop = Loop(fabric, accumulate=accumulate)
    loop.train(path, first if when == "end" else when)
    resumed = Loop(fabric, accumulate=accumulate)
    fabric.load(path, resumed.state)
    resumed.train()
    assert resumed.net.trained == loop.net.trained[first:]
    assert figures(resumed.engine) == figures(loop.engine)
    assert torch.equal(weights(resumed.net), weights(loop.net))


def test_fabric_reports_an_epoch_that_was_broken_off():
    loop = Loop(L.Fabric(accelerator="cpu", devices=1))
    while loop.engine.epoch < EPOCHS:
        for number, batch in enumerate(loop.loader):
            if number == 5:
                break
            loop.step(*batch)
        report = loop.engine.end_epoch(partial=True)
        assert (report.partial, report.observed) == (True, 5 * SIZE)
    with pytest.raises(pe.CoverageError):  # the control: without a word it is an error
        short = Loop(L.Fabric(accelerator="cpu", devices=1))
        short.step(*next(iter(short.loader)))
        short.engine.end_epoch()


def fabric_work(rank: int, size: int, folder: str) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    loop = Loop(fabric, accumulate=4, double=True)
    with credited() as seen:
        loop.train(f"{folder}/state.ckpt", 32)
    assert loop.net.trained == seen
    for report in loop.engine.history:
        assert (report.observed, report.missing) == (report.served, report.dropped_tail)
        assert (report.extra, report.repeated, report.served % 32) == (0, 0, 0)
    assert loop.scheduler.get_last_lr()[0] < 1e-9
    resumed = Loop(fabric, accumulate=4, double=True)
    fabric.load(f"{folder}/state.ckpt", resumed.state)
    resumed.train()
    assert resumed.net.trained == loop.net.trained[32:]
    assert torch.equal(weights(resumed.net), weights(loop.net))


def test_fabric_on_two_ranks(tmp_path):
    on_ranks(fabric_work, 2, str(tmp_path))
