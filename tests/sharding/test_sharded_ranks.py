# SPDX-License-Identifier: Apache-2.0
"""Divided scores over real gloo ranks: what threads stand for in test_sharded.py."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _assertions import assert_bitwise
from _collectives import Collectives
from _processes import start_ranks
from _runs import figures
from test_sharded import assert_same, engine_of, interleaved, train_epoch, undivided

pytestmark = pytest.mark.distributed


def work(rank: int, size: int, folder: str) -> None:
    """Train on one rank; what it came to goes to a file."""
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    engine, rows = engine_of(), []
    for _ in engine.epochs():
        with Collectives() as steps:
            rows.append(train_epoch(engine, size))
        assert steps.count == 0, "no collective in a step"
        with Collectives() as end:
            engine.end_epoch()
        assert end.count == 6, "control: the exchanges of an epoch's end"
    found = {"rows": rows, "figures": figures(engine), "records": engine.buffer.records}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()


@pytest.mark.parametrize("size", [2, 3])
def test_gloo_ranks_train_what_one_process_does(size, tmp_path):
    assert start_ranks(work, size, str(tmp_path)).join() == [0] * size
    ranks = [torch.load(tmp_path / f"rank{q}.pt", weights_only=True) for q in range(size)]
    want = undivided("infobatch")
    got = {
        "rows": [
            interleaved([rank["rows"][e] for rank in ranks]) for e in range(len(want["rows"]))
        ],
        "figures": [rank["figures"] for rank in ranks],
        "records": torch.cat([rank["records"] for rank in ranks]),
    }
    assert_same(got, want)


def save_and_restore(rank: int, size: int, folder: str) -> None:
    """Hand a divided engine to torch.distributed.checkpoint; go on from there in another one."""
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    engine, again = engine_of(), engine_of()
    train_epoch(engine, size)
    engine.end_epoch()
    train_epoch(engine, size, stop=5)
    dcp.save({"engine": engine}, checkpoint_id=f"{folder}/parts")
    dcp.load({"engine": again}, checkpoint_id=f"{folder}/parts")
    assert again.cursor == engine.cursor > 0
    assert_bitwise(again.buffer.records, engine.buffer.records, "records")
    for _ in range(2):
        assert train_epoch(again, size) == train_epoch(engine, size)
        assert figures(again) == figures(engine)
        again.end_epoch()
        engine.end_epoch()
    dist.barrier()


def test_a_checkpoint_of_torch_distributed_holds_every_ranks_part(tmp_path):
    assert start_ranks(save_and_restore, 2, str(tmp_path)).join() == [0, 0]
