# SPDX-License-Identifier: Apache-2.0
"""One training loop for every arm of a comparison."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from prune_engine.checkpoint import load_state, save_state
from prune_engine.engine import PruneEngine
from prune_engine.epoch.ranks import world
from prune_engine.files import write_bytes
from prune_engine.policies import BPAS, Policy, Reselect, Subset
from prune_engine.recipes import ranks
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.results import SCHEMA
from prune_engine.recipes.text import TextData
from prune_engine.recipes.trainer import TrainConfig, Trainer, make_trainer
from prune_engine.schedule import ProgressOf, VirtualScheduler

Row = dict[str, Any]
Make = Callable[[ImageData | TextData, TrainConfig, int], Trainer]


class Chooser(Protocol):
    """What trains a part of each batch in place of ``Trainer.observe``."""

    def begin(self, data: ImageData | TextData, seed: int) -> tuple[int, int]:
        """Make what is needed before the first batch; return what it passed backward and forward.

        A training that is continued does not call it: what it made is in the state.
        """
        ...

    def observe(
        self, engine: PruneEngine, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss to train on, and the plain losses of those that are trained."""
        ...

    def forwards(self, seen: int, trained: int) -> int:
        """Say how many samples were passed forward where some of those seen were trained."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that it remembers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        ...


class Within(Protocol):
    """A choice within each batch, not begun yet: ``in_batch.InBatch``."""

    def chooser(self, trainer: Trainer) -> Chooser:
        """Return what chooses in one training."""
        ...


@dataclass(frozen=True)
class Arm:
    """One way to spend the training.

    Args:
        name: as in the table.
        policy: of the engine.
        samples: stop after this many samples (a multiple of the batch size), with a one-cycle
            schedule of exactly that length, in more epochs than the others where it takes them;
            None: run all epochs.
        overhead: seconds that were spent before and count as the first epoch's.
        attach: gives the engine what the policy watches, before the first epoch.
        within: trains a part of each batch; None: all of it.

    Raises:
        ValueError: a number of samples, which counts whole batches, with a choice within them.
    """

    name: str
    policy: Policy
    samples: int | None = None
    overhead: float = 0.0
    attach: Callable[[Trainer, PruneEngine], None] | None = None
    within: Within | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.within is not None:
            raise ValueError(f"samples: expected None with a choice within, got {self.samples}")


@dataclass(frozen=True)
class ArmResult:
    """What one training left.

    Args:
        rows: one per epoch, as written to ``metrics.jsonl``; only the first rank evaluates.
        histogram: loss distribution in the middle of the training, or None if nothing was pruned.
    """

    rows: list[Row] = field(default_factory=list[Row])
    histogram: dict[str, Any] | None = None

    @property
    def served(self) -> int:
        """Samples trained: passed backward."""
        return sum(row["served"] for row in self.rows)

    @property
    def forwards(self) -> int:
        """Samples passed forward in training, those that only scored included."""
        return sum(row.get("forwards", row["served"]) for row in self.rows)


@dataclass(frozen=True)
class Keep:
    """What a training leaves on disk beside its rows, and who looks on; None: nothing of it.

    Args:
        recording: see ``PruneEngine.record``.
        predictions: an ``.npy`` of what the trained model says of each training image.
        checkpoint: written after every epoch; one that is there is continued.
        watch: what looks at the engine meanwhile.
    """

    recording: Path | None = None
    predictions: Path | None = None
    checkpoint: Path | None = None
    watch: Callable[[PruneEngine], AbstractContextManager[None]] | None = None


class Schedule(Protocol):
    """A learning-rate schedule, wrapped or not."""

    def step(self) -> None:
        """Advance after an optimiser step."""
        ...

    def get_last_lr(self) -> list[Any]:
        """The learning rate of each parameter group."""
        ...


class Bar:
    """A progress bar on stderr whose length is the number of batches of this very epoch."""

    WIDTH = 24

    def __init__(self, label: str, total: int, enabled: bool) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.done, self.drawn = 0, 0.0

    def advance(self) -> None:
        """Count one batch; draw at most ten times a second."""
        self.reach(self.done + 1, self.total)

    def reach(self, done: int, total: int) -> None:
        """Note how many are done of how many."""
        self.done, self.total = done, total
        if not self.enabled:
            return
        now = time.monotonic()
        if now - self.drawn >= 0.1 or self.done == self.total:
            self.drawn = now
            full = self.WIDTH * self.done // max(1, self.total)
            bar = "#" * full + "." * (self.WIDTH - full)
            sys.stderr.write(f"\r{self.label} [{bar}] {self.done}/{self.total}")
            sys.stderr.flush()

    def close(self) -> None:
        """Clear the line."""
        if self.enabled:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def train_arm(
    data: ImageData | TextData,
    config: TrainConfig,
    arm: Arm,
    seed: int,
    on_row: Callable[[ArmResult], None] | None = None,
    on_end: Callable[[Trainer, PruneEngine], None] | None = None,
    keep: Keep | None = None,
    tests: str = "each",
    make: Make = make_trainer,
) -> ArmResult:
    """Train one model on one arm.

    The clock of an epoch covers loading, augmentation, forward, backward, optimiser, scoring and
    the plan of the next epoch (the first epoch: also the making of the engine); evaluation is
    outside it.

    Args:
        data: the data set.
        config: shared by all arms.
        arm: what to train on.
        seed: of the weights, the order, the draws and the augmentation.
        on_row: called after every epoch with the result so far.
        on_end: called once with what was trained.
        keep: what is left on disk beside the rows.
        tests: ``"each"`` epoch is tested, or the ``"last"`` one alone.
        make: returns what trains, for data, configuration and seed.

    Returns:
        One row per epoch, and the loss distribution.

    Raises:
        ValueError: a number of samples that is not a positive multiple of the batch size.
        StateMismatchError: what is to be continued is another training.
    """
    with ExitStack() as watching:
        kept = keep or Keep()
        return _train(data, config, arm, seed, on_row, on_end, kept, tests, make, watching)


def _train(
    data: ImageData | TextData,
    config: TrainConfig,
    arm: Arm,
    seed: int,
    on_row: Callable[[ArmResult], None] | None,
    on_end: Callable[[Trainer, PruneEngine], None] | None,
    keep: Keep,
    tests: str,
    make: Make,
    watching: ExitStack,
) -> ArmResult:
    """Train, with whoever looks on until the training is over or has failed."""
    budget = arm.samples
    if budget is not None and (budget < 1 or budget % config.batch_size):
        raise ValueError(
            f"samples: expected a positive multiple of batch_size {config.batch_size}, got {budget}"
        )
    trainer = make(data, config, seed)
    trainer.synchronize()
    clock, processor = time.perf_counter(), time.process_time()
    whole = data.num_samples // config.batch_size * config.batch_size  # of an epoch that is full
    epochs = max(config.epochs, -(-(budget or 0) // whole))
    engine = PruneEngine(
        data.num_samples,
        arm.policy,
        num_epochs=epochs,
        seed=seed,
        device=trainer.device,
        backend=config.backend,
        # An arm that stops within an epoch leaves planned samples unseen, and knows it.
        coverage="raise" if budget is None else "ignore",
    )
    if isinstance(arm.policy, Subset | Reselect):
        trainer.reduction = "weighted_mean"
    if isinstance(arm.policy, BPAS):
        engine.attach(trainer.monitor())
    if arm.attach is not None:
        arm.attach(trainer, engine)
    fixed = engine.policy.fixed_batch
    # A full epoch of the policy: what it saves is counted from there.
    nominal = data.num_samples if fixed is None else engine.plan.num_kept
    loader = trainer.loader(engine)
    schedule = _schedule(trainer, engine, config.epochs * whole // config.batch_size, budget)
    chooser = None if arm.within is None else arm.within.chooser(trainer)
    parts = _parts(trainer, schedule, chooser)
    if keep.recording is not None:
        engine.record(keep.recording)
    result = ArmResult()
    if keep.checkpoint is not None and keep.checkpoint.is_file():
        result = _restored(engine, trainer, parts, keep.checkpoint)
    begun = (0, 0)
    if chooser is not None and not result.rows:
        begun = chooser.begin(data, seed)
    observe = trainer.observe if chooser is None else chooser.observe
    trained, size = result.served, world()[1]
    # The first epoch also pays for the making of the engine.
    before = engine.part_seconds if result.rows else dict.fromkeys(engine.part_seconds, 0.0)
    if keep.watch is not None:
        watching.enter_context(keep.watch(engine))
    over = trained == budget or engine.done
    for epoch in range(engine.epoch, engine.epoch if over else epochs):
        bar = Bar(f"{arm.name} seed {seed} epoch {epoch + 1}", len(loader), config.progress)
        planned, weight = engine.plan.num_kept, engine.plan.largest_weight
        share = 1 / weight if config.scale_lr and weight > 1 else 1.0
        seen, served, steepest = 0, 0, 0.0
        total = torch.zeros((), dtype=torch.float64, device=trainer.device)
        for inputs, targets, indices in loader:
            loss, losses = observe(engine, inputs, targets, indices.to(trainer.device))
            steepest = max(steepest, float(schedule.get_last_lr()[0]) * share * weight)
            trainer.step(loss, share)
            schedule.step()
            total += losses.sum()
            seen += len(indices) * size
            served += len(losses) * size
            bar.advance()
            if trained + served == budget:
                break
        lr = float(schedule.get_last_lr()[0]) * share
        report = engine.end_epoch()
        trainer.synchronize()
        seconds = time.perf_counter() - clock + (arm.overhead if epoch == 0 else 0.0)
        processor = time.process_time() - processor
        bar.close()
        trained += served
        over = trained == budget or report.ended_early
        clock = time.perf_counter()
        wanted = tests == "each" or over or epoch + 1 == epochs
        tested = trainer.evaluate() if wanted and ranks.is_first() else float("nan")
        eval_seconds = time.perf_counter() - clock
        if epoch + 1 == max(1, epochs // 2) and fixed is None:
            result = ArmResult(result.rows, _histogram(engine))
        forwards = served if chooser is None else chooser.forwards(seen, served)
        forwards, trainer.looked = forwards + trainer.looked, 0
        planned -= seen - served  # those left out within their batches are not trained either
        result.rows.append(
            {
                "schema": SCHEMA,
                "arm": arm.name,
                "seed": seed,
                "epoch": epoch,
                "num_epochs": epochs,
                "num_samples": data.num_samples,
                "train_loss": _finite(float(ranks.summed(total)) / max(1, served)),
                trainer.METRIC: _finite(tested),
                "lr": lr,
                "effective_lr": steepest,
                "planned": planned,
                "served": begun[0] + served,
                "forwards": begun[1] + forwards,
                "saved": nominal - planned,
                "nominal": nominal,
                "batches": None if fixed is None else -(-planned // fixed),
                "threshold": _finite(report.threshold),
                "nonfinite": report.nonfinite,
                "seconds": seconds,
                "cpu_seconds": processor,
                "eval_seconds": eval_seconds,
                **_spent(engine, before),
            }
        )
        begun = (0, 0)  # the first epoch's
        before = engine.part_seconds
        if on_row is not None:
            on_row(result)
        if keep.checkpoint is not None:
            _save(engine, trainer, parts, result, keep.checkpoint)
        if over:
            break
        clock, processor = time.perf_counter(), time.process_time()
    if keep.predictions is not None and ranks.is_first():
        _predict(trainer, keep.predictions)
    if on_end is not None:
        on_end(trainer, engine)
    return result


def _spent(engine: PruneEngine, before: Mapping[str, float]) -> Row:
    """Return the engine's seconds since then, in all and by what they were for."""
    spent = {name: now - before[name] for name, now in engine.part_seconds.items()}
    return {
        "engine_seconds": sum(spent.values()),
        **{f"{name}_seconds": seconds for name, seconds in spent.items()},
    }


def _predict(trainer: Trainer, path: Path) -> None:
    """Write what the trained model says of its training samples, for a report."""
    found = trainer.predictions()
    if found is not None:
        content = io.BytesIO()
        np.save(content, found.to(torch.int32).numpy(), allow_pickle=False)
        write_bytes(path, content.getvalue())


def _save(
    engine: PruneEngine, trainer: Trainer, parts: dict[str, Any], result: ArmResult, path: Path
) -> None:
    """Save a training after an epoch, whole: what differs between ranks, of every one."""
    extra = {
        **{name: part.state_dict() for name, part in parts.items()},
        "generators": ranks.of_each({"state": trainer.generator.get_state()}, trainer.device),
        "rows": result.rows,
        "histogram": result.histogram,
    }
    save_state(engine, path, extra=extra)


def _restored(
    engine: PruneEngine, trainer: Trainer, parts: dict[str, Any], path: Path
) -> ArmResult:
    """Bring a training back to where it was saved."""
    extra = load_state(engine, path)
    own = ranks.own(extra.get("generators") or [{"state": extra["generator"]}])  # as it was once
    for name, part in parts.items():
        part.load_state_dict(extra[name])
    trainer.generator.set_state(own["state"])
    return ArmResult(extra["rows"], extra["histogram"])


def _parts(trainer: Trainer, schedule: Schedule, chooser: Chooser | None) -> dict[str, Any]:
    parts = {"model": trainer.model, "optimizer": trainer.optimizer, "schedule": schedule}
    return parts if chooser is None else {**parts, "within": chooser}


def _schedule(
    trainer: Trainer, engine: PruneEngine, full_steps: int, budget: int | None
) -> Schedule:
    config = trainer.config
    steps = full_steps if budget is None else budget // config.batch_size
    one_cycle = OneCycleLR(trainer.optimizer, max_lr=config.lr, total_steps=max(2, steps))
    # Pruned epochs take fewer steps: the wrapper walks the whole nominal curve all the same. A
    # budget has the very number of its steps, so the plain schedule is exact.
    # As engine.wrap_scheduler, but that the rows tell what it would warn of.
    if budget is not None:
        return one_cycle
    return VirtualScheduler(one_cycle, max(2, steps), ProgressOf(engine))


def _histogram(engine: PruneEngine, bins: int = 60) -> dict[str, Any] | None:
    """Scores before pruning, of the kept, and of the kept weighted, for the coming epoch."""
    if engine.plan.num_kept in (0, engine.num_samples):
        return None
    scores, weights = engine.scores().double().cpu(), engine.plan.weights.double().cpu()
    seen = torch.isfinite(scores)  # a dropped tail may have left a few without a score
    scores, weights = scores[seen], weights[seen]
    if not bool((weights > 0).any()):
        return None  # none of the kept has a score yet, after even first epochs
    shown = scores.clamp(min=1e-6)  # the axis is logarithmic
    low, high = float(shown.min().log10()), float(shown.max().log10())
    edges = torch.logspace(low, max(high, low + 1e-3), bins + 1, dtype=torch.float64)
    bin_of = torch.bucketize(shown, edges[1:-1])

    def count(mass: Tensor) -> list[float]:
        return _numbers(torch.bincount(bin_of, mass.double(), minlength=bins))

    return {
        "schema": SCHEMA,
        "epoch": engine.plan.epoch,
        "edges": _numbers(edges),
        "before": count(torch.ones_like(scores)),
        "after": count(weights > 0),
        "rescaled": count(weights),
        "mean_before": float(scores.mean()),
        "mean_after": float(scores[weights > 0].mean()),
        "mean_rescaled": float((scores * weights).mean()),
    }


def _numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def _finite(value: float) -> float | None:
    """JSON has no inf and no nan."""
    return value if abs(value) < 1e38 else None
