# SPDX-License-Identifier: Apache-2.0
"""Two gloo ranks: one plan, shares that add up to it, one state, no collective within a step."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _assertions import assert_bitwise
from _runs import Numbers, batches, infobatch, losses_at, observe, serve
from torch.utils._python_dispatch import TorchDispatchMode

import prune_engine as pe
from prune_engine.distributed import merge_counters, merge_records, resolve_shard

N, WORLD, SIZE, EPOCHS = 240, 2, 12, 4
pytestmark = pytest.mark.distributed


def gathered(value: Any) -> list[Any]:
    """Return every rank's value."""
    values: list[Any] = [None] * WORLD
    dist.all_gather_object(values, value)
    return values


class Collectives(TorchDispatchMode):
    """Count what goes over the wire."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "c10d" in str(func)
        return func(*args, **(kwargs or {}))


def whole_run(engine: pe.PruneEngine) -> list[dict[str, Any]]:
    """Train all epochs with the engine's loader; return what each was."""
    rows = []
    loader = engine.loader(Numbers(N), SIZE)
    for epoch in engine.epochs():
        plan = engine.plan
        row = {"kept": plan.kept.clone(), "classes": plan.weight_class.clone(), "served": []}
        length = len(loader)
        for x, _, indices in loader:
            assert_bitwise(x, 10 * indices, "data")
            engine.observe(losses_at(indices, epoch), indices)
            row["served"] += indices.tolist()
        assert len(row["served"]) == length * SIZE
        rows.append(row)
    return rows


def check_runs(early: pe.PruneEngine) -> dict[str, Any]:
    """One plan on all ranks; shares that are equal, disjoint and cover what is served."""
    rows = whole_run(early)
    for epoch, row in enumerate(rows):
        others = gathered(row)
        assert_bitwise(others[0]["classes"], others[1]["classes"], "weight classes")
        shares = [other["served"] for other in others]
        union = [index for share in shares for index in share]
        report = early.history[epoch]
        assert len(shares[0]) == len(shares[1])
        assert len(set(union)) == len(union) == report.served == report.observed
        assert set(union) <= set(row["kept"].tolist())
        assert report.missing == report.dropped_tail < WORLD * SIZE
    return {"rows": rows, "records": early.buffer.records, "sum": early.buffer.score_sum}


def check_no_collective_in_a_step(engine: pe.PruneEngine) -> None:
    batch = next(batches(engine.sampler(), SIZE))
    with Collectives() as step:
        observe(engine, batch)
        len(engine.sampler())
        next(iter(engine.sampler()))
    assert step.count == 0
    serve(engine, SIZE)
    with Collectives() as end:
        engine.end_epoch()
    assert 1 <= end.count <= 3, "control: the records, and eight numbers"


def check_double_sharding(rank: int) -> None:
    """A framework that shards the sampler again is caught, on every rank alike."""
    engine = infobatch(N)
    share = list(engine.sampler())[rank::WORLD]
    observe(engine, share)
    with pytest.raises(pe.CoverageError, match="120 of 240"):
        engine.end_epoch()


def check_state(rank: int, folder: Path) -> dict[str, Any]:
    """Save in the middle of an epoch, restore on both ranks, and go on."""
    engine = infobatch(N, EPOCHS)
    serve(engine, SIZE)
    engine.end_epoch()
    mine = list(engine.sampler())
    losses = losses_at(mine[:24], 1)
    losses[0] = math.nan if rank == 1 else losses[0]
    engine.observe(losses, torch.tensor(mine[:24]))
    state = engine.state_dict()
    for other in gathered(state):
        torch.testing.assert_close(other["buffer"], state["buffer"], rtol=0, atol=0)
        assert other["cursor"] == 48
    if rank == 0:
        torch.save(state, folder / "state.pt")
    resumed = infobatch(N, EPOCHS)
    resumed.load_state_dict(state)
    assert list(resumed.sampler()) == mine[24:]
    for each in (engine, resumed):
        each.observe(losses_at(mine[24:], 1), torch.tensor(mine[24:]))
        report = each.end_epoch()
        assert (report.nonfinite, report.observed) == (1, report.served), "counted once"
    assert_bitwise(resumed.plan.indices, engine.plan.indices, "the next order")
    return {"order": engine.plan.indices}


def drawn_ahead(stream: Iterator[list[int]]) -> Iterator[list[int]]:
    """Yield each batch after two more have been drawn, as a loader with workers does."""
    waiting: deque[list[int]] = deque()
    for batch in stream:
        waiting.append(batch)
        if len(waiting) > 2:
            yield waiting.popleft()
    yield from waiting


def check_steps_mode() -> None:
    policy = pe.RandomSubset(0.5, rescale=True)
    engine = pe.PruneEngine(N, policy, mode="steps", total_steps=40, seed=3)
    for _ in range(3):
        sampler = engine.sampler(align=SIZE * WORLD)
        for batch in drawn_ahead(batches(sampler, SIZE)):
            weights = engine.observe(torch.ones(SIZE), torch.tensor(batch), reduction="none")
            assert_bitwise(weights, [2.0] * SIZE, "weights")
    assert len(set(gathered((engine.epoch, engine.cursor)))) == 1
    assert engine.epoch >= 4
    assert all(report.missing == report.dropped_tail for report in engine.history)


def check_merges(rank: int) -> None:
    records = torch.tensor([rank, 5 - rank, 2**62 + rank])
    merge_records(records)
    assert records.tolist() == [1, 5, 2**62 + 1], "exact where a float would not be"
    merged = merge_counters(torch.tensor([rank + 1, rank, 10, 7 - rank]))
    assert merged.tolist() == [3, 1, 20, 6]


def work(rank: int, folder: str) -> None:
    """Run one rank; what it found goes to a file."""
    torch.set_num_threads(1)
    early = infobatch(N, EPOCHS)  # made before the process group is up, as under a launcher
    sampler = early.sampler()
    assert (sampler.rank, sampler.num_replicas) == (0, 1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    assert (sampler.rank, sampler.num_replicas) == (rank, WORLD)
    assert resolve_shard("none") == (0, 1)
    found = check_runs(early)
    check_no_collective_in_a_step(infobatch(N))
    check_double_sharding(rank)
    found["state"] = check_state(rank, Path(folder))
    check_steps_mode()
    check_merges(rank)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()
    # All is checked and written. Once in some twenty runs a rank aborted ("terminate called without
    # an active exception"), presumably while gloo's threads were taken down: not under test.
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the two ranks; their own assertions fail here."""
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(path),), nprocs=WORLD)
    return path


@pytest.fixture(scope="module")
def ranks(folder) -> list[Any]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_two_ranks_are_one_run(ranks):
    engine = infobatch(N, EPOCHS, coverage="ignore")  # it drops the tail that two ranks drop
    for epoch in engine.epochs():
        order = engine.plan.indices.tolist()
        for rank in range(WORLD):
            row = ranks[rank]["rows"][epoch]
            assert_bitwise(row["classes"], engine.plan.weight_class, "weight classes")
            served = len(order) // (SIZE * WORLD) * SIZE * WORLD
            assert row["served"] == order[rank:served:WORLD], "every second position"
        for batch in batches(iter(order[:served]), SIZE):
            observe(engine, batch)
        if epoch == EPOCHS - 1:
            break
        engine.end_epoch()
    assert_bitwise(ranks[0]["records"], engine.buffer.records, "records")
    assert_bitwise(ranks[1]["records"], engine.buffer.records, "records")
    assert_bitwise(ranks[1]["sum"], engine.buffer.score_sum, "sum")


def test_a_state_of_two_ranks_continues_on_one(folder, ranks):
    engine = infobatch(N, EPOCHS, coverage="ignore")
    engine.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    assert_bitwise(list(engine.sampler()), engine.plan.indices[48:], "the rest")
    rest = list(engine.sampler())
    even = len(engine.plan) // WORLD * WORLD - 48  # two ranks leave the odd one out
    observe(engine, rest[:even])
    report = engine.end_epoch()
    assert (report.nonfinite, report.observed) == (1, even + 48)
    assert_bitwise(engine.plan.indices, ranks[0]["state"]["order"], "the next order")


def test_under_accelerate_every_rank_serves_everything(monkeypatch):
    # Accelerate deals the batches out itself; a rank's share would be cut twice.
    module = ModuleType("accelerate.state")
    live: Any = SimpleNamespace(_shared_state={})
    module.AcceleratorState = live
    monkeypatch.setitem(sys.modules, "accelerate.state", module)
    monkeypatch.setattr("prune_engine.distributed.world", lambda group=None: (1, 2))
    assert resolve_shard("auto") == (1, 2), "imported, but not in use"
    live._shared_state["device"] = "cpu"
    assert resolve_shard("auto") == (0, 1)
    assert resolve_shard((1, 2)) == (1, 2), "explicit is explicit"
