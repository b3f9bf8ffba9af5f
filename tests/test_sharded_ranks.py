# SPDX-License-Identifier: Apache-2.0
"""Divided scores over real gloo ranks: what threads stand for in test_sharded.py."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from _processes import start_ranks
from _runs import figures
from test_distributed import Collectives
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
