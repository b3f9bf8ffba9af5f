# SPDX-License-Identifier: Apache-2.0
"""What divided scores cannot do is refused, at once and by name; edges of what they can."""

from __future__ import annotations

import pytest
import torch
from _assertions import assert_bitwise
from _ranks import Ranks
from _runs import batches, observe
from test_sharded import N, engine_of, train_epoch

import prune_engine as pe


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (pe.InfoBatch(0.5, sampling="fixed"), {}),
        (pe.RandomSubset(0.5, static=True), {}),
        (pe.RandomSubset(0.5, sampling="fixed"), {}),
        (pe.InfoBatchQuantile(), {}),
        (pe.Budget(0.4), {}),
        (pe.UCB(), {}),
        (pe.EpsilonGreedy(), {}),
        (pe.BPAS(10), {}),
        (pe.RandomBatches(10, target_dsi=0.4), {}),
        (pe.KeepAll(), {"mode": "flow"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_shard_cannot_decide_is_refused_at_once(policy, options):
    with pytest.raises(ValueError, match="where the scores are divided"):
        pe.PruneEngine(100, policy, num_epochs=4, shard_scores=True, **options)


def test_a_sample_of_another_rank_is_refused_and_nothing_is_written():
    def work(rank: int) -> None:
        engine = engine_of()
        mine = list(engine.sampler())
        theirs = int((engine.plan.kept == mine[0]).sum()) and next(
            i for i in range(N) if i not in set(mine)
        )
        share = engine.buffer.share
        assert share is not None
        for bad in (theirs, N, -1):
            with pytest.raises(IndexError, match=f"this rank was served in the epoch, got {bad}"):
                engine.observe(torch.ones(2), torch.tensor([mine[0], bad]))
        assert not share.records.any()
        assert engine.cursor == 0

    Ranks(2).run(work)


def test_what_a_device_skipped_and_counted_is_raised_when_the_epoch_ends():
    # On a device a sample of another rank has the place -1, which observe skips and counts.
    engine = engine_of()
    share = engine.buffer.share
    assert share is not None
    assert share.find(torch.tensor([N, 0])).tolist() == [-1, 0]
    train_epoch(engine, 1)
    engine.buffer.counters[2:4] = torch.tensor([3, -1])
    with pytest.raises(IndexError, match="was served in the epoch: 3 were not in epoch 0"):
        engine.end_epoch()


def test_a_framework_that_deals_out_the_batches_is_refused():
    def work(rank: int) -> None:
        engine = engine_of()
        with pytest.raises(pe.PruneEngineError, match="serve its own share, got a sampler of 1"):
            iter(engine.sampler(shard="none"))
        other = range(1 - rank, 20, 2)
        with pytest.raises(pe.PruneEngineError, match="knows its own positions"):
            engine.plan.order(other)
        with pytest.raises(pe.PruneEngineError, match="knows its own positions"):
            engine.plan.order(torch.tensor([*other]))
        own = range(rank, 20, 2)
        assert_bitwise(engine.plan.order(torch.tensor([*own])), engine.plan.order(own), "order")
        assert_bitwise(engine.plan.order(own[::-1]), engine.plan.order(own).flip(0), "reversed")
        assert engine.plan.order(range(0)).shape == (0,)

    Ranks(2).run(work)


def test_ranks_that_come_after_the_engine_are_refused():
    early = engine_of()  # of one rank: no process group is up yet

    def work(rank: int) -> None:
        with pytest.raises(pe.PruneEngineError, match="make the engine after init_process_group"):
            early.end_epoch()

    Ranks(2).run(work)


def test_what_needs_all_scores_or_the_last_ones_says_so():
    engine = engine_of()
    batch = torch.tensor(list(engine.sampler())[:3])
    with pytest.raises(pe.PruneEngineError, match="'forgetting' needs"):
        engine.cross_entropy_observe(torch.ones(3, 4), batch % 4, batch, score="forgetting")
    with pytest.raises(pe.PruneEngineError, match="its reducer needs"):
        engine.observe(torch.ones(()), batch, reducer=pe.losses.BatchScalar())
    with pytest.raises(pe.PruneEngineError, match="percentiles cannot be known"):
        engine.buffer.percentiles([50])
    with pytest.raises(pe.PruneEngineError, match="before its epoch's plan"):
        pe.sharding.ShardedBuffer(5, (0, 1)).observe(torch.ones(1), torch.tensor([0]))


def test_logits_are_scored_into_the_share():
    engine, plain = engine_of(), engine_of(divided=False)
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    for each in (engine, plain):
        batch = torch.tensor(list(each.sampler())[:30])
        each.cross_entropy_observe(logits, batch % 4, batch)
        observe(each, list(each.sampler()))
        each.end_epoch()
    assert_bitwise(engine.buffer.records, plain.buffer.records, "records")
    assert_bitwise(engine.scores(), plain.scores(), "scores")


def test_a_data_set_smaller_than_a_block_has_one_owner():
    def work(rank: int) -> list[int]:
        engine = pe.PruneEngine(10, pe.InfoBatch(0.5, delta=1.0), num_epochs=3, shard_scores=True)
        for _ in engine.epochs():
            for batch in batches(engine.sampler(), 3):
                observe(engine, batch)
        assert len(engine.buffer.owned) == (10 if rank == 2 else 0)
        assert engine.plan.num_samples == len(engine.dataset(range(10))) == 10
        return [report.served for report in engine.history]

    found = Ranks(3).run(work)
    assert found[0] == found[1] == found[2]
    assert found[0][0] == 9
