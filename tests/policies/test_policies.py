# SPDX-License-Identifier: Apache-2.0
"""One table of policies: whoever adds a row of ``TABLE`` inherits all of these tests."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, batches, epochs, figures, losses_at, observe, serve, through_disk
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.ops.weights import decode_weights
from prune_engine.policies import TABLE

BATCHWISE = [  # ten fixed batches; from the third epoch on they drop some for ever
    pe.BPAS(10, 0.02, 0.2, min_batches=1, shuffle_batches=True),
    pe.BPAS(10, target_dsi=0.3, noise_floor=2.0, shuffle_batches=True),
    pe.RandomBatches(10, shuffle_batches=True),
]
VARIANTS = [
    *(make() for make in TABLE.values() if make().fixed_batch is None),  # every row as it comes
    *BATCHWISE,
    pe.InfoBatch(0.5, delta=1.0),
    pe.InfoBatch(0.3, delta=0.6, sampling="fixed"),
    pe.InfoBatch(0.95, delta=1.0),
    pe.RandomSubset(0.3, rescale=True),
    pe.RandomSubset(0.6, rescale=True, delta=0.7, sampling="fixed"),
    pe.RandomSubset(0.4, static=True),
    pe.InfoBatchQuantile((50.0,), (0.1,), delta=1.0, sampling="fixed"),
    pe.Budget(0.5, 0.9, delta=1.0),
    pe.UCB(0.4, period=1),
    pe.EpsilonGreedy(0.6, period=1, epsilon=0.5),
]
EPOCHS = 10


def engine_of(policy: pe.policies.Policy, n: int = N, **options) -> pe.PruneEngine:
    return pe.PruneEngine(n, policy, num_epochs=EPOCHS, **options)


def prunes(policy: pe.policies.Policy) -> bool:
    return not isinstance(policy, pe.KeepAll)


def hard(policy: pe.policies.Policy) -> bool:
    """Whether a policy drops without weights to make up for it: its gradient is biased."""
    kinds = pe.UCB | pe.EpsilonGreedy | pe.BPAS | pe.RandomBatches
    return isinstance(policy, kinds) or not getattr(policy, "rescale", True)


def stays(policy: pe.policies.Policy) -> bool:
    """Whether the next epoch has the same subset, for no draw or period of its own."""
    return getattr(policy, "static", False) or getattr(policy, "period", 1) > 2


def rule_of(
    policy: pe.policies.Policy,
    buffer: pe.epoch.ScoreBuffer,
    progress: pe.policies.Progress,
    epochs: int = 1,
):
    """Return a policy's rule after some epochs, in which the scores stayed as they are."""
    memory = policy.memory(buffer, progress.seed)
    if memory is None:
        return policy.rule(buffer, progress)
    for epoch in range(epochs):
        memory.end_epoch(buffer, epoch)
    return policy.rule(buffer, progress, memory)


policies = pytest.mark.parametrize("policy", VARIANTS, ids=str)


# --- conformance --------------------------------------------------------------------------------


@policies
def test_is_a_frozen_value(policy):
    assert type(policy) in TABLE.values()
    assert policy == dataclasses.replace(policy)
    assert hash(policy) == hash(dataclasses.replace(policy))
    for field in dataclasses.fields(policy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, field.name, 0.1)


@policies
def test_describes_itself_in_plain_data(policy):
    described = policy.describe()
    assert through_disk(described) == described
    parameters = {name: value for name, value in described.items() if name != "policy"}
    assert type(policy).__name__ == described["policy"]
    assert type(policy)(**parameters) == policy


@policies
def test_is_deterministic_on_every_backend(policy):
    runs = [engine_of(policy, backend=backend, seed=3) for backend in ("cpu", "cpu", "reference")]
    orders = [epochs(engine, 4) for engine in runs]
    assert orders[0] == orders[1] == orders[2]
    other = epochs(engine_of(policy, seed=4), 4)
    assert orders[0] != other, "control: the seed decides"


@policies
def test_two_epochs_differ(policy):
    orders = epochs(engine_of(policy), 5)
    assert orders[1] != orders[2], "another order"
    if prunes(policy) and not isinstance(policy, pe.UCB):  # whose winners may win again
        later = 2 if policy.fixed_batch is None else 4  # batches go after the second epoch at first
        assert (set(orders[1]) != set(orders[later])) == (not stays(policy)), "another subset"


@policies
def test_thresholds_and_weights_do_not_move_the_scores(policy):
    engine = engine_of(policy)
    epochs(engine, 2)
    before = engine.buffer.records.clone()
    rule_of(policy, engine.buffer, pe.policies.Progress(2, 2, EPOCHS), 2)
    assert_bitwise(engine.buffer.records, before, "records")


@policies
def test_a_sample_is_served_iff_it_has_a_weight(policy):
    engine = engine_of(policy)
    epochs(engine, 4)
    weights = engine.plan.weights
    assert torch.nonzero(weights)[:, 0].tolist() == sorted(serve(engine))
    assert bool((weights == 0).any()) == prunes(policy)


@pytest.mark.parametrize("policy", [p for p in VARIANTS if not hard(p)], ids=str)
def test_expected_weight_of_every_sample_is_one(policy):
    assert abs(weight_z(policy)) < 5


@pytest.mark.parametrize(
    "policy", [p for p in VARIANTS if hard(p) and p.fixed_batch is None], ids=str
)
def test_control_without_rescale_the_expected_weight_is_not_one(policy):
    assert weight_z(policy) > 100


def weight_z(policy: pe.policies.Policy, n: int = 400, draws: int = 400) -> float:
    """Return how far the samples' mean weights are from 1, as a normal deviate."""
    buffer = pe.epoch.ScoreBuffer(n)
    buffer.observe(losses_at(range(n)), torch.arange(n))
    total, squares = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    for epoch in range(draws):
        rule = rule_of(policy, buffer, pe.policies.Progress(epoch or 1, 1, EPOCHS))
        if isinstance(rule, pe.policies.Selection):
            classes = rule.weight_class
        else:
            classes, _ = pe.ops.plan(buffer.records, rule, seed=0, epoch=epoch)
        weights = decode_weights(classes, torch.tensor(rule.weight_table)).double()
        total += weights
        squares += weights.square()
    mean = total / draws
    variance = squares / draws - mean.square()
    if not bool((variance > 0).any()):  # what never changes is 1 or out by any deviate
        return 0.0 if bool((mean == 1).all()) else math.inf
    drawn = variance > 0
    # The mean over the drawn samples of their squared deviates is 1, give or take.
    deviates = (mean[drawn] - 1).square() / (variance[drawn] / draws)
    count = int(drawn.sum())
    biased = math.inf if bool((mean[~drawn] != 1).any()) else 0.0
    return biased + (float(deviates.sum()) - count) / math.sqrt(2 * count)


@policies
@pytest.mark.parametrize("at", [0, 30, 140])
def test_state_round_trip_resumes_bit_for_bit(policy, at):
    whole, stopped, resumed = (engine_of(policy, seed=5) for _ in range(3))
    want = [index for order in epochs(whole, EPOCHS) for index in order]
    got: list[int] = []
    while len(got) < at:
        for batch in batches(iter(list(stopped.sampler())[: at - len(got)]), 10):
            observe(stopped, batch)
            got += batch
        if not len(stopped.sampler()) or stopped.cursor == stopped.plan.num_kept:
            stopped.end_epoch()
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    for _ in resumed.epochs():
        got += serve(resumed)
    assert got == want
    assert figures(resumed) == figures(whole)
    assert_bitwise(resumed.buffer.records, whole.buffer.records, "records")


@policies
def test_a_state_of_any_other_policy_is_refused(policy):
    state = engine_of(policy).state_dict()
    for other in VARIANTS:
        if other != policy:
            with pytest.raises(pe.StateMismatchError, match="policy"):
                engine_of(other).load_state_dict(state)


@policies
@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("prune_ratio", 1.0, ValueError),
        ("prune_ratio", -0.1, ValueError),
        ("prune_ratio", math.nan, ValueError),
        ("prune_ratio", "0.5", TypeError),
        ("prune_ratio", True, TypeError),
        ("delta", 0.0, ValueError),
        ("delta", 1.001, ValueError),
        ("delta", None, TypeError),
        ("sampling", "coin", ValueError),
    ],
)
def test_edge_case_10_parameters_out_of_range(policy, field, value, error):
    if field not in {f.name for f in dataclasses.fields(policy)}:
        with pytest.raises(TypeError, match=field):
            type(policy)(**{field: value})
        return
    with pytest.raises(error, match=rf"{field} must be .*got"):
        dataclasses.replace(policy, **{field: value})


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
