# SPDX-License-Identifier: Apache-2.0
"""A training that B-PAS prunes, what NumPy saw of it, and the published rule stated again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from _runs import Numbers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import prune_engine as pe
from prune_engine.policies.batches.stability_memory import StabilityMemory

SIZE, SAMPLES, EPOCHS = 16, 200, 9


def memory_of(engine: pe.PruneEngine) -> StabilityMemory:
    return StabilityMemory.of(engine._run.memory)


class Task:
    """A small model that learns, and the outputs of its two activations as NumPy saw them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(SAMPLES, 6, generator=generator)
        self.y = (self.x[:, :3] + 0.1 * torch.randn(SAMPLES, 3, generator=generator)).argmax(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.model = nn.Sequential(
                nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
            )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2)
        self.outputs: list[np.ndarray] = []
        for layer in (1, 3):
            self.model[layer].register_forward_hook(self.see)

    def see(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs.append(output.detach().double().numpy())

    def step(self, engine: pe.PruneEngine, indices: Tensor, parts: int = 1) -> list[np.ndarray]:
        """Train on one batch, in micro-batches; return each layer's outputs over all of it."""
        seen = []
        self.optimizer.zero_grad()
        for part in indices.chunk(parts):
            self.outputs = []
            logits = self.model(self.x[part])
            losses = nn.functional.cross_entropy(logits, self.y[part], reduction="none")
            engine.observe(losses, part, denom=len(indices)).backward()
            seen.append(self.outputs)
        self.optimizer.step()
        return [np.concatenate(layer) for layer in zip(*seen, strict=True)]


def train(policy: pe.BPAS, parts: int = 1, **options: Any) -> tuple[pe.PruneEngine, list[Any]]:
    """Train all epochs; return what NumPy saw: per epoch {members of a batch: its outputs}."""
    task, record = Task(), []
    engine = pe.PruneEngine(SAMPLES, policy, num_epochs=EPOCHS, seed=2, **options)
    engine.attach(pe.ActivationMonitor(task.model))
    numbers = engine.dataset(Numbers(SAMPLES))
    seeds = torch.Generator().manual_seed(0)  # for workers; the global one is guarded
    loader = DataLoader(numbers, SIZE, sampler=engine.sampler(), generator=seeds)
    for _ in engine.epochs():
        record.append({})
        for *_, indices in loader:
            record[-1][tuple(sorted(indices.tolist()))] = task.step(engine, indices, parts)
    return engine, record


def restated(
    record: list[Any], start: float, end: float, *, strict: bool, ddof: int
) -> list[Any] | None:
    """The published rule again, in NumPy, from the outputs themselves.

    Returns the batches of each epoch; None if it wants to see one that was not trained on.
    """
    previous: dict[Any, float] = {}
    alive = set(record[0])
    kept, margin = [], math.inf
    for i, epoch in enumerate(record, start=1):
        kept.append(set(alive))
        if not alive <= set(epoch):
            return None
        x = {b: np.mean([np.std(out, ddof=ddof) for out in epoch[b]]) for b in epoch}
        if i >= 2:
            delta = start * np.exp(i / EPOCHS * np.log(end / start))
            for b in list(alive):
                change = abs(x[b] - previous[b])
                margin = min(margin, abs(change - delta))
                if (change < delta) if strict else (change <= delta):
                    alive.discard(b)
        previous = x
    assert margin > 1e-9, "the record decides, not the last bit of a float"
    return kept
