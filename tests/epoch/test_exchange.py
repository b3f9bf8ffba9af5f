# SPDX-License-Identifier: Apache-2.0
"""The exchange: exact by pairs and by all-reduce, few bytes, one per epoch, any world size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _ranks import Ranks
from _runs import N, batches, figures, infobatch, losses_at, observe
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.epoch import ranks

WORLDS = [1, 2, 3, 4, 8]
GLOBAL_BATCH = 24  # of 24, 12, 8, 6 and 3 samples a rank


def train(size: int, n: int = 480, epochs: int = 5, **options: Any) -> tuple[list[Any], Ranks]:
    """Train in a world of threads; return each rank's plans, figures and records, and the world."""
    ranks = Ranks(size)

    def work(rank: int) -> dict[str, Any]:
        engine = infobatch(n, epochs + 1, **options)
        plans = []
        for _ in range(epochs):
            plans.append((engine.plan.weight_class.clone(), engine.plan.indices))
            share = batches(engine.sampler(align=GLOBAL_BATCH), GLOBAL_BATCH // size)
            before = len(ranks.logs[rank])
            for batch in share:
                observe(engine, batch)
            assert len(ranks.logs[rank]) == before, "no collective in a step"
            engine.end_epoch()
        return {
            "plans": plans,
            "figures": figures(engine),
            "records": engine.buffer.records,
            "sum": engine.buffer.score_sum,
        }

    return ranks.run(work), ranks


@pytest.mark.parametrize("size", WORLDS[1:])
def test_every_world_size_makes_the_same_plans_at_the_same_global_batch(size):
    (alone,), _ = train(1)
    several, _ = train(size)
    for rank in several:
        for (classes, order), (want_classes, want_order) in zip(
            rank["plans"], alone["plans"], strict=True
        ):
            assert_bitwise(classes, want_classes, "weight classes")
            assert_bitwise(order, want_order, "order")
        assert_bitwise(rank["records"], alone["records"], "records")
        assert_bitwise(rank["sum"], alone["sum"], "sum")
        assert rank["figures"] == alone["figures"]


def test_control_another_global_batch_is_another_run():
    (alone,), _ = train(1, n=470)  # 470 = 19 * 24 + 14: a tail is dropped, another one by 1
    whole = infobatch(470, 6)
    for batch in batches(whole.sampler(), GLOBAL_BATCH):
        observe(whole, batch)
    whole.end_epoch()
    assert not torch.equal(whole.plan.weight_class, alone["plans"][1][0])


def test_one_exchange_per_epoch_a_row_of_numbers_and_the_changed_records():
    n, epochs, size = 480, 5, 4
    (first, *_), ranks = train(size, n, epochs)
    log = ranks.logs[0]
    assert [name for name, _ in log] == ["all_gather", "all_gather"] * epochs
    for (_, row), (_, pairs), (_, order) in zip(log[::2], log[1::2], first["plans"], strict=True):
        assert row == (size - 1) * 13 * 8, "5 facts, 5 counters, what was seen, 1 count"
        served = len(order) // GLOBAL_BATCH * GLOBAL_BATCH
        assert pairs == 8 * served * (size - 1) / size, "8 bytes a sample that others trained"
        assert pairs < 2 * 8 * n * (size - 1) / size, "what an all-reduce takes"


def test_control_one_more_collective_in_a_step_is_seen():
    def work(rank: int) -> None:
        engine = infobatch(48)
        observe(engine, list(engine.sampler())[:2])
        engine.state_dict()

    ranks = Ranks(2)
    ranks.run(work)
    assert [len(log) for log in ranks.logs] == [2, 2]


@given(
    n=st.integers(0, 70),
    size=st.sampled_from(WORLDS[1:]),
    share=st.floats(0, 1.5),
    block=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 2**32),
)
def test_pairs_and_all_reduce_give_the_same_records(n, size, share, block, seed):
    generator = torch.Generator().manual_seed(seed)
    epoch = 5
    base = torch.randint(0, 2**34, (n,), generator=generator) % ((epoch + 1) << 32)
    mine = []
    for _ in range(size):  # several ranks may have the same sample, with other keys
        news = ((epoch + 1) << 32) | torch.randint(0, 2**32, (n,), generator=generator)
        mine.append(torch.where(torch.rand(n, generator=generator) < share / size, news, base))
    want = torch.stack(mine).amax(dim=0)

    def merged(choice: bool | None) -> list[torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "BLOCK", block)
            if choice is not None:
                patch.setattr(ranks, "pairs_are_fewer_bytes", lambda *_: choice)

            def work(rank: int) -> torch.Tensor:
                records, counters = mine[rank].clone(), torch.zeros(5, dtype=torch.int64)
                for _ in range(2):  # a retry changes nothing
                    ranks.exchange(records, counters, epoch=epoch, facts={"x": 1})
                return records

            return Ranks(size).run(work)

    for choice in (True, False, None):
        for records in merged(choice):
            assert_bitwise(records, want, f"records by {choice}")


def test_counters_are_summed_and_the_smallest_bad_index_is_kept():
    def work(rank: int) -> list[int]:
        counters = torch.tensor([rank + 1, rank, 10, 7 - rank, 2 * rank])
        records = torch.zeros(3, dtype=torch.int64)
        merged = ranks.exchange(records, counters, epoch=0, facts={})
        assert counters.tolist() == [rank + 1, rank, 10, 7 - rank, 2 * rank], "not changed"
        return merged.tolist()

    assert Ranks(3).run(work) == [[6, 3, 30, 5, 6]] * 3


# --- ranks that are not at one point ------------------------------------------------------------


def apart(rank: int) -> pe.PruneEngine:
    engine = infobatch(48)
    for batch in batches(engine.sampler(align=4), 2):
        observe(engine, batch)
    return engine


def refused(work: Any) -> str:
    ranks = Ranks(2)
    messages = []

    def guarded(rank: int) -> None:
        with pytest.raises(pe.PruneEngineError) as caught:
            work(rank)
        messages.append(str(caught.value))

    ranks.run(guarded)
    assert messages[0] == messages[1], "all ranks raise, and alike"
    return messages[0]


def test_edge_case_11_a_rank_that_ended_its_epoch_alone_is_named():
    def work(rank: int) -> None:
        engine = apart(rank)
        if rank == 0:
            engine.end_epoch()
        else:
            engine.state_dict()

    assert "caller is 0 on rank 0, 1 on rank 1" in refused(work)


def test_a_state_of_ranks_that_trained_different_numbers_of_batches_is_refused():
    def work(rank: int) -> None:
        engine = infobatch(48)
        for batch in list(batches(engine.sampler(align=4), 2))[: 3 + rank]:
            observe(engine, batch)
        before = engine.buffer.records.clone()
        try:
            engine.state_dict()
        finally:
            assert_bitwise(engine.buffer.records, before, "records")

    assert "cursor is 12 on rank 0, 16 on rank 1" in refused(work)


def test_ranks_with_engines_of_different_seeds_are_refused():
    def work(rank: int) -> None:
        engine = infobatch(48, seed=rank)
        engine.observe(losses_at([rank]), torch.tensor([rank]))
        engine.end_epoch()

    assert "checksum of arguments is" in refused(work)


def test_flow_ranks_share_one_threshold():
    # The plan made ahead is decided by the sum of all ranks' scores, not of one's.
    def work(rank: int) -> list[torch.Tensor]:
        engine = pe.PruneEngine(N, pe.InfoBatch(0.5, delta=1.0), mode="flow", num_epochs=9, seed=3)
        found = []
        for _ in range(4):
            for batch in batches(engine.sampler(align=20), 10):
                epoch = engine.epoch
                engine.observe(losses_at(batch, engine.epoch), torch.tensor(batch))
                if engine.epoch > epoch:
                    found.append(engine.plan.weight_class.clone())
        assert engine.epoch > 3
        return found

    first, second = Ranks(2).run(work)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert_bitwise(one, other, "weight classes")
