# SPDX-License-Identifier: Apache-2.0
"""Proportional: inclusion by score, weights that make up for it, and a budget that is met."""

from __future__ import annotations

import math
import random

import _levels
import pytest
import torch
from _assertions import assert_bitwise
from _cases import int64
from _conformance import engine_of
from _runs import N, epochs

import prune_engine as pe
from prune_engine.epoch.plan import make_plan

Proportional = pe.policies.Proportional


def buffer_of(scores: list[float | None], backend: str = "cpu") -> pe.epoch.ScoreBuffer:
    buffer = pe.epoch.ScoreBuffer(len(scores), backend=backend)
    buffer.records.copy_(int64(_levels.records_of(scores)))
    buffer.refresh_sum()
    return buffer


def test_a_plan_is_the_oracles(backend):
    scores = _levels.random_scores(random.Random(4), 300)
    policy = Proportional(0.3, floor=0.1, delta=1.0)
    buffer = buffer_of(scores, backend)
    rule = policy.rule(buffer, pe.policies.Progress(1, 1, 10))
    assert (rule.target, rule.least) == (210, round(65536 * 0.07))
    plan = make_plan(buffer, rule, seed=7, epoch=3)
    want = _levels.solve(_levels.counts_of(scores), 210, rule.least)
    assert plan.weight_class.tolist() == _levels.plan(scores, want, 7, 3)
    assert_bitwise(plan.weight_table, want.weights, "weight_table")
    assert plan.kept.tolist() == plan.weight_class.nonzero().flatten().tolist()
    assert plan.threshold.tolist() == [float(_levels.tau_of(want.theta))]


@pytest.mark.full("ten thousand draws")
@pytest.mark.parametrize("begun", ["full", "even"])
def test_the_estimate_is_unbiased_within_its_standard_error(begun):
    """Of an even beginning with half of the samples never seen, for each of which it must hold."""
    count, epochs_ = 2000, 10_000
    rng = torch.Generator().manual_seed(1)
    scores = torch.empty(count).log_normal_(generator=rng)
    target = scores.double() + torch.randn(count, generator=rng).double()
    never = torch.arange(count) % 2 == (0 if begun == "even" else 2)
    buffer = buffer_of([None if out else x for x, out in zip(scores.tolist(), never, strict=True)])
    unseen = buffer.mean_threshold() if begun == "even" else None
    levels = pe.ops.solve_levels(buffer.cells(), 500, least=2000, unseen=unseen)
    keep = (65536 - levels.cut).double() / 65536
    sums, sizes, spared = [], [], []
    for epoch in range(epochs_):
        classes, offsets = pe.ops.plan_levels(
            buffer.records, levels.top, levels.cut, seed=9, epoch=epoch, unseen=unseen
        )
        weights = levels.weight_table[classes.long()].double()
        sums.append(float(weights @ target))
        spared.append(float(weights.where(~never, weights.sign()) @ target))
        sizes.append(int(offsets[-1]))
    mean, spread = (f(torch.tensor(sums).double()) for f in (torch.mean, torch.std))
    error = float(spread) / math.sqrt(epochs_)
    assert abs(float(mean) - float(target.sum())) < 4 * error
    if begun == "even":
        wrong = sum(spared) / epochs_ - float(target.sum())
        assert abs(wrong) > 100 * error, "control: with the weight of who stays, 1"
    whole, _ = pe.ops.plan_levels(
        buffer.records, levels.top, levels.cut * 0, seed=0, epoch=0, unseen=unseen
    )
    share = keep[whole.long()]
    assert abs(sum(sizes) / epochs_ - float(share.sum())) < 4 * math.sqrt(
        float((share * (1 - share)).sum()) / epochs_
    )
    # Control: with the mean of the weights for each, the hard samples count too much.
    biased = float((share * target).sum() * count / share.sum())
    assert abs(biased - float(target.sum())) > 100 * error


def test_savings_are_those_asked_for():
    scores = torch.empty(50_000).exponential_(generator=torch.Generator().manual_seed(2))
    for target_savings, floor in ((0.3, 0.5), (0.7, 0.1), (0.7, 1.0), (0.0, 0.5)):
        rule = Proportional(target_savings, floor).levels(50_000)
        plan = make_plan(buffer_of(scores.tolist()), rule, seed=0, epoch=1)
        wanted = round((1 - target_savings) * 50_000)
        assert rule.target == wanted
        assert abs(plan.num_kept - wanted) <= 4 * math.sqrt(wanted * target_savings) + 1
        largest = plan.weights.max().item()
        assert largest <= 1 / ((1 - target_savings) * floor) * 1.001


def test_a_floor_of_one_is_a_random_subset():
    scores = torch.empty(5000).exponential_(generator=torch.Generator().manual_seed(2)).tolist()
    rule = Proportional(0.5, floor=1.0).levels(5000)
    plan = make_plan(buffer_of(scores), rule, seed=0, epoch=1)
    random_plan = make_plan(
        buffer_of(scores),
        pe.RandomSubset(0.5, rescale=True).rule(
            pe.epoch.ScoreBuffer(5000), pe.policies.Progress(1, 1, None)
        ),
        seed=0,
        epoch=1,
    )
    assert plan.kept.tolist() == random_plan.kept.tolist()
    assert_bitwise(plan.weights, random_plan.weights, "weights")


def test_harder_samples_stay_more_often():
    engine = engine_of(Proportional(0.5, floor=0.2, delta=1.0))
    times = torch.zeros(N)
    for _ in range(9):
        epochs(engine, 1)
        times += engine.plan.weights > 0
    scores = engine.scores()
    easy = scores < scores.nanmedian()
    assert times[~easy].mean() > times[easy].mean() + 1


@pytest.mark.parametrize("budget", [0.0, 0.3])
def test_what_was_never_seen_stays_beyond_the_budget(budget):
    scores: list[float | None] = [None] * 80 + [1.0] * 20
    rule = pe.policies.LevelRule(target=int(100 * budget))
    plan = make_plan(buffer_of(scores), rule, seed=0, epoch=1)
    assert set(range(80)) <= set(plan.kept.tolist())
    assert plan.weights[:80].tolist() == [1.0] * 80
    assert plan.threshold.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("target_savings", 1.0, ValueError),
        ("target_savings", -0.1, ValueError),
        ("floor", 0.0, ValueError),
        ("floor", 1.5, ValueError),
        ("floor", "1", TypeError),
    ],
)
def test_edge_case_10_parameters_out_of_range(field, value, error):
    with pytest.raises(error, match=rf"{field} must be .*got"):
        Proportional(**{field: value})


@pytest.mark.parametrize(
    ("target", "least", "error"),
    [(-1, 1, ValueError), (2**46 + 1, 1, ValueError), (1, 0, ValueError), (1.5, 1, TypeError)],
)
def test_edge_case_10_a_rule_out_of_range(target, least, error):
    with pytest.raises(error, match="must be"):
        pe.policies.LevelRule(target, least)


@pytest.mark.full("ten thousand draws")
def test_control_weights_of_independent_draws_do_not_fit_a_draw_without_replacement():
    """As many samples as are kept, one after another in proportion to their scores."""
    count, k, draws = 2000, 500, 10_000
    rng = torch.Generator().manual_seed(1)
    scores = torch.empty(count).log_normal_(generator=rng)
    target = scores.double() + torch.randn(count, generator=rng).double()
    share = (k * scores / scores.sum()).clamp(max=1).double()
    sums = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        race = torch.empty(count).exponential_(generator=rng) / scores
        kept = race.topk(k, largest=False).indices
        sums[draw] = (target[kept] / share[kept]).sum()
    error = float(sums.std()) / math.sqrt(draws)
    assert abs(float(sums.mean() - target.sum())) > 20 * error


@pytest.mark.parametrize("seed", range(50))
def test_every_seed_draws_the_same_on_every_backend(seed):
    scores = _levels.random_scores(random.Random(seed), 500)
    policy = Proportional(0.6, floor=0.1, delta=1.0, weight_cap=5.0)
    plans = {}
    for name in ("cpu", "reference"):
        buffer = buffer_of(scores, name)
        rule = policy.rule(buffer, pe.policies.Progress(1, 1, 10))
        plans[name] = make_plan(buffer, rule, seed=seed, epoch=seed + 1)
    first, second = plans.values()
    assert_bitwise(first.weight_class, second.weight_class, "weight_class")
    assert_bitwise(first.weights, second.weights, "weights")
    other = make_plan(buffer, rule, seed=seed + 1, epoch=seed + 1)
    assert 0 < first.num_kept < 500
    assert other.kept.tolist() != first.kept.tolist(), "control: another seed draws others"


def test_divided_scores_have_the_beginning_and_the_cap_too():
    policy = Proportional(0.6, floor=0.1, delta=1.0, first_epoch="even", weight_cap=3.0)
    plain, divided = engine_of(policy), engine_of(policy, shard_scores=True)
    uncapped = engine_of(Proportional(0.6, floor=0.1, delta=1.0, first_epoch="even"))
    heaviest = 0.0
    for _ in range(4):
        assert divided.plan.kept.tolist() == plain.plan.kept.tolist()
        assert_bitwise(divided.plan.weights, plain.plan.weights, "weights")
        assert float(plain.plan.weights.max()) <= 3.0
        assert plain.plan.weight_bound <= 3.0
        heaviest = max(heaviest, float(uncapped.plan.weights.max()))
        for engine in (plain, divided, uncapped):
            epochs(engine, 1)
    assert heaviest > 3.0, "control: without a cap one weighs more"
