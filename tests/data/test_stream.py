# SPDX-License-Identifier: Apache-2.0
"""Streams: workers of all ranks decide by themselves, and serve together what the sampler would."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from _runs import infobatch, serve
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import prune_engine as pe
from prune_engine import host

N, SHARD, EPOCH = 1000, 64, 1  # the last shard is short


class Shards(IterableDataset[int]):
    """A reader of shards of consecutive samples, as WebDataset and mosaicml-streaming have them."""

    def __init__(self, low: np.ndarray, seed: int, rank: int, size: int) -> None:
        self.low, self.seed, self.rank, self.size = low, seed, rank, size

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        place = {"rank": self.rank, "world_size": self.size, "worker": worker, "workers": workers}
        for start in host.share(range(0, N, SHARD), **place):
            indices = np.arange(start, min(start + SHARD, N))
            kept = host.keep(indices, EPOCH, seed=self.seed, prune_ratio=0.5, low=self.low[indices])
            yield from indices[kept].tolist()


def planned() -> tuple[pe.PruneEngine, np.ndarray]:
    """Return an engine in its second epoch, and which samples may be dropped there."""
    engine = infobatch(N, seed=11)
    serve(engine, 100)
    engine.end_epoch()
    low = engine.scores() < engine.plan.threshold
    return engine, low.numpy()


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (2, 0), (2, 2), (3, 1)])
def test_ranks_and_workers_together_serve_what_the_sampler_serves(size, workers):
    engine, low = planned()
    served: list[int] = []
    for rank in range(size):
        loader = DataLoader(
            Shards(low, engine.seed, rank, size),
            batch_size=32,
            num_workers=workers,
            generator=torch.Generator(),  # the loader seeds its workers from it
        )
        served += [index for batch in loader for index in batch.tolist()]
    assert len(served) == len(set(served)), "no overlap"
    assert sorted(served) == sorted(engine.sampler()) == engine.plan.kept.tolist()
    assert len(served) < N, "control: something is dropped"


def test_control_without_the_workers_numbers_samples_are_served_twice():
    served = [start for _ in range(2) for start in host.share(range(0, N, SHARD), rank=0)]
    assert len(served) == 2 * len(set(served))


@given(count=st.integers(0, 60), size=st.integers(1, 9), workers=st.integers(1, 5))
def test_shares_are_a_partition_as_even_as_can_be(count, size, workers):
    names = [f"shard-{at:05d}.tar" for at in range(count)]
    shares = [
        list(host.share(names, rank=rank, world_size=size, worker=worker, workers=workers))
        for rank, worker in product(range(size), range(workers))
    ]
    assert sorted(name for part in shares for name in part) == names
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1"),
        ({"worker": 1}, r"worker must be in 0\.\.0"),
        ({"world_size": 0}, "world_size must be in 1"),
        ({"workers": 0}, "workers must be in 1"),
    ],
)
def test_edge_case_10_a_place_out_of_range_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        host.share([1, 2, 3], **numbers)
