# SPDX-License-Identifier: Apache-2.0
"""B-PAS on two gloo ranks: the std is that of the global batch, merged once per epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _assertions import assert_bitwise
from _bpas import EPOCHS, SAMPLES, SIZE, Task, memory_of, restated
from _collectives import Collectives
from _runs import batches
from torch import nn

import prune_engine as pe

WORLD, START, END = 2, 0.015, 0.05
pytestmark = pytest.mark.distributed


def engine_of(**options: Any) -> pe.PruneEngine:
    policy = pe.BPAS(SIZE, START, END, drop_last=True)
    return pe.PruneEngine(SAMPLES, policy, num_epochs=EPOCHS, seed=2, **options)


def train(engine: pe.PruneEngine, task: Task, epochs: int, stop: int | None = None) -> list[Any]:
    """Train under DDP; return {(epoch, turn): (indices, outputs)} of this rank, by epoch."""
    model = nn.parallel.DistributedDataParallel(task.model)
    monitor = pe.ActivationMonitor(model)
    engine.attach(monitor)
    record = []
    for _ in range(epochs):
        record.append([])
        for turn, batch in enumerate(batches(engine.sampler(), SIZE // WORLD)):
            if turn == stop:
                return record
            indices = torch.tensor(batch)
            task.outputs = []
            task.optimizer.zero_grad()
            logits = model(task.x[indices])
            losses = nn.functional.cross_entropy(logits, task.y[indices], reduction="none")
            with Collectives() as step:
                loss = engine.observe(losses, indices)
            assert step.count == 0, "no collective in a step"
            loss.backward()
            task.optimizer.step()
            record[-1].append((batch, task.outputs))
        with Collectives() as end:
            engine.end_epoch()
        assert end.count >= 4, "control: the moments and the records go over the wire here"
    monitor.remove()
    return record


def whole(record: list[Any]) -> tuple[list[Any], list[Any]]:
    """Put the ranks' shares together: per epoch {members: layers}, and the mean of rank stds."""
    ranks: list[Any] = [None] * WORLD
    dist.all_gather_object(ranks, record)
    merged, averaged = [], []
    for epoch in zip(*ranks, strict=True):
        merged.append({})
        averaged.append({})
        for shares in zip(*epoch, strict=True):
            members = tuple(sorted(index for batch, _ in shares for index in batch))
            layers = list(zip(*(outputs for _, outputs in shares), strict=True))
            merged[-1][members] = [np.concatenate(parts) for parts in layers]
            stds = [np.std(part, ddof=1) for parts in layers for part in parts]
            averaged[-1][members] = float(np.mean(stds))
    return merged, averaged


def check_run(rank: int) -> None:
    engine, task = engine_of(), Task()
    merged, averaged = whole(train(engine, task, EPOCHS))
    assert [set(epoch) for epoch in merged] == restated(merged, START, END, strict=False, ddof=1)
    counts = [len(epoch) for epoch in merged]
    assert counts[0] > counts[-1] > 0
    memory = memory_of(engine)
    for members, layers in merged[-1].items():
        got = float(memory.now[memory.batches.batch_of[members[0]]])
        assert got == pytest.approx(np.mean([np.std(out, ddof=1) for out in layers]), rel=1e-9)
        assert abs(got - averaged[-1][members]) > 1e-6, "control: std is not averaged"
    plans: list[Any] = [None] * WORLD
    dist.all_gather_object(plans, engine.plan.kept.tolist())
    assert plans[0] == plans[1]


def check_resume(rank: int, folder: Path) -> None:
    """Stop within the fourth epoch; both go on from the state, and end with the same bits."""
    engine, task = engine_of(), Task()
    train(engine, task, 3)
    train(engine, task, 1, stop=3)
    state = engine.state_dict()
    states: list[Any] = [None] * WORLD
    dist.all_gather_object(states, state)
    for other in states:
        torch.testing.assert_close(other["memory"], state["memory"], rtol=0, atol=0, equal_nan=True)
    assert (state["epoch"], state["cursor"], int(state["memory"]["seen"].sum())) == (3, 48, 48)
    weights = {name: value.clone() for name, value in task.model.state_dict().items()}
    if rank == 0:
        torch.save({"state": state, "weights": weights}, folder / "state.pt")
    resumed = engine_of()
    resumed.load_state_dict(state)
    assert resumed.epoch == engine.epoch
    order = engine.plan.indices.tolist()[engine.cursor :]
    assert list(resumed.sampler()) == order[rank::WORLD]
    for each in (engine, resumed):
        task.model.load_state_dict(weights)
        each.attach(pe.ActivationMonitor(task.model))
        for batch in batches(iter(order[rank::WORLD]), SIZE // WORLD):
            with torch.no_grad():
                losses = task.model(task.x[batch]).square().sum(1)
            each.observe(losses, torch.tensor(batch))
        each.end_epoch()
    one, two = memory_of(engine), memory_of(resumed)
    torch.testing.assert_close(one.now, two.now, rtol=1e-12, atol=0, equal_nan=True)
    assert int(torch.isfinite(two.now).sum()) == engine.history[-1].planned // SIZE
    assert_bitwise(one.alive, two.alive, "alive")
    if rank == 0:
        torch.save(two.now, folder / "x.pt")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    check_run(rank)
    check_resume(rank, Path(folder))
    Path(folder, f"done{rank}").touch()
    dist.barrier()
    os._exit(0)  # see test_distributed.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(path),), nprocs=WORLD)
    return path


def test_two_ranks_merge_the_moments_of_the_global_batch(folder):
    assert all((folder / f"done{rank}").exists() for rank in range(WORLD))


def test_a_state_of_two_ranks_continues_on_one(folder):
    saved = torch.load(folder / "state.pt", weights_only=True)
    engine, task = engine_of(), Task()
    engine.load_state_dict(saved["state"])
    task.model.load_state_dict(saved["weights"])
    engine.attach(pe.ActivationMonitor(task.model))
    for batch in batches(engine.sampler(), SIZE):
        with torch.no_grad():
            losses = task.model(task.x[batch]).square().sum(1)
        engine.observe(losses, torch.tensor(batch))
    engine.end_epoch()
    want = torch.load(folder / "x.pt", weights_only=True)
    torch.testing.assert_close(memory_of(engine).now, want, rtol=1e-6, atol=0, equal_nan=True)
