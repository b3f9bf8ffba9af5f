# SPDX-License-Identifier: Apache-2.0
"""What a monitor adds to a whole training step: ResNet-18, 32 x 32 images, B = 128, SGD.

Forward, loss, backward and update; with B-PAS also the statistics of 17 activations (71.3 million
elements), their mean std into the batch's slot, and the engine's line. All rows train one model,
whose monitor is put on or taken off between two timings: models of their own lie elsewhere in
memory, and that alone makes steps of different length. A step's length varies by more than what is
looked for, so the part that differs is timed by itself as well: the activations with what hangs on
them, and the line that makes the loss one number (`inside_us`, the median over the rounds). So are
the pages that a step touches first (`page_faults`): an allocator that returns memory to the system
between two uses gives one row more of them than another, by chance, and 20,000 are 1% of a step.
"""

from __future__ import annotations

import resource
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
from prune_engine.policies.batches.monitor import FusedActivation
from prune_engine.recipes import models

TABLE = "training_step"
VERSUS = "step without pruning"
RELATIVE_TO = VERSUS
UNIT = "ms"
BATCH = 128
BATCHES = 4096  # more than are ever run, so that no epoch ends inside a timing
ACTIVATIONS = (torch.nn.ReLU, FusedActivation)
MONITORS: dict[str, dict[str, Any]] = {
    "with BPAS": {},
    "with BPAS, fuse=True": {"fuse": True},
    "with BPAS, sample=8": {"sample": 8},
}

Step = Callable[[], Tensor]


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
        self.monitor: pe.ActivationMonitor | None = None
        self.clocks: list[Any] = []
        self.started_ns = self.spent_ns = 0
        self.inside_ns: dict[str, list[int]] = {name: [] for name in (VERSUS, *MONITORS)}
        self.faults: dict[str, list[int]] = {name: [] for name in (VERSUS, *MONITORS)}

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        inside = {
            f"inside_us of {name}": round(statistics.median(times) / 1e3)
            for name, times in self.inside_ns.items()
        }
        faults = {
            f"page_faults of {name}": round(statistics.median(counts))
            for name, counts in self.faults.items()
        }
        return {"batch": BATCH, "element_bytes": 4, **inside, **faults}

    def ready(self, name: str) -> Step:
        """The step of a row, with the model as that row has it."""
        for clock in self.clocks:
            clock.remove()
        if self.monitor is not None:
            self.monitor.remove()
        self.monitor = None
        if name in MONITORS:
            self.monitor = pe.ActivationMonitor(self.model, **MONITORS[name])
            self.engines[name].attach(self.monitor)
            logits = self.model(self.images)  # the first pass measures each layer for itself
            self.monitor.take()
            del logits
        # After the monitor, so that its hooks lie between these two.
        watched = [module for module in self.model.modules() if type(module) in ACTIVATIONS]
        self.clocks = [
            handle
            for module in watched
            for handle in (
                module.register_forward_pre_hook(self._start),
                module.register_forward_hook(self._stop),
            )
        ]
        self.spent_ns = 0
        return partial(self.step, name, next(self.batches[name]) if name in MONITORS else None)

    def step(self, name: str, batch: list[int] | None) -> Tensor:
        """A step of the loop before; with a batch that after, in a first epoch that is not left."""
        faults = _page_faults()
        logits = self.model(self.images)
        losses = F.cross_entropy(logits, self.labels, reduction="none")
        self._start()
        if batch is None:
            loss = losses.mean()
        else:
            loss = self.engines[name].observe(losses, torch.tensor(batch))
        self._stop()
        self.inside_ns[name].append(self.spent_ns)
        self._update(loss)
        self.faults[name].append(_page_faults() - faults)
        return loss

    def _start(self, *_hooked: object) -> None:
        self.started_ns = time.perf_counter_ns()

    def _stop(self, *_hooked: object) -> None:
        self.spent_ns += time.perf_counter_ns() - self.started_ns

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _prepare(name: str, data: StepData, _round: int) -> Step:
    return data.ready(name)


def _call(_data: StepData, step: Step) -> Tensor:
    return step()


ALTERNATIVES = tuple(
    Alternative(name, _call, partial(_prepare, name), threads=2) for name in (VERSUS, *MONITORS)
)
