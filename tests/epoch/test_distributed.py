# SPDX-License-Identifier: Apache-2.0
"""Two and three gloo ranks: one plan, shares that add up to it, one state, one exchange."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from _assertions import assert_bitwise
from _collectives import Collectives
from _processes import start_ranks
from _runs import Numbers, batches, infobatch, losses_at, observe, serve

import prune_engine as pe
from prune_engine.epoch.ranks import exchange, resolve_shard

N, SIZE, EPOCHS = 240, 12, 4
WORLDS = (2, 3)
pytestmark = pytest.mark.distributed


def gathered(value: Any) -> list[Any]:
    """Return every rank's value."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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
        for other in others:
            assert_bitwise(other["classes"], row["classes"], "weight classes")
        shares = [other["served"] for other in others]
        union = [index for share in shares for index in share]
        report = early.history[epoch]
        assert len({len(share) for share in shares}) == 1
        assert len(set(union)) == len(union) == report.served == report.observed
        assert set(union) <= set(row["kept"].tolist())
        assert report.missing == report.dropped_tail < len(shares) * SIZE
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
    assert end.count == 2, "control: a row of numbers, and the changed records"


def check_double_sharding(rank: int) -> None:
    """A framework that shards the sampler again is caught, on every rank alike."""
    engine = infobatch(N)
    size = dist.get_world_size()
    share = list(engine.sampler())[rank::size]
    observe(engine, share)
    with pytest.raises(pe.CoverageError, match=f"{N - N // size} of {N}"):
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
        assert other["cursor"] == 24 * dist.get_world_size()
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


def check_flow() -> None:
    policy = pe.RandomSubset(0.5, rescale=True)
    engine = pe.PruneEngine(N, policy, mode="flow", num_epochs=9, seed=3, horizon=0.0)
    for _ in range(3):
        sampler = engine.sampler(align=SIZE * dist.get_world_size())
        for batch in drawn_ahead(batches(sampler, SIZE)):
            weights = engine.observe(torch.ones(SIZE), torch.tensor(batch), reduction="none")
            assert_bitwise(weights, [2.0] * SIZE, "weights")
    assert len(set(gathered((engine.epoch, engine.cursor)))) == 1
    assert engine.epoch >= 4
    assert all(report.missing == report.dropped_tail for report in engine.history)


def check_habits(rank: int, size: int) -> None:
    """Look twice, break an epoch off, grow, train everything on each rank."""
    engine, plain = infobatch(N, EPOCHS), infobatch(N, EPOCHS)
    for epoch in range(2):
        for batch, same in zip(
            batches(engine.sampler(), SIZE), batches(plain.sampler(), SIZE), strict=True
        ):
            assert batch == same
            losses, indices = losses_at(batch, epoch), torch.tensor(batch)
            for part in (slice(None), slice(None), slice(0, 5), slice(5, None)):
                engine.observe(losses[part], indices[part])
            observe(plain, same)
            assert engine.cursor == plain.cursor
        reports = engine.end_epoch(), plain.end_epoch()
        assert reports[0].served == reports[1].served
        assert_bitwise(engine.plan.indices, plain.plan.indices, "order")
    observe(engine, next(batches(engine.sampler(), SIZE)))
    report = engine.end_epoch(partial=True)
    assert (report.served, report.partial) == (size * SIZE, True)
    engine.resize(N + 12)
    serve(engine, SIZE)
    assert engine.end_epoch().num_samples == N + 12
    every = infobatch(N)
    for batch in batches(every.sampler(shard="none"), SIZE):
        observe(every, batch)
    with pytest.raises(pe.CoverageError, match="every rank trains all samples"):
        every.end_epoch()


def check_exchange(rank: int) -> None:
    """The same by pairs and by all-reduce: exact where a float would not be."""
    size, floor = dist.get_world_size(), 2**62
    for few in (True, False):
        mine = torch.zeros(6 * size, dtype=torch.int64)
        mine[rank if few else slice(rank, None)] = floor + rank + 1
        told = torch.tensor([rank + 1, rank, 10, 7 - rank, 2])
        with Collectives() as seen:
            merged = exchange(mine, told, epoch=2**30 - 1, facts={"few": few})
        assert seen.count == 2
        want = [floor + min(at, size - 1) + 1 for at in range(6 * size)]
        want[size if few else 6 * size :] = [0] * (5 * size if few else 0)
        assert mine.tolist() == want
        assert merged.tolist()[2:] == [10 * size, 8 - size, 2 * size]


def work(rank: int, size: int, folder: str) -> None:
    """Run one rank; what it found goes to a file."""
    early = infobatch(N, EPOCHS)  # made before the process group is up, as under a launcher
    sampler = early.sampler()
    assert (sampler.rank, sampler.num_replicas) == (0, 1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    assert (sampler.rank, sampler.num_replicas) == (rank, size)
    assert resolve_shard("none") == (0, 1)
    found = check_runs(early)
    check_no_collective_in_a_step(infobatch(N))
    check_double_sharding(rank)
    found["state"] = check_state(rank, Path(folder))
    check_flow()
    check_habits(rank, size)
    check_exchange(rank)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module", params=WORLDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the ranks; their own assertions fail here."""
    path = tmp_path_factory.mktemp("ranks")
    codes = start_ranks(work, request.param, str(path)).join()
    assert codes == [0] * request.param
    return path


@pytest.fixture(scope="module")
def ranks(folder) -> list[Any]:
    files = sorted(folder.glob("rank*.pt"))
    return [torch.load(file, weights_only=True) for file in files]


def test_ranks_are_one_run(ranks):
    size = len(ranks)
    engine = infobatch(N, EPOCHS, coverage="ignore")  # it drops the tail that the ranks drop
    for epoch in engine.epochs():
        order = engine.plan.indices.tolist()
        for rank in range(size):
            row = ranks[rank]["rows"][epoch]
            assert_bitwise(row["classes"], engine.plan.weight_class, "weight classes")
            served = len(order) // (SIZE * size) * SIZE * size
            assert row["served"] == order[rank:served:size], "every second or third position"
        for batch in batches(iter(order[:served]), SIZE):
            observe(engine, batch)
        if epoch == EPOCHS - 1:
            break
        engine.end_epoch()
    for rank in ranks:
        assert_bitwise(rank["records"], engine.buffer.records, "records")
        assert_bitwise(rank["sum"], engine.buffer.score_sum, "sum")


def test_a_state_of_several_ranks_continues_on_one(folder, ranks):
    done = 24 * len(ranks)
    engine = infobatch(N, EPOCHS, coverage="ignore")
    engine.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    assert_bitwise(list(engine.sampler()), engine.plan.indices[done:], "the rest")
    rest = list(engine.sampler())
    even = len(engine.plan) // len(ranks) * len(ranks) - done  # they leave the odd one out
    observe(engine, rest[:even])
    report = engine.end_epoch()
    assert (report.nonfinite, report.observed) == (1, even + done)
    assert_bitwise(engine.plan.indices, ranks[0]["state"]["order"], "the next order")


def test_under_accelerate_every_rank_serves_everything(monkeypatch):
    # Accelerate deals the batches out itself; a rank's share would be cut twice.
    module = ModuleType("accelerate.state")
    live: Any = SimpleNamespace(_shared_state={})
    module.AcceleratorState = live
    monkeypatch.setitem(sys.modules, "accelerate.state", module)
    monkeypatch.setattr("prune_engine.epoch.ranks.world", lambda group=None: (1, 2))
    assert resolve_shard("auto") == (1, 2), "imported, but not in use"
    live._shared_state["device"] = "cpu"
    assert resolve_shard("auto") == (0, 1)
    assert resolve_shard((1, 2)) == (1, 2), "explicit is explicit"
