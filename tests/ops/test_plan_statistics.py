# SPDX-License-Identifier: Apache-2.0
"""plan as a random experiment: keep rates, independence, unbiasedness; each with a control."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from _assertions import MAX_Z, independence_z
from _cases import MAX_SEED, mean_rule, one_band, records_of

import prune_engine as pe

NUM_SAMPLES = 200_000
RECORDS = records_of([0.5] * 1000).repeat(NUM_SAMPLES // 1000)


def dropped(seed: int, epoch: int, cut: int = 32768) -> np.ndarray:
    """Return which of the equal samples one plan drops (the backends agree: see test_plan)."""
    classes, _ = pe.ops.plan(RECORDS, one_band(cut), seed=seed, epoch=epoch, backend="cpu")
    return classes.numpy() == 0


@pytest.mark.parametrize("cut", [1, 655, 16384, 32768, 49152, 65535])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (MAX_SEED, 1)])
def test_drop_rate_is_cut_over_65536(cut, seed, epoch):
    p = cut / 65536
    spread = math.sqrt(NUM_SAMPLES * p * (1 - p))
    count = int(dropped(seed, epoch, cut).sum())
    assert abs(count - NUM_SAMPLES * p) < MAX_Z * spread + 1
    if spread > 30:  # control: a rate that is off by 8 deviations is refused
        off = p + 8 * spread / NUM_SAMPLES
        assert abs(count - NUM_SAMPLES * off) > 3 * spread + 1


@pytest.mark.parametrize("lag", [1, 2, 4, 7, 8, 64, 4096])
def test_neighbours_are_independent(lag):
    drop = dropped(17, 3)
    assert abs(independence_z(drop[:-lag], drop[lag:])) < MAX_Z


@pytest.mark.parametrize(
    "other",
    [(17, 4), (17, 3 + 2**16), (18, 3), (17 + 2**32, 3), (3, 17), (17, 0)],
)
def test_epochs_and_seeds_are_independent(other):
    assert abs(independence_z(dropped(17, 3), dropped(*other))) < MAX_Z


def test_a_broken_generator_fails_the_same_checks():
    drop = dropped(17, 3)
    assert independence_z(drop, dropped(17, 3)) > MAX_Z  # the epoch is ignored
    shared = drop[np.arange(NUM_SAMPLES) // 2]  # two samples share one draw
    assert independence_z(shared[:-1], shared[1:]) > MAX_Z
    lcg = [12345]
    for _ in range(NUM_SAMPLES - 1):
        lcg.append((lcg[-1] * 1103515245 + 12345) % 2**31)
    low_bits = np.array(lcg) & 1 == 0  # alternate: the classic weakness
    assert independence_z(low_bits[:-1], low_bits[1:]) > MAX_Z


def weighted_sums(rule: pe.policies.Rule, weights: list[float], trials: int) -> tuple[float, float]:
    """Return the full sum of scores and the deviate of the mean weighted sum from it."""
    generator = np.random.default_rng(1)
    scores = generator.exponential(1.0, 4000).astype(np.float32)
    records = records_of(scores.tolist())
    lookup = np.array(weights, dtype=np.float32).astype(np.float64)
    sums = []
    for seed in range(trials):
        classes, _ = pe.ops.plan(records, rule, seed=seed, epoch=seed % 7, backend="cpu")
        sums.append(float((lookup[classes.numpy()] * scores).sum()))
    full = float(scores.astype(np.float64).sum())
    return full, (np.mean(sums) - full) / (np.std(sums) / math.sqrt(trials))


@pytest.mark.parametrize("prune_ratio", [0.1, 0.5, 0.9])
def test_rescaled_sum_is_unbiased_and_the_plain_sum_is_not(prune_ratio):
    cut = math.floor(prune_ratio * 65536 + 0.5)
    rule = mean_rule(1.0, cut)
    full, z = weighted_sums(rule, list(rule.weight_table), 600)
    assert abs(z) < MAX_Z, f"weighted sum is {z:.1f} deviations from {full}"
    _, plain = weighted_sums(rule, [0.0] + [1.0] * 2, 600)
    assert plain < -MAX_Z, "control: without the weight, what was dropped is missing"
    _, near = weighted_sums(rule, [0.0, 1.0, 1.02 * rule.weight_table[2]], 600)
    assert near > 3, "control: a weight 2% too large shows"


def test_keep_draws_do_not_follow_the_order():
    # Streams 0 and 1 share seed and epoch; a position must not tell whether a sample was kept.
    drop = dropped(5, 5)
    everyone = torch.arange(NUM_SAMPLES, dtype=torch.int32)
    rank = pe.ops.order(everyone, range(NUM_SAMPLES), seed=5, epoch=5, backend="cpu").numpy()
    assert abs(independence_z(drop, rank < NUM_SAMPLES // 2)) < MAX_Z


def test_oracle_draws_are_what_the_statistics_saw():
    want = np.array(oracle.draws(2000, 17, 3)) < 32768
    assert (dropped(17, 3)[:2000] == want).all()
