# SPDX-License-Identifier: Apache-2.0
"""A loader for data that live on the device: no worker, no copy, no wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine.data.sampler import PruneSampler
from prune_engine.data.stream import Feed
from prune_engine.epoch import ranks
from prune_engine.epoch.plan import EpochPlan
from prune_engine.epoch.state import check_count
from prune_engine.errors import PruneEngineError
from prune_engine.lasting import lasting
from prune_engine.plain import plain

Batch = tuple[Tensor, ...]
Augment = Callable[[Batch, torch.Generator], Sequence[Tensor]]


class DeviceLoader:
    """Serve batches of tensors that lie on the engine's device, without touching the host.

    A batch is a gather from each tensor. The samples and their order are those of
    ``engine.loader``: same shards, same tail, same cursor after a resume, and an exact ``len``;
    ``mode="flow"`` flows from one pruning epoch into the next as there.

    Args:
        engine: what an engine passes (``PruneEngine.device_loader``).
        data: tensors with N rows each, or a ``TensorDataset`` of them; moved to the device once.
        batch_size: per rank.
        augment: takes the gathered tensors and a generator on the device, returns the tensors to
            serve. The generator is seeded for every batch by (seed, epoch, position), so a
            resumed run draws the same.
        shard: ``"auto"`` (the rank of ``torch.distributed``), ``"none"`` or (rank, world size).
        align: serve a multiple of this many positions over all ranks; default ``batch_size *
            world size``: every batch is full. With fixed batches (``BPAS``) the world size.
        accumulate: batches of an optimizer step: an epoch is a multiple of so many.

    Raises:
        TypeError: data are not tensors, or augment cannot be called or returns something else.
        ValueError: a tensor does not have N rows, or a number is out of range.

    Example:
        >>> import prune_engine as pe
        >>> engine = pe.PruneEngine(4, pe.KeepAll(), num_epochs=1)
        >>> loader = engine.device_loader([torch.arange(4) * 10], batch_size=2)
        >>> len(loader), all(torch.equal(x, i * 10) for x, i in loader)
        (2, True)
    """

    def __init__(
        self,
        engine: Feed,
        data: Any,
        batch_size: int,
        *,
        augment: Augment | None = None,
        shard: ranks.Shard = "auto",
        align: int | None = None,
        accumulate: int = 1,
    ) -> None:
        batch_size, shard = plain(batch_size), plain(shard)
        check_count("batch_size", batch_size, needed=True)
        if augment is not None and not callable(augment):
            raise TypeError(f"augment must be callable, got {type(augment).__name__}")
        self._engine = engine
        self._shard: ranks.Shard = shard
        self.batch_size = batch_size
        self.augment = augment
        self.device = engine.plan.kept.device
        columns = check_columns(data, engine.num_samples)
        self.data: Batch = lasting(_moved)(columns, self.device)
        self._generator = None if augment is None else torch.Generator(self.device)
        self._sampler = PruneSampler(
            engine,
            shard=self._shares(),
            align=align,
            batch_size=batch_size,
            accumulate=accumulate,
        )

    @property
    def sampler(self) -> PruneSampler:
        """The sampler that decides what is served."""
        self._sampler.shard = self._shares()
        return self._sampler

    def _shares(self) -> ranks.Shard:
        # Nobody deals these batches out once more, as Accelerate does with a DataLoader's, so the
        # rank is always that of the process group; asked for late, as every sampler does.
        return ranks.world(self._engine.process_group) if self._shard == "auto" else self._shard

    def __len__(self) -> int:
        """Return how many batches iterating now would yield."""
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield ``(*tensors, indices)``: the rows of each tensor and int64 [B] where they are."""
        if self.data[0].shape[0] != self._engine.num_samples:
            raise PruneEngineError(
                f"the data have {self.data[0].shape[0]} rows, the engine {self._engine.num_samples}"
                " samples since resize(): make the loader anew"
            )
        walk = self.sampler.walk()
        for plan, positions in walk.spans():
            batches = plan.batches(self.batch_size, positions, dtype=torch.int64)
            stream, starts = iter(batches), iter(positions[:: self.batch_size])
            while True:
                began = self._engine.now()
                indices = next(stream, None)
                self._engine.add_seconds(began, "order")
                if indices is None:
                    break
                walk.serving.hand_out(iter(()), indices.shape[0])
                yield (*self._rows(indices, plan, next(starts)), indices)

    @lasting
    def _rows(self, indices: Tensor, plan: EpochPlan, position: int) -> Batch:
        rows = tuple(column.index_select(0, indices) for column in self.data)
        if self.augment is None or self._generator is None:
            return rows
        self._generator.manual_seed(batch_seed(plan.seed, plan.epoch, position))
        return _tensors(self.augment(rows, self._generator))


def _moved(columns: Batch, device: torch.device) -> Batch:
    return tuple(column.to(device) for column in columns)


def _tensors(made: object) -> Batch:
    """Refuse what an augmentation must not return: one tensor would be served row by row."""
    if not isinstance(made, tuple | list):
        raise TypeError(f"augment must return a sequence of tensors, got {type(made).__name__}")
    for entry in cast("list[object]", made):
        if not isinstance(entry, Tensor):
            raise TypeError(f"augment must return tensors, got a {type(entry).__name__} in it")
    return tuple(cast("list[Tensor]", made))


def check_columns(data: Any, num_samples: int) -> Batch:
    """Refuse data that are not tensors of N rows.

    Args:
        data: a sequence of tensors or a ``TensorDataset``.
        num_samples: N.

    Returns:
        The tensors.

    Raises:
        TypeError: they are not tensors.
        ValueError: there are none, or one does not have N rows.

    Example:
        >>> len(check_columns([torch.zeros(3, 2), torch.zeros(3)], 3))
        2
    """
    columns = getattr(data, "tensors", data)
    if not isinstance(columns, list | tuple):
        raise TypeError(
            f"data must be a sequence of tensors or a TensorDataset, got {type(columns).__name__}"
        )
    found: list[Tensor] = []
    for number, column in enumerate(columns):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if not isinstance(column, Tensor):
            kind = type(column).__name__  # pyright: ignore[reportUnknownArgumentType]
            raise TypeError(f"data[{number}] must be a tensor, got {kind}")
        if column.dim() == 0 or column.shape[0] != num_samples:
            raise ValueError(
                f"data[{number}] must have {num_samples} rows, got shape {tuple(column.shape)}"
            )
        found.append(column)
    if not found:
        raise ValueError("data must be at least one tensor, got none")
    return tuple(found)


def batch_seed(seed: int, epoch: int, position: int) -> int:
    """Return the seed of a batch's augmentation: the finaliser of SplitMix64, once per word.

    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.)

    Args:
        seed: the engine's.
        epoch: the plan's.
        position: of the batch's first sample in the epoch.

    Returns:
        In 0..2^64-1, as far apart for neighbours as for strangers.

    Example:
        >>> batch_seed(0, 0, 0) != batch_seed(0, 0, 1)
        True
    """
    mask = 0xFFFFFFFFFFFFFFFF
    word = 0
    for part in (seed, epoch, position):
        word = (word + part + 0x9E3779B97F4A7C15) & mask
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        word ^= word >> 31
    return word
