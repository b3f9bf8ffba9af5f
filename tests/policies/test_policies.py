# SPDX-License-Identifier: Apache-2.0
"""One table of policies: whoever adds a row of ``TABLE`` inherits all of these tests."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from _assertions import assert_bitwise
from _conformance import Conformance, engine_of, hard, weight_z
from _runs import N, epochs, losses_at, serve
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.policies import (
    IES,
    KAKURENBO,
    TABLE,
    OrderDP,
    ProgressiveDropout,
    RePB,
    SeTa,
)

LEARNS = IES, KAKURENBO, RePB  # what they drop depends on epochs that were trained
BATCHWISE = [  # ten fixed batches; from the third epoch on they drop some for ever
    pe.BPAS(10, 0.02, 0.2, min_batches=1, shuffle_batches=True),
    pe.BPAS(10, target_dsi=0.3, noise_floor=2.0, shuffle_batches=True),
    pe.RandomBatches(10, shuffle_batches=True),
]
VARIANTS = [
    # Every row as it comes, but for one whose default finds nothing in losses that jump about.
    *(make() for make in TABLE.values() if make().fixed_batch is None and make is not IES),
    IES(0.4, again=7),
    *BATCHWISE,
    pe.InfoBatch(0.5, delta=1.0),
    pe.InfoBatch(0.3, delta=0.6, sampling="fixed"),
    pe.InfoBatch(0.95, delta=1.0),
    pe.RandomSubset(0.3, rescale=True),
    pe.RandomSubset(0.6, rescale=True, delta=0.7, sampling="fixed"),
    pe.RandomSubset(0.4, static=True),
    pe.InfoBatchQuantile((50.0,), (0.1,), delta=1.0, sampling="fixed"),
    pe.Budget(0.5, 0.9, delta=1.0),
    pe.policies.Proportional(0.7, floor=0.1, delta=1.0),
    pe.UCB(0.4, period=1),
    pe.EpsilonGreedy(0.6, period=1, epsilon=0.5),
    pe.InfoBatch(0.5, delta=1.0, rescale=False),
    pe.InfoBatch(0.5, delta=1.0, side="high"),
    pe.InfoBatch(0.4, delta=1.0, first_epoch="even"),
    pe.Budget(0.4, delta=1.0, warmup=2),
    pe.UCB(0.4, period=1, coefficient=0.0, first_epoch="even"),
    ProgressiveDropout(tau=None, gamma=0.9, revision=1.0),
    SeTa(0.0, groups=4, window=1, delta=1.0),
    OrderDP(0.3, 1.0, first_epoch="full", warmup=1),
]


@pytest.fixture(params=VARIANTS, ids=str)
def policy(request: pytest.FixtureRequest) -> pe.policies.Policy:
    return request.param


class TestPolicies(Conformance):
    POLICIES = VARIANTS


def test_the_table_names_every_policy_that_is_tested():
    assert {type(policy) for policy in VARIANTS} == set(TABLE.values())


@pytest.mark.parametrize("soft", [p for p in VARIANTS if not hard(p)], ids=str)
def test_expected_weight_of_every_sample_is_one(soft):
    assert abs(weight_z(soft)) < 5


@pytest.mark.parametrize(
    "biased",
    [p for p in VARIANTS if hard(p) and p.fixed_batch is None and not isinstance(p, LEARNS)],
    ids=str,
)
def test_control_without_rescale_the_expected_weight_is_not_one(biased):
    assert weight_z(biased) > 100


# --- InfoBatch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_epochs", "first"), [(90, 79), (100, 88), (300, 263), (200, 175)])
@pytest.mark.parametrize("make", [pe.InfoBatch, pe.RandomSubset])
def test_annealing_begins_at_exactly_delta_times_the_epochs(make, num_epochs, first):
    policy, buffer = make(delta=0.875), pe.epoch.ScoreBuffer(4)
    keeps = [
        policy.rule(buffer, pe.policies.Progress(t, t, num_epochs)).bands
        == (pe.policies.Band(0, 1),)
        for t in range(num_epochs)
    ]
    assert keeps == [False] * first + [True] * (num_epochs - first)


@given(
    thousandths=st.integers(1, 1000),
    total=st.integers(1, 1000),
    done=st.integers(0, 1000),
)
def test_annealing_compares_the_decimal_exactly(thousandths, total, done):
    policy = pe.InfoBatch(delta=thousandths / 1000)
    rule = policy.rule(pe.epoch.ScoreBuffer(1), pe.policies.Progress(done, done, total))
    assert (len(rule.bands) == 1) == (done >= Fraction(thousandths, 1000) * total)


def test_annealing_of_every_percentage_of_100_epochs():
    buffer = pe.epoch.ScoreBuffer(1)
    for percent in range(1, 101):
        policy = pe.InfoBatch(delta=percent / 100)
        bands = [
            len(policy.rule(buffer, pe.policies.Progress(t, t, 100)).bands) for t in range(100)
        ]
        assert bands == [2] * percent + [1] * (100 - percent)
    assert 0.07 * 100 > 7, "control: a float boundary slips by an epoch"


def test_last_epochs_are_full_and_unweighted_in_a_whole_run():
    engine = engine_of(pe.InfoBatch(0.5, delta=0.75))  # 7.5: epochs 8 and 9 are full
    plans = []
    for epoch in engine.epochs():
        plans.append((epoch, engine.plan.num_kept == N, engine.plan.weights.max().item()))
        serve(engine)
    assert all(full and weight == 1 for epoch, full, weight in plans if epoch in (0, 8, 9))
    assert all(not full and weight == 2 for epoch, full, weight in plans if 1 <= epoch < 8)


@given(n=st.integers(1, 2000), percent=st.integers(0, 99))
def test_fixed_counts_keep_exactly_the_floor(n, percent):
    # (1 - r) n is a whole number of hundredths here: floats must not lose the floor.
    engine = engine_of(pe.InfoBatch(percent / 100, delta=1.0, sampling="fixed"), n)
    engine.observe(losses_at(range(n)), torch.arange(n))
    low = int((engine.scores() < engine.end_epoch().next_threshold).sum())
    assert engine.plan.num_kept == n - low + low * (100 - percent) // 100


@given(n=st.integers(1, 2000), percent=st.integers(0, 99))
def test_random_subset_fixed_keeps_exactly_the_floor(n, percent):
    engine = engine_of(pe.RandomSubset(percent / 100, sampling="fixed"), n)
    assert engine.plan.num_kept == n * (100 - percent) // 100, "unseen samples too"


@pytest.mark.parametrize("ratio", [0.3, 0.9, 0.95, 0.99, 0.999])
def test_high_ratios_are_used_as_given(ratio):
    engine = engine_of(pe.RandomSubset(ratio, rescale=True), 100_000)
    expected = 100_000 * (1 - ratio)
    assert abs(engine.plan.num_kept - expected) < 5 * math.sqrt(expected) + 2
    cut = math.floor(ratio * 65536 + 0.5)
    assert_bitwise(engine.plan.weight_table[2:3], [65536 / (65536 - cut)], "weight")


def test_random_subset_weighs_only_with_rescale():
    plain, scaled = engine_of(pe.RandomSubset(0.5)), engine_of(pe.RandomSubset(0.5, rescale=True))
    assert_bitwise(plain.plan.weights.unique(), [0.0, 1.0], "weights")
    assert_bitwise(scaled.plan.weights.unique(), [0.0, 2.0], "rescaled weights")
    assert_bitwise(plain.plan.kept, scaled.plan.kept, "the same draws keep the same samples")


def test_random_subset_does_not_look_at_scores():
    first, second = engine_of(pe.RandomSubset()), engine_of(pe.RandomSubset())
    serve(first)
    batch = list(second.sampler())
    second.observe(-losses_at(batch), torch.tensor(batch))
    first.end_epoch()
    second.end_epoch()
    assert_bitwise(first.plan.kept, second.plan.kept, "kept")


def test_keep_all_keeps_all():
    engine = engine_of(pe.KeepAll())
    orders = epochs(engine, 3)
    assert [sorted(order) for order in orders] == [list(range(N))] * 3
    assert engine.history.dsi == 0.0
    assert_bitwise(engine.plan.weights, [1.0] * N, "weights")
