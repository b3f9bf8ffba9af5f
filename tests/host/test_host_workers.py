# SPDX-License-Identifier: Apache-2.0
"""host in workers: no torch comes with it, it pickles, and a stream prunes itself in a loader."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import prune_engine as pe
from prune_engine import host

COUNT = 5000
CHUNK = 256
RULE = {"prune_ratio": 0.6, "seed": 8}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("statement", "with_torch"),
    [
        ("import prune_engine.host", False),
        ("import prune_engine as pe; pe.host, pe.__version__, dir(pe)", False),
        ("import prune_engine as pe; pe.policies.TABLE, pe.InfoBatch()", True),
        ("import prune_engine.ops", True),
        ("from prune_engine import PruneEngine", True),
    ],
)
def test_torch_is_imported_only_where_it_is_needed(statement: str, with_torch: bool) -> None:
    printed = run_python(f"import sys; {statement}; print('torch' in sys.modules)")
    assert printed == str(with_torch)


def test_every_public_name_is_there_and_leads_to_its_home() -> None:
    code = "from prune_engine import *; print(*sorted(n for n in dir() if n[:2] != '__'))"
    public = {name for name in pe.__all__ if name != "__version__"}
    assert set(run_python(code).split()) == public
    for name in public:
        value = getattr(pe, name)
        if not isinstance(value, ModuleType):
            assert value.__name__ == name
            assert value.__module__.startswith("prune_engine.")
        else:
            assert value.__name__.startswith("prune_engine.")
            assert value.__name__.endswith(f".{name}")
    assert set(pe.__all__) <= set(dir(pe))
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = pe.Engine


def test_a_plan_made_in_a_spawned_worker_comes_back_whole() -> None:
    scores = np.linspace(0, 1, COUNT, dtype=np.float32)
    want = host.plan(scores, epoch=3, **RULE)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(host.plan, (scores,), {"epoch": 3, **RULE})
        kept = pool.apply(host.keep, (range(COUNT), 3), {**RULE, "low": scores < got.threshold})
        torch_came_along = pool.apply(eval, ("'torch' in __import__('sys').modules",))
    assert not torch_came_along
    assert_bitwise(got.weight_class, want.weight_class, "weight_class")
    assert_bitwise(got.indices, want.indices, "indices")
    assert_bitwise(kept, want.weight_class != 0, "keep")


def test_a_plan_survives_pickling_and_copying() -> None:
    plan = host.plan(np.linspace(0, 1, COUNT, dtype=np.float32), epoch=3, **RULE)
    for twin in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert_bitwise(twin.indices, plan.indices, "indices")
        assert_bitwise(twin.weights, plan.weights, "weights")
        assert (twin.threshold, twin.weight) == (plan.threshold, plan.weight)
        assert (twin.seed, twin.epoch) == (plan.seed, plan.epoch)


class Stream(IterableDataset[int]):
    """A stream whose workers each decide their own chunks, and agree."""

    def __init__(self, low: np.ndarray | None, epoch: int) -> None:
        self.low = low
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        for start in range(worker.id * CHUNK, COUNT, worker.num_workers * CHUNK):
            indices = np.arange(start, min(start + CHUNK, COUNT))
            low = None if self.low is None else self.low[indices]
            yield from indices[host.keep(indices, self.epoch, low=low, **RULE)].tolist()


BELOW = pytest.param(True, id="below the mean", marks=pytest.mark.full("starts workers again"))


@pytest.mark.parametrize("scored", [pytest.param(False, id="random subset"), BELOW])
def test_the_workers_of_a_stream_serve_the_plan_together(scored: bool) -> None:
    scores = np.random.default_rng(1).exponential(size=COUNT).astype(np.float32)
    if not scored:
        scores = np.zeros(COUNT, dtype=np.float32)
    plan = host.plan(scores, epoch=2, threshold=None if scored else 1.0, **RULE)
    low = scores < plan.threshold if scored else None

    def served(epoch: int) -> list[int]:
        loader = DataLoader(
            Stream(low, epoch),
            batch_size=64,
            num_workers=2,
            multiprocessing_context="spawn",
            generator=torch.Generator(),  # the loader seeds its workers from it
        )
        return [index for batch in loader for index in batch.tolist()]

    got = served(epoch=2)
    assert sorted(got) == plan.kept.tolist()  # each once: nothing twice, nothing missing
    assert 0.3 * COUNT < len(got) < 0.8 * COUNT, "control: something is dropped"
    if scored:
        assert sorted(served(epoch=3)) != plan.kept.tolist(), "control: another epoch"
