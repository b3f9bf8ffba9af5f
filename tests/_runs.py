# SPDX-License-Identifier: Apache-2.0
"""Small runs that the engine's tests share: losses known in advance, epochs, states on disk."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import prune_engine as pe

N = 100


def losses_at(indices: Sequence[int] | Tensor, epoch: int = 0) -> Tensor:
    """Return each sample's loss in an epoch: in (0, 2), unlike its neighbours', float32 exact."""
    positions = torch.as_tensor(indices, dtype=torch.int64)
    return (1 + (positions * 40503 + 30011 * epoch + 7919) % 65521).float() / 32768


def batches(stream: Iterator[int] | pe.data.PruneSampler, size: int) -> Iterator[list[int]]:
    """Cut a sampler's stream as ``BatchSampler`` does."""
    iterator = iter(stream)
    while batch := list(islice(iterator, size)):
        yield batch


class Known:
    """Stands for a monitor: two layers whose outputs are known, and calm down epoch by epoch."""

    def __init__(self, batch: Sequence[int], epoch: int) -> None:
        values = losses_at(batch, epoch).double() / (epoch + 1) ** 2 + losses_at(batch)
        self.parts = pe.ops.moments([values, values[::2] * 3], backend="reference")

    def take(self) -> Tensor:
        return self.parts


class KnownReference:
    """Stands for a clean reference whose mean loss in each epoch is known."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def take(self) -> Tensor:
        return losses_at(range(7), self.epoch).mean()


def observe(engine: pe.PruneEngine, batch: Sequence[int], **options: Any) -> Tensor:
    """Observe a batch's known losses, and for B-PAS its known activations."""
    if isinstance(engine.policy, pe.BPAS):
        engine.attach(Known(batch, engine.epoch))
    if isinstance(engine.policy, pe.policies.AlignPrune):
        engine.attach(KnownReference(engine.epoch))
    return engine.observe(losses_at(batch, engine.epoch), torch.tensor(batch), **options)


def serve(engine: pe.PruneEngine, size: int = 10, *, align: int = 1) -> list[int]:
    """Serve and observe what is left of the epoch, without ending it; return what was served."""
    served: list[int] = []
    for batch in batches(engine.sampler(align=align), size):
        observe(engine, batch)
        served += batch
    return served


def epochs(engine: pe.PruneEngine, count: int, size: int = 10) -> list[list[int]]:
    """Run whole epochs; return each one's order."""
    orders: list[list[int]] = []
    for _ in range(count):
        orders.append(serve(engine, size))
        engine.end_epoch()
    return orders


def infobatch(n: int = N, num_epochs: int = 8, **options: Any) -> pe.PruneEngine:
    """Return an engine that prunes half of the low samples in every epoch but the first."""
    return pe.PruneEngine(n, pe.InfoBatch(0.5, delta=1.0), num_epochs=num_epochs, **options)


def figures(engine: pe.PruneEngine) -> list[str]:
    """Return the history as text, in which nan equals nan, without the one figure of the clock."""
    return [str({**report.as_dict(), "engine_seconds": 0}) for report in engine.history]


def plain(state: Any) -> Any:
    """Return a state in which equal bits are equal, without the one figure of the clock."""
    if isinstance(state, Tensor):
        return state.dtype, tuple(state.shape), [plain(value) for value in state.flatten().tolist()]
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items() if key != "engine_seconds"}
    if isinstance(state, list | tuple):
        return type(state)(plain(value) for value in state)
    return repr(state) if isinstance(state, float) else state


def through_disk(state: Any) -> Any:
    """Save and load as a checkpoint does, trusting nothing but tensors and plain data."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Numbers(Dataset[Any]):
    """Item i is (10 * i, i mod 3); module-level, so that a spawned worker finds it."""

    classes = ("zero", "one", "two")

    def __init__(self, n: int = N) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 10 * index, index % 3


class Records(Numbers):
    """The same as dicts."""

    def __getitem__(self, index: int) -> Any:
        return {"x": 10 * index, "y": index % 3}
