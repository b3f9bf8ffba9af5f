# SPDX-License-Identifier: Apache-2.0
"""What a monitor adds to a whole training step: ResNet-18, 32 x 32 images, B = 128, SGD.

Forward, loss, backward and update; with B-PAS also the statistics of 17 activations (71.3 million
elements), their mean std into the batch's slot, and the engine's line. Each row trains a model of
its own from the same start.
"""

from __future__ import annotations

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


def _new_model() -> tuple[torch.nn.Module, torch.optim.SGD]:
    model = models.build("resnet18", (3, 32, 32), 10, seed=0)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def _update(optimizer: torch.optim.SGD, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def plain_step(images: Tensor, labels: Tensor) -> Step:
    """A step of the loop before."""
    model, optimizer = _new_model()
    return lambda: _update(optimizer, F.cross_entropy(model(images), labels))


def pruned_step(images: Tensor, labels: Tensor, monitor: dict[str, Any]) -> Step:
    """A step of the loop after, in a first epoch that is not left."""
    model, optimizer = _new_model()
    engine = pe.PruneEngine(BATCH * BATCHES, pe.BPAS(BATCH), num_epochs=3)
    engine.attach(pe.ActivationMonitor(model, **monitor))
    batches = iter(torch.utils.data.BatchSampler(engine.sampler(), BATCH, drop_last=True))

    def step() -> Tensor:
        indices = torch.tensor(next(batches))
        losses = F.cross_entropy(model(images), labels, reduction="none")
        return _update(optimizer, engine.observe(losses, indices))

    return step


class StepData:
    """One batch and a step of each kind."""

    def __init__(self) -> None:
        """Runs each step once: the first makes buffers and picks algorithms."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (BATCH,), generator=generator)
        self.items = self.num_samples = BATCH
        self.steps = {VERSUS: plain_step(images, labels)}
        for name, monitor in MONITORS.items():
            self.steps[name] = pruned_step(images, labels, monitor)
        for step in self.steps.values():
            step()

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"batch": BATCH, "element_bytes": 4}


def _call(name: str, data: StepData, _argument: object) -> Tensor:
    return data.steps[name]()


ALTERNATIVES = tuple(
    Alternative(name, partial(_call, name), threads=2) for name in (VERSUS, *MONITORS)
)
