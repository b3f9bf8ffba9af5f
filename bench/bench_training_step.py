# SPDX-License-Identifier: Apache-2.0
"""What a monitor adds to a whole training step: ResNet-18, 32 x 32 images, B = 128, SGD.

Forward, loss, backward and update; with B-PAS also the statistics of 17 activations (71.3 million
elements), their mean std into the batch's slot, and the engine's line. All rows train one model,
whose monitor is put on or taken off between two timings: models of their own lie elsewhere in
memory, and that alone makes steps of different length. A step's length varies by more than what is
looked for, so the time inside the monitor's hooks and ``observe`` is taken as well, by itself
(`hooks_us`; inside a fused activation it cannot be told from the activation's).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import Alternative
from torch import Tensor

import prune_engine as pe
from prune_engine.recipes import models

TABLE = "training_step"
VERSUS = "step without pruning"
RELATIVE_TO = VERSUS
UNIT = "ms"
BATCH = 128
BATCHES = 4096  # more than are ever run, so that no epoch ends inside a timing
MONITORS: dict[str, dict[str, Any]] = {
    "with BPAS": {},
    "with BPAS, fuse=True": {"fuse": True},
    "with BPAS, sample=8": {"sample": 8},
}

Step = Callable[[], Tensor]


class TimedMonitor(pe.ActivationMonitor):
    """Adds up the time inside its hooks."""

    spent_ns = 0

    def _see(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        start = time.perf_counter_ns()
        super()._see(module, inputs, output)
        self.spent_ns += time.perf_counter_ns() - start


class StepData:
    """One batch, one model, and an engine for each kind of monitor."""

    def __init__(self) -> None:
        """Makes all of it."""
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(BATCH, 3, 32, 32, generator=generator)
        self.labels = torch.randint(10, (BATCH,), generator=generator)
        self.items = self.num_samples = BATCH
        self.model = models.build("resnet18", (3, 32, 32), 10, seed=0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.engines = {
            name: pe.PruneEngine(BATCH * BATCHES, pe.BPAS(BATCH), num_epochs=3) for name in MONITORS
        }
        self.batches = {
            name: iter(torch.utils.data.BatchSampler(engine.sampler(), BATCH, drop_last=True))
            for name, engine in self.engines.items()
        }
        self.monitor: TimedMonitor | None = None
        self.inside_ns: dict[str, list[int]] = {name: [] for name in MONITORS}

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        inside = {
            "hooks_us" + suffix: round(statistics.median(self.inside_ns["with BPAS" + name]) / 1e3)
            for suffix, name in (("", ""), ("_sample_8", ", sample=8"))
        }
        return {"batch": BATCH, "element_bytes": 4, **inside}

    def ready(self, name: str) -> Step:
        """The step of a row, with the model as that row has it."""
        if self.monitor is not None:
            self.monitor.remove()
            self.monitor = None
        if name not in MONITORS:
            return self.plain_step
        self.monitor = TimedMonitor(self.model, **MONITORS[name])
        self.engines[name].attach(self.monitor)
        return partial(self.pruned_step, name, self.monitor, next(self.batches[name]))

    def plain_step(self) -> Tensor:
        """A step of the loop before."""
        return self._update(F.cross_entropy(self.model(self.images), self.labels))

    def pruned_step(self, name: str, monitor: TimedMonitor, batch: list[int]) -> Tensor:
        """A step of the loop after, in a first epoch that is not left."""
        losses = F.cross_entropy(self.model(self.images), self.labels, reduction="none")
        indices = torch.tensor(batch)
        start = time.perf_counter_ns()
        loss = self.engines[name].observe(losses, indices)
        self.inside_ns[name].append(time.perf_counter_ns() - start + monitor.spent_ns)
        return self._update(loss)

    def _update(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return loss


def _prepare(name: str, data: StepData, _round: int) -> Step:
    return data.ready(name)


def _call(_data: StepData, step: Step) -> Tensor:
    return step()


ALTERNATIVES = tuple(
    Alternative(name, _call, partial(_prepare, name), threads=2) for name in (VERSUS, *MONITORS)
)
