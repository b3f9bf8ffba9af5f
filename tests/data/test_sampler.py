# SPDX-License-Identifier: Apache-2.0
"""PruneSampler: shares of one global order, exact lengths, restartable, no list of length N."""

from __future__ import annotations

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, batches, epochs, infobatch, observe, serve
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler

import prune_engine as pe
from prune_engine.epoch.plan import serve_count

WORLDS = [1, 2, 3, 7]


def pruned(n: int = N, **options) -> pe.PruneEngine:
    """Return an engine in its second epoch, which drops some samples."""
    engine = infobatch(n, **options)
    epochs(engine, 1)
    return engine


def test_yields_python_ints_in_the_order_of_the_plan():
    engine = pruned()
    served = list(engine.sampler())
    assert all(type(index) is int for index in served), "frameworks add them to lists"
    assert_bitwise(served, engine.plan.indices, "order")
    assert served != sorted(served), "control: the order is shuffled"


def test_iterating_is_restartable_and_has_no_side_effect():
    engine = pruned()
    sampler = engine.sampler()
    first = list(sampler)
    broken_off = iter(sampler)
    next(broken_off)
    assert list(sampler) == first == list(engine.sampler())
    assert engine.cursor == 0
    two = [iter(sampler), iter(sampler)]
    assert [next(two[0]), next(two[1]), next(two[0])] == [first[0], first[0], first[1]]


def test_is_left_alone_by_frameworks_that_know_distributed_samplers():
    sampler = pruned().sampler()
    assert isinstance(sampler, DistributedSampler)
    assert iter(sampler) is not sampler, "a generator: BatchSampler may call iter() again"
    assert list(BatchSampler(sampler, 16, drop_last=False)) == list(batches(sampler, 16))


@given(
    n=st.integers(0, 400),
    world=st.sampled_from(WORLDS),
    align=st.sampled_from([1, 2, 8, 32, 500]),
    seed=st.integers(0, 99),
)
def test_ranks_are_equal_disjoint_and_cover_a_prefix(n, world, align, seed):
    engine = infobatch(n, seed=seed)
    if n:
        epochs(engine, 1)
    shares = [engine.sampler(shard=(rank, world), align=align) for rank in range(world)]
    lists = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(taken) for taken in lists]
    assert len({len(taken) for taken in lists}) == 1, "no rank waits for another"
    order = engine.plan.indices.tolist()
    served = serve_count(len(order), align, world)
    dealt = [lists[position % world][position // world] for position in range(served)]
    assert dealt == order[:served]
    assert sum(map(len, lists)) == served


@given(kept=st.integers(0, 10_000), align=st.integers(1, 600), world=st.integers(1, 9))
def test_serve_count_is_whole_batches_or_as_much_as_ranks_can_share(kept, align, world):
    served = serve_count(kept, align, world)
    assert served <= kept
    assert served % world == 0
    if kept >= align * world:
        assert served % align == 0
        assert kept - served < align * world
    if kept >= world:
        assert served > 0, "an epoch is not lost because it is small"


def test_align_keeps_every_batch_full_on_every_rank():
    engine = pruned(1000)
    for rank in range(2):
        taken = list(batches(engine.sampler(shard=(rank, 2), align=64), 32))
        assert {len(batch) for batch in taken} == {32}
    loose = list(batches(engine.sampler(shard=(0, 2)), 32))
    assert len(loose[-1]) < 32, "control: without it the last batch is short"


def test_length_is_right_at_every_moment():
    engine = infobatch()
    sampler = engine.sampler()
    lengths = []
    for _ in range(3):
        lengths.append(len(sampler))
        assert len(list(sampler)) == lengths[-1]
        serve(engine)
        assert len(sampler) == lengths[-1], "an epoch's length stays until the epoch ends"
        engine.end_epoch()
    assert lengths[0] == N > lengths[1] != lengths[2]


def test_set_epoch_is_idempotent_and_plans_nothing():
    engine = pruned()
    sampler = engine.sampler()
    plan, order = engine.plan, list(sampler)
    for epoch in (1, 1, 0):  # a framework may set it twice, or start from 0 again
        sampler.set_epoch(epoch)
    assert engine.plan is plan
    assert list(sampler) == order
    assert sampler.epoch == 1


def test_attributes_that_frameworks_read():
    engine = pruned()
    sampler = engine.sampler(shard=(1, 3), align=12)
    assert (sampler.rank, sampler.num_replicas) == (1, 3)
    assert sampler.total_size == engine.plan.num_kept // 12 * 12
    assert sampler.num_samples == len(sampler) == sampler.total_size // 3


def test_state_is_the_consumed_cursor_not_the_drawn_one():
    engine = pruned()
    sampler = engine.sampler()
    order = list(sampler)
    stream = batches(sampler, 10)
    drawn = [next(stream), next(stream), next(stream)]
    observe(engine, drawn[0])
    observe(engine, drawn[1])
    state = sampler.state_dict()
    assert state == {"epoch": 1, "cursor": 20}
    resumed = pruned()
    resumed.sampler().load_state_dict(state)
    assert list(resumed.sampler()) == order[20:]
    assert len(resumed.sampler()) == len(order) - 20


def test_state_of_another_epoch_is_refused():
    engine = pruned()
    with pytest.raises(ValueError, match=r"epoch 1.*got 4.*restore the engine first"):
        engine.sampler().load_state_dict({"epoch": 4, "cursor": 0})


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_edge_case_10_shard_out_of_range(shard):
    with pytest.raises(ValueError, match="shard"):
        infobatch().sampler(shard=shard)


@pytest.mark.parametrize("align", [0, -4])
def test_edge_case_10_align_out_of_range(align):
    with pytest.raises(ValueError, match="align"):
        infobatch().sampler(align=align)


def test_shard_none_serves_everything():
    engine = pruned()
    assert list(engine.sampler(shard="none")) == engine.plan.indices.tolist()
    assert set(engine.sampler(shard=(0, 2))) < set(engine.plan.indices.tolist()), "control"


def test_many_chunks_are_one_order():
    engine = pe.PruneEngine(50_000, pe.KeepAll(), num_epochs=1)
    assert_bitwise(list(engine.sampler()), engine.plan.indices, "order")
    thirds = [list(engine.sampler(shard=(rank, 3))) for rank in range(3)]
    stacked = torch.tensor(thirds).t().reshape(-1)
    assert_bitwise(stacked.int(), engine.plan.indices[:49_998], "order of three ranks")


@pytest.mark.parametrize("drawn", [0, 16_383, 16_384, 16_385, 20_000, 25_000])
def test_a_pass_knows_its_position_across_chunks_and_on_every_rank(drawn):
    engine = pe.PruneEngine(50_000, pe.KeepAll(), num_epochs=1)
    sampler = engine.sampler(shard=(1, 2))
    whole, broken_off, resumed = list(sampler), iter(sampler), iter(sampler)
    assert [next(broken_off) for _ in range(drawn)] == whole[:drawn]
    state = broken_off.state_dict()
    assert state == {"epoch": 0, "position": 2 * drawn, "left": 50_000 - 2 * drawn}
    resumed.load_state_dict(state)
    assert list(resumed) == whole[drawn:]
