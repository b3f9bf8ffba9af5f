# SPDX-License-Identifier: Apache-2.0
"""A copy of an engine goes on as the engine would, and shares nothing with it."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import prune_engine as pe
from prune_engine.epoch import ScoreBuffer
from prune_engine.policies import Policy

N, B = 22, 4
ROWS = torch.arange(N)
POLICIES: list[Policy] = [
    pe.KeepAll(),
    pe.InfoBatch(0.5, 0.9),
    pe.InfoBatchQuantile(),
    pe.UCB(0.5, period=2),
    pe.RandomBatches(B, kept=(5, 4, 3)),
    pe.BPAS(B, delta_start=1e-3, delta_end=1.0, min_batches=1),
]
named = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}
ways = pytest.mark.parametrize("way", list(WAYS))


def an_engine(policy: Policy, **options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(N, policy, **{"num_epochs": 6, "seed": 3, **options})


def watch(engine: pe.PruneEngine) -> None:
    """Attach what BPAS looks at: each batch's own rows, through an activation."""
    if isinstance(engine.policy, pe.BPAS):
        engine.attach(Rows(engine))


class Rows:
    """A monitor whose activations are the same for every engine of a test."""

    def __init__(self, engine: pe.PruneEngine) -> None:
        self.engine = engine

    def take(self) -> torch.Tensor:
        return torch.tensor([[4.0, 0.0, 1.0 / (1 + self.engine.steps % 7)]], dtype=torch.float64)


def observe(engine: pe.PruneEngine, indices: torch.Tensor) -> float:
    losses = (indices * 7 % 5 + engine.epoch).float()
    return engine.observe(losses, indices).item()


def figures(report: pe.EpochReport) -> str:
    """Return a report as text, in which nan equals nan, without its clock."""
    return repr(dataclasses.replace(report, engine_seconds=0.0))


def go_on(engine: pe.PruneEngine, epochs: int) -> list[Any]:
    """Train to the end of some epochs; return what happened."""
    seen: list[Any] = []
    for _ in range(epochs):
        for _, indices in engine.device_loader([ROWS], B):
            seen.append((indices.tolist(), observe(engine, indices)))
        seen.append(figures(engine.end_epoch()))
    return [*seen, engine.scores().nan_to_num(-1).tolist(), engine.plan.kept.tolist()]


def begin(engine: pe.PruneEngine, batches: int) -> None:
    """Train two epochs and some batches of the third."""
    watch(engine)
    go_on(engine, 2)
    stream = iter(engine.device_loader([ROWS], B))
    for _ in range(batches):
        observe(engine, next(stream)[-1])


@ways
@named
@pytest.mark.parametrize("batches", [0, 1])
def test_a_copy_goes_on_as_the_engine_would(policy: Policy, way: str, batches: int) -> None:
    engine = an_engine(policy)
    begin(engine, batches)
    twin = WAYS[way](engine)
    watch(twin)
    assert (twin.epoch, twin.cursor, twin.steps) == (engine.epoch, engine.cursor, engine.steps)
    first = go_on(engine, 2)
    assert go_on(twin, 2) == first
    assert engine.epoch == twin.epoch == 4


@ways
def test_a_copy_of_a_trained_epoch_ends_it_as_the_engine_would(way: str) -> None:
    # 22 samples in batches of 4: two are the tail, which only the pass knows of.
    engine = an_engine(pe.KeepAll())
    for _, indices in engine.device_loader([ROWS], B):
        observe(engine, indices)
    twin = WAYS[way](engine)
    assert twin.served == engine.served == 20
    assert figures(twin.end_epoch()) == figures(engine.end_epoch())


@ways
def test_a_copy_of_a_run_that_flows_flows_on(way: str) -> None:
    engine = an_engine(pe.InfoBatch(0.5), mode="flow", num_epochs=9)

    def passes(one: pe.PruneEngine) -> list[Any]:
        stream = [indices for _ in range(3) for indices in drawn(one)]
        return [stream, one.epoch, list(map(figures, one.history)), one.plan.kept.tolist()]

    def drawn(one: pe.PruneEngine) -> list[list[int]]:
        found: list[list[int]] = []
        for _, indices in one.device_loader([ROWS], B):
            observe(one, indices)
            found.append(indices.tolist())
        return found

    passes(engine)
    twin = WAYS[way](engine)
    assert passes(twin) == passes(engine)
    assert engine.epoch > 1


@ways
def test_a_copy_shares_no_memory_with_the_engine(way: str) -> None:
    engine = an_engine(pe.KeepAll())
    twin = WAYS[way](engine)
    observe(twin, torch.tensor([0, 1]))
    assert int(engine.scores().isnan().sum()) == N
    assert int(twin.scores().isnan().sum()) == N - 2
    assert twin.plan.weight_class is twin.buffer.weight_class


class Steps:
    taken = 0

    def step(self) -> None:
        self.taken += 1


@ways
def test_what_belongs_to_an_engine_is_copied_along_with_it(way: str) -> None:
    engine = an_engine(pe.KeepAll())
    holder = {
        "engine": engine,
        "scheduler": engine.wrap_scheduler(Steps(), 6 * 5),
        "loader": engine.loader(TensorDataset(ROWS), B),
        "device_loader": engine.device_loader([ROWS], B),
    }
    twin = WAYS[way](holder)
    batches = [indices.tolist() for _, indices in twin["loader"]]
    assert batches == [indices.tolist() for _, indices in twin["device_loader"]]
    for batch in batches:
        observe(twin["engine"], torch.tensor(batch))
        twin["scheduler"].step()
    assert twin["scheduler"].scheduler.taken == twin["scheduler"].taken == 5
    assert (twin["engine"].cursor, engine.cursor) == (20, 0)


@ways
def test_a_monitor_stays_behind_with_its_model(way: str) -> None:
    engine = an_engine(pe.BPAS(B))
    model = nn.Sequential(nn.ReLU())
    model.note = lambda: None  # no pickle takes this
    engine.attach(pe.ActivationMonitor(model))
    twin = WAYS[way](engine)
    with pytest.raises(pe.PruneEngineError, match="attach"):
        twin.observe(torch.ones(B), torch.arange(B))


@ways
def test_a_subclass_and_its_attributes_are_copied(way: str) -> None:
    engine = Named(N, pe.KeepAll(), num_epochs=2)
    engine.name = ["run 7"]
    twin = WAYS[way](engine)
    assert type(twin) is Named
    assert twin.name == ["run 7"]
    assert twin.name is not engine.name


class Named(pe.PruneEngine):
    name: list[str]


@ways
def test_a_buffer_is_copied(way: str) -> None:
    buffer = ScoreBuffer(3)
    buffer.observe(torch.tensor([2.0, torch.inf]), torch.tensor([1, 2]))
    twin = WAYS[way](buffer)
    assert twin.read_counters() == buffer.read_counters()
    twin.observe(torch.tensor([4.0]), torch.tensor([0]))
    assert (twin.mean(), buffer.mean()) == (3.0, 2.0)


class Scored(Dataset[Any]):
    """A data set that looks at the scores of the run, as a curriculum would."""

    def __init__(self, engine: pe.PruneEngine) -> None:
        self.engine = engine

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[float, int]:
        self.engine.observe(torch.tensor([50.0]), torch.tensor([0]))  # of the worker's copy
        return self.engine.scores()[index].item(), os.getpid()


def test_a_data_set_that_holds_the_engine_is_spawned() -> None:
    engine = an_engine(pe.KeepAll())
    observe(engine, torch.arange(N))
    expected = engine.scores().tolist()
    seeds = torch.Generator()
    loader = DataLoader(
        Scored(engine), N, num_workers=1, multiprocessing_context="spawn", generator=seeds
    )
    ((scores, pids),) = list(loader)
    assert scores[1:].tolist() == expected[1:]
    assert scores[0].item() == 50.0
    assert pids[0].item() != os.getpid()
    assert engine.scores().tolist() == expected


@ways
def test_an_engine_with_a_process_group_names_what_is_there_instead(way: str) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = an_engine(pe.KeepAll(), process_group=dist.group.WORLD)
        with pytest.raises(pe.PruneEngineError, match=r"process group.*state_dict\(\)"):
            WAYS[way](engine)
        WAYS[way](an_engine(pe.KeepAll()))  # one rank alone is no group
    finally:
        dist.destroy_process_group()


@ways
def test_divided_scores_name_what_is_there_instead(way: str) -> None:
    engine = an_engine(pe.KeepAll(), shard_scores=True)
    with pytest.raises(pe.PruneEngineError, match=r"divided.*state_dict\(\)"):
        WAYS[way](engine)


@ways
def test_a_pass_names_what_is_there_instead(way: str) -> None:
    with pytest.raises(TypeError, match=r"pass.*state_dict\(\)"):
        WAYS[way](iter(an_engine(pe.KeepAll()).sampler()))
