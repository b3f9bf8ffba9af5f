# SPDX-License-Identifier: Apache-2.0
"""InfoBatchQuantile and Budget: what they save, beside an independent restatement in NumPy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _runs import losses_at, serve
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

EPOCHS = 8


def run(engine: pe.PruneEngine, losses=losses_at) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Train to the end; return each epoch's scores before it, its weights and its threshold."""
    recorded = []
    for epoch in engine.epochs():
        plan = engine.plan
        recorded.append((engine.scores().numpy(), plan.weights.numpy(), str(plan.threshold)))
        kept = plan.kept.long()
        engine.observe(losses(kept, epoch), kept)
    return recorded


def draws(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.array(oracle.draws(n, seed, epoch))


# --- InfoBatchQuantile --------------------------------------------------------------------------


@given(
    n=st.integers(1, 600),
    percentiles=st.sets(st.integers(1, 99), min_size=1, max_size=5).map(sorted),
    keep=st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), min_size=5, max_size=5),
    seed=st.integers(0, 2**63 - 1),
)
def test_quantile_run_equals_numpy(n, percentiles, keep, seed):
    keep = keep[: len(percentiles)]
    policy = pe.InfoBatchQuantile(tuple(percentiles), tuple(keep), delta=0.75)
    engine = pe.PruneEngine(n, policy, num_epochs=EPOCHS, seed=seed)
    for epoch, (scores, weights, _) in enumerate(run(engine)):
        want = np.ones(n, np.float32)
        if 0 < epoch < 6:
            ordered = np.sort(scores)
            ranks = [-(-(n - 1) * p // 100) for p in percentiles]
            band = sum((scores >= ordered[rank]).astype(int) for rank in ranks)
            for b, share in enumerate(keep):
                cut = min(65535, math.floor((1 - share) * 65536 + 0.5))
                dropped = draws(n, seed, epoch) < cut
                want[band == b] = np.where(dropped[band == b], 0, 65536 / (65536 - cut))
        assert_bitwise(weights, want.astype(np.float32), f"epoch {epoch}")


@pytest.mark.parametrize("sampling", ["bernoulli", "fixed"])
def test_quantile_saves_what_the_papers_do(sampling):
    n, policy = 100_000, pe.InfoBatchQuantile(sampling=sampling)
    assert policy.expected_savings == 0.475
    engine = pe.PruneEngine(n, policy, num_epochs=EPOCHS)
    saved = [float((weights == 0).mean()) for _, weights, _ in run(engine)]
    assert (saved[0], saved[-1]) == (0.0, 0.0), "the first epoch and the annealed one are full"
    # 0.475 is drawn: its deviation is below sqrt(0.25 / n).
    limit = 5 * math.sqrt(0.25 / n) if sampling == "bernoulli" else 3 / n
    assert all(abs(share - 0.475) < limit for share in saved[1:-1])


def test_quantile_control_the_mean_rule_saves_otherwise():
    engine = pe.PruneEngine(10_000, pe.InfoBatch(), num_epochs=EPOCHS)
    saved = [float((weights == 0).mean()) for _, weights, _ in run(engine)]
    assert all(abs(share - 0.475) > 0.1 for share in saved)


def test_quantile_thresholds_are_reported():
    engine = pe.PruneEngine(101, pe.InfoBatchQuantile(delta=1.0), num_epochs=2)
    engine.observe(torch.arange(101.0), torch.arange(101))
    assert engine.end_epoch().next_threshold == 20.0
    assert engine.plan.threshold.tolist() == [20.0, 85.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((), ()), ValueError, "1 to 5 entries"),
        (((20, 85), (0.5,)), ValueError, "same 1 to 5 entries"),
        (((1, 2, 3, 4, 5, 6), (0.5,) * 6), ValueError, "1 to 5 entries"),
        (((85, 20), (0.5, 0.5)), ValueError, "percentiles must ascend"),
        (((20, 20), (0.5, 0.5)), ValueError, "percentiles must ascend"),
        (((0, 20), (0.5, 0.5)), ValueError, r"percentiles must be in \(0, 100\), got 0"),
        ((("20",), (0.5,)), TypeError, "percentiles must be numbers"),
        (((20,), (0.0,)), ValueError, r"keep must be in \(0, 1\], got 0.0"),
    ],
)
def test_quantile_edge_case_10_parameters_out_of_range(arguments, error, message):
    with pytest.raises(error, match=message):
        pe.InfoBatchQuantile(*arguments)


def test_quantile_takes_lists_and_hashes():
    assert pe.InfoBatchQuantile([20, 85], [0.25, 0.5]) == pe.InfoBatchQuantile()
    assert hash(pe.InfoBatchQuantile([20], [0.5])) == hash(pe.InfoBatchQuantile((20,), (0.5,)))


# --- Budget -------------------------------------------------------------------------------------

HARD_SCORES = {
    "spread": losses_at,
    "all equal": lambda indices, epoch: torch.full((len(indices),), 0.1),
    "mostly zero": lambda indices, epoch: (losses_at(indices, epoch) > 1.9).float(),
    "two values": lambda indices, epoch: (losses_at(indices, epoch) > 1).float(),
    "coarse": lambda indices, epoch: losses_at(indices, epoch).to(torch.bfloat16).float().round(),
}


@pytest.mark.parametrize("kind", HARD_SCORES)
@given(n=st.integers(1, 3000), target=st.integers(0, 50), seed=st.integers(0, 100))
def test_budget_is_met_in_every_pruning_epoch_whatever_the_scores(kind, n, target, seed):
    policy = pe.Budget(target / 100, 0.5, delta=0.75)
    engine = pe.PruneEngine(n, policy, num_epochs=EPOCHS, seed=seed)
    low = round(Fraction(target, 50) * n)
    dropped = min(round(Fraction(target, 100) * n), max(0, low - 1))
    for epoch, (scores, weights, _) in enumerate(run(engine, HARD_SCORES[kind])):
        pruning = 0 < epoch < 6
        assert (weights == 0).sum() == (dropped if pruning else 0)
        assert abs((weights == 0).mean() - pruning * target / 100) <= max(0.005, 1 / n)
        if not pruning or dropped == 0:
            assert_bitwise(weights, np.ones(n, np.float32), "weights of a full epoch")
            continue
        rising = np.lexsort((-np.arange(n), scores))  # ties: the larger index is lower
        pool = np.sort(rising[:low])
        falling = pool[np.lexsort((pool, -draws(n, seed, epoch)[pool]))]
        want = np.ones(n, np.float32)
        want[pool] = 0
        want[falling[: low - dropped]] = np.float32(low / (low - dropped))
        assert_bitwise(weights, want, f"epoch {epoch}")


def test_budget_control_the_percentile_rule_misses_it_where_scores_tie():
    policy = pe.InfoBatchQuantile((80.0,), (0.5,), delta=1.0)
    engine = pe.PruneEngine(1000, policy, num_epochs=3)
    saved = [
        float((weights == 0).mean()) for _, weights, _ in run(engine, HARD_SCORES["all equal"])
    ]
    assert saved == [0.0] * 3


def test_budget_keeps_what_was_never_seen():
    engine = pe.PruneEngine(100, pe.Budget(delta=1.0), num_epochs=3, coverage="ignore")
    engine.observe(losses_at(range(90)), torch.arange(90))
    engine.end_epoch()
    assert bool((engine.plan.weights[90:] == 1).all())
    assert engine.plan.num_kept == 60


def test_budget_refuses_more_than_its_ratio_can_save():
    with pytest.raises(ValueError, match=r"target_savings must be in \[0, prune_ratio = 0.5\]"):
        pe.Budget(0.6)
    assert pe.Budget(0.6, 0.75).counts(1000) == (800, 600)


def test_static_subset_is_the_same_in_every_epoch_and_its_order_is_not():
    engine = pe.PruneEngine(500, pe.RandomSubset(0.3, static=True), num_epochs=4, seed=2)
    orders = []
    for _ in engine.epochs():
        orders.append(serve(engine))
    assert {frozenset(order) for order in orders} == {frozenset(orders[0])}
    assert len({tuple(order) for order in orders}) == 4
    fresh = pe.PruneEngine(500, pe.RandomSubset(0.3), num_epochs=4, seed=2)
    assert_bitwise(np.sort(orders[0]).astype(np.int32), fresh.plan.kept, "the draws of epoch 0")
