# SPDX-License-Identifier: Apache-2.0
"""Every collective of the library on one rank: over gloo everywhere, over NCCL where a GPU is.

Alone a rank calls no collective; here it is told that it is not alone. Asked for by ``-m cuda``,
the tests of NCCL fail without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from _assertions import assert_bitwise
from _collectives import Collectives
from _runs import figures, losses_at, through_disk

import prune_engine as pe
from prune_engine.epoch import ranks

N, SIZE, EPOCHS = 5000, 100, 3

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(params=["gloo", pytest.param("nccl", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Join a world of one rank that takes itself for one of several; return its device."""
    where = "cuda" if request.param == "nccl" else "cpu"
    if where == "cuda" and not torch.cuda.is_available():
        pytest.fail("these tests need a GPU, and torch finds none")
    dist.init_process_group(request.param, store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(ranks, "alone", lambda group=None: False)
    yield where
    dist.destroy_process_group()


def train(device: str, *, resume: bool = False, **options: Any) -> dict[str, Any]:
    """Train known losses; count the collectives of each epoch's steps and of its end."""
    engine = made = pe.PruneEngine(
        N, pe.InfoBatch(0.5, delta=1.0), num_epochs=EPOCHS, seed=2, device=device, **options
    )
    orders, counts = [], []
    for epoch in range(EPOCHS):
        if resume and epoch == 1:
            engine = pe.PruneEngine(
                N, made.policy, num_epochs=EPOCHS, seed=2, device=device, **options
            )
            engine.load_state_dict(through_disk(made.state_dict()))
        orders.append(engine.plan.indices.to("cpu", torch.int64))
        batches = engine.plan.batches(SIZE, range(len(orders[-1])), dtype=torch.int64)
        with Collectives() as steps:
            for batch in batches:
                engine.observe(losses_at(batch.cpu(), epoch).to(device), batch)
        with Collectives() as end:
            engine.end_epoch()
        counts.append((steps.count, end.count))
    return {
        "orders": orders,
        "records": engine.buffer.records.cpu(),
        "figures": figures(engine),
        "counts": counts,
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """Train without any process group, on the cpu."""
    return train("cpu")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("divided", "ends"), [(False, 2), (True, 6)])
def test_a_run_through_the_collectives_is_the_run_without(plain, device, divided, ends, resume):
    found = train(device, resume=resume, shard_scores=divided)
    for ours, theirs in zip(found["orders"], plain["orders"], strict=True):
        assert_bitwise(ours, theirs, "order")
    assert_bitwise(found["records"], plain["records"], "records")
    assert found["figures"] == plain["figures"]
    assert found["counts"] == [(0, ends)] * EPOCHS
    assert plain["counts"] == [(0, 0)] * EPOCHS, "control: alone there are none"


@pytest.mark.parametrize("few", [True, False], ids=["pairs", "all-reduce"])
def test_an_exchange_with_oneself_changes_nothing(device, few, monkeypatch):
    monkeypatch.setattr(ranks, "pairs_are_fewer_bytes", lambda *_: few)
    records = (torch.arange(9, dtype=torch.int64) + (4 << 32)).to(device)
    counters = torch.tensor([3, 2, 1, 0, 4], device=device)
    with Collectives() as seen:
        merged = ranks.exchange(records, counters, epoch=3, facts={"epoch": 3})
    assert seen.count == 2
    assert_bitwise(records.cpu(), torch.arange(9) + (4 << 32), "records")
    assert merged.tolist() == [3, 2, 1, 0, 4]
