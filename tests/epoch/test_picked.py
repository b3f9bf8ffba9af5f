# SPDX-License-Identifier: Apache-2.0
"""A step that trains some of its batch: all of it counts, and the loss is that of the picked."""

from __future__ import annotations

import math

import pytest
import torch
from _assertions import assert_bitwise
from _ranks import Ranks
from torch._dynamo.testing import CompileCounter

import prune_engine as pe

SIZE = 16


def engine_of(policy: pe.policies.Policy | None = None, **options: object) -> pe.PruneEngine:
    policy = pe.KeepAll() if policy is None else policy
    return pe.PruneEngine(64, policy, num_epochs=4, seed=9, **options)


def losses_of(epoch: int, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(epoch)
    return torch.rand(size, generator=generator) + 0.1


def test_the_loss_is_that_of_the_picked_and_its_gradient_unbiased_weights():
    engine, x = engine_of(), losses_of(0)[:SIZE].requires_grad_()
    picked = engine.pick(x, 4)
    losses = 2 * x[picked[0]]
    loss = engine.observe(losses, torch.arange(SIZE), picked=picked, score=x)
    assert loss.item() == pytest.approx((picked[1] * losses).sum().item() / SIZE)
    loss.backward()
    want = torch.zeros(SIZE).index_copy(0, picked[0].long(), picked[1] * 2 / SIZE)
    torch.testing.assert_close(x.grad, want)
    assert_bitwise(engine.scores()[:SIZE], x.detach(), "all of the batch is scored")


def test_classes_weigh_as_in_any_step():
    engine = engine_of(pe.InfoBatch(prune_ratio=0.5, delta=1.0))
    for start in range(0, 64, SIZE):
        engine.observe(losses_of(0)[start : start + SIZE], torch.arange(start, start + SIZE))
    engine.end_epoch()
    indices = engine.plan.indices[:8].long()
    values = losses_of(1)[indices]
    picked = engine.pick(values, 3)
    got = engine.observe(values[picked[0]], indices, picked=picked, score=values, reduction="none")
    weight = engine.plan.weights[indices][picked[0]]
    assert set(engine.plan.weights.tolist()) == {0.0, 1.0, 2.0}
    assert_bitwise(got, values[picked[0]] * (weight * picked[1]), "weighed twice")


@pytest.mark.parametrize("scored", [True, False], ids=["scored", "not scored"])
def test_an_epoch_of_picks_is_covered_and_scores_what_was_seen(scored):
    engine = engine_of(coverage="raise")
    for epoch in range(3):
        before, seen = engine.scores(), torch.zeros(64, dtype=torch.bool)
        for start in range(0, 64, SIZE):
            indices = torch.arange(start, start + SIZE)
            values = losses_of(epoch)[indices]
            picked = engine.pick(values, 4)
            seen[indices[picked[0]]] = True
            engine.observe(
                values[picked[0]], indices, picked=picked, score=values if scored else None
            )
        assert engine.cursor == 64
        assert engine.steps == 4 * (epoch + 1)
        everyone = seen | scored
        want = torch.where(everyone, losses_of(epoch), before)
        assert_bitwise(engine.scores(), want, "scores")
        report = engine.end_epoch()
        assert (report.observed, report.missing, report.extra) == (64, report.nonfinite, 0)
        assert report.nonfinite == int(want.isnan().sum())


def test_control_without_it_the_rest_is_missing():
    engine = engine_of(coverage="raise")
    values = losses_of(0)
    picked = engine.pick(values, 16)
    engine.observe(values[picked[0]], picked[0])
    with pytest.raises(pe.CoverageError):
        engine.end_epoch()


def test_what_fills_up_weighs_nothing_even_where_its_loss_is_nan():
    engine = engine_of()
    values = torch.tensor([math.nan, 1.0, math.nan, 3.0])
    picked = engine.pick(values, 3)
    assert picked[1].tolist() == [0.0, 1.0, 1.0]
    loss = engine.observe(values[picked[0]], torch.arange(4), picked=picked, score=values)
    assert loss.item() == 1.0


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_pick_as_many_of_their_own_and_the_epoch_is_covered(world):
    def work(rank):
        engine = pe.PruneEngine(48, pe.KeepAll(), num_epochs=2, seed=9)
        chosen = []
        for step in range(48 // (8 * world)):
            indices = engine.plan.indices[rank::world][8 * step : 8 * step + 8].long()
            picked = engine.pick(torch.ones(8), 3, rule="random")
            chosen.append(picked[0].tolist())
            values = indices.float()
            engine.observe(values[picked[0]], indices, picked=picked, score=values)
        report = engine.end_epoch()
        assert (report.observed, report.missing, report.extra) == (48, 0, 0)
        return chosen, engine.scores()

    results = Ranks(world).run(work)
    assert all(len(each) == 3 for chosen, _ in results for each in chosen)
    assert results[0][0] != results[1][0], "ranks choose independently"
    for _, scores in results:
        assert_bitwise(scores, torch.arange(48.0), "scores of all ranks")


def test_a_compiled_step_picks_and_records_as_an_eager_one():
    def step_of(engine):
        def step(x, indices):
            picked = engine.pick(x.detach(), 4)
            return engine.observe(2 * x[picked[0]], indices, picked=picked, score=x.detach())

        return step

    torch._dynamo.reset()
    eager, compiled, counter = engine_of(), engine_of(), CompileCounter()
    traced = torch.compile(step_of(compiled), fullgraph=True, backend=counter)
    for start in range(0, 64, SIZE):
        indices = torch.arange(start, start + SIZE)
        x, y = (losses_of(0)[indices].requires_grad_() for _ in range(2))
        want, got = step_of(eager)(x, indices), traced(y, indices)
        want.backward(), got.backward()
        assert_bitwise(got, want, "loss")
        assert_bitwise(y.grad, x.grad, "gradient")
    assert_bitwise(compiled.scores(), eager.scores(), "scores")
    assert compiled.steps == eager.steps == 4
    assert counter.frame_count <= 2
    torch._dynamo.reset()


def test_an_empty_batch_has_the_loss_0():
    engine, none = engine_of(), torch.zeros(0)
    picked = engine.pick(none, 3)
    assert engine.observe(none, none.long(), picked=picked).item() == 0.0


def test_divided_scores_need_the_score_of_the_batch():
    engine = engine_of(shard_scores=True)
    values, indices = losses_of(0)[:SIZE], torch.arange(SIZE)
    picked = engine.pick(values, 4)
    with pytest.raises(pe.PruneEngineError, match="or a pick without a score"):
        engine.observe(values[picked[0]], indices, picked=picked)
    engine.observe(values[picked[0]], indices, picked=picked, score=values)
    assert engine.cursor == SIZE


def test_it_names_what_it_refuses():
    engine, values, indices = engine_of(), losses_of(0)[:SIZE], torch.arange(SIZE)
    picked = engine.pick(values, 4)
    with pytest.raises(ValueError, match="losses must be a vector of 4 elements"):
        engine.observe(values, indices, picked=picked)
    with pytest.raises(TypeError, match="indices must be a tensor, got list"):
        engine.observe(values[:4], indices.tolist(), picked=picked)
    with pytest.raises(TypeError, match="picked must be the three that"):
        engine.observe(values[:4], indices, picked=picked[:2])
    with pytest.raises(ValueError, match="picked must not be given with a reducer"):
        reducer = pe.losses.BatchScalar()
        engine.observe(values[:4], indices, picked=picked, reducer=reducer)
    fixed = engine_of(pe.RandomBatches(SIZE))
    with pytest.raises(ValueError, match="picked must not be given where"):
        fixed.observe(values[:4], indices, picked=picked)
    assert engine.cursor == fixed.cursor == 0, "nothing was recorded"
