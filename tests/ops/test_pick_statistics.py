# SPDX-License-Identifier: Apache-2.0
"""pick as a random experiment: inclusion, pairs, unbiasedness; each with a control that fails."""

from __future__ import annotations

import math

import _pick
import numpy as np
import pytest
import torch
from _assertions import MAX_Z

from prune_engine.backends import native

# What a batch may hold, and how many are chosen: sizes as different as those of losses, equal ones,
# and one that is certain.
LOGNORMAL = np.random.default_rng(1).lognormal(0, 1, 40).astype(np.float32)
BATCHES = {
    "lognormal": (LOGNORMAL, 10, 0),
    "equal": (np.ones(25, np.float32), 7, 0),
    "one huge": (np.append(LOGNORMAL[:29], np.float32(1e6)), 5, 6554),
}


def chosen(
    values: np.ndarray, k: int, rule: str, floor: int, steps: int, rank: int = 0
) -> np.ndarray:
    """Return bool [steps, B]: what each step chooses (the backends agree: test_pick)."""
    step = torch.zeros(1, dtype=torch.int64)
    given = _pick.arguments(torch.from_numpy(values), k, rule, floor, _pick.Key(5, rank=rank))
    found = np.zeros((steps, len(values)), bool)
    for number in range(steps):
        step.fill_(number)
        found[number, native.pick(*given[:6], step, *given[7:])[0].numpy()] = True
    return found


def probabilities(values: np.ndarray, k: int, floor: int) -> np.ndarray:
    """Return each element's probability, by the oracle."""
    bits = values.view(np.uint32).tolist()
    pi = _pick.choose(bits, k, "proportional", floor, _pick.Key()).pi
    return np.array([float(each) for each in pi])


def deviations(found: np.ndarray, pi: np.ndarray) -> np.ndarray:
    """Return how many standard errors each element's count is away from its probability."""
    free = pi < 1
    assert found[:, ~free].all()
    return (found.mean(0) - pi)[free] / np.sqrt(pi * (1 - pi) / len(found))[free]


def check_inclusion(name: str, steps: int) -> None:
    values, k, floor = BATCHES[name]
    pi = probabilities(values, k, floor)
    found = chosen(values, k, "proportional", floor, steps)
    assert (found.sum(1) == k).all()
    z = deviations(found, pi)
    assert np.abs(z).max() < MAX_Z
    spread = math.sqrt(2 / len(z))
    assert abs(np.mean(z**2) - 1) < MAX_Z * spread
    # Control: a probability that is off by 8 standard errors is refused.
    off = pi.copy()
    off[0] += 8 * math.sqrt(pi[0] * (1 - pi[0]) / steps)
    assert np.abs(deviations(found, off)).max() > MAX_Z


@pytest.mark.parametrize("name", BATCHES)
def test_everyone_is_chosen_as_often_as_its_probability_says(name):
    check_inclusion(name, 20_000)


@pytest.mark.full("a million steps of each batch")
@pytest.mark.parametrize("name", BATCHES)
def test_everyone_is_over_a_million_steps(name):
    check_inclusion(name, 1_000_000)


def systematic(
    sizes: list[int], k: int, orders: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return bool [steps, B]: systematic choices along given orders, from random starts."""
    certain, area, left = _pick.caps(sizes, k)
    free = np.array([0 if i in certain else size for i, size in enumerate(sizes)])
    ends = np.cumsum(free[orders], 1)
    start = rng.integers(0, area, len(orders))
    below = np.clip(-((start[:, None] - left * ends.astype(object)) // area), 0, left)
    hit = np.diff(below.astype(np.int64), axis=1, prepend=0) > 0
    found = np.zeros(orders.shape, bool)
    np.put_along_axis(found, orders, hit, 1)
    found[:, sorted(certain)] = True
    return found


def never_together(found: np.ndarray, pi: np.ndarray) -> int:
    free = np.flatnonzero(pi < 1)
    pairs = found[:, free].astype(np.float32).T @ found[:, free].astype(np.float32)
    return int((pairs[np.triu_indices(len(free), 1)] == 0).sum())


def test_every_pair_is_chosen_together_which_index_order_does_not_allow():
    values, k, floor = BATCHES["lognormal"]
    pi, steps = probabilities(values, k, floor), 20_000
    assert never_together(chosen(values, k, "proportional", floor, steps), pi) == 0
    keys = [_pick.eligible_key(word) for word in values.view(np.uint32).tolist()]
    small = [max(1, size >> 22) for size in _pick.raw_sizes(keys)]  # left * end fits 64 bits
    rng = np.random.default_rng(2)
    control = systematic(small, k, np.tile(np.arange(len(values)), (steps, 1)), rng)
    assert (control.sum(1) == k).all()
    assert never_together(control, pi) > 300, "neighbours exclude one another"


@pytest.mark.parametrize("kind", ["noise", "noisy size"])
def test_weighed_sums_are_unbiased(kind):
    values, k, floor = BATCHES["lognormal"]
    pi, rng = probabilities(values, k, floor), np.random.default_rng(3)
    noise = rng.normal(size=len(values))
    target = noise if kind == "noise" else values + noise
    found = chosen(values, k, "proportional", floor, 20_000)
    sums = (found * (target / pi)).sum(1)
    error = sums.std() / math.sqrt(len(sums))
    assert abs(sums.mean() - target.sum()) < MAX_Z * error
    # Control: the same choice with equal weights is biased wherever the size says something.
    if kind == "noisy size":
        equal = (found * target).sum(1) * len(values) / k
        assert abs(equal.mean() - target.sum()) > 20 * equal.std() / math.sqrt(len(equal))


def test_what_is_proportional_to_the_size_is_estimated_without_error_and_by_gumbel_with_bias():
    values, k, floor = BATCHES["lognormal"]
    steps, total = 20_000, float(values.sum(dtype=np.float64))
    weights = 1 / probabilities(values, k, floor)
    sums = (chosen(values, k, "proportional", floor, steps) * (values * weights)).sum(1)
    assert np.abs(sums / total - 1).max() < 1e-6
    # Control: the k largest of log size + Gumbel noise, weighed as if k p were their probability.
    rng = np.random.default_rng(4)
    noisy = np.log(values) + rng.gumbel(size=(steps, len(values)))
    best = noisy >= np.sort(noisy, 1)[:, -k][:, None]
    share = np.minimum(1, k * values / total)
    gumbel = (best * (values / share)).sum(1)
    bias = gumbel.mean() - total
    assert bias / total > 0.03
    assert bias > 10 * gumbel.std() / math.sqrt(steps)


def test_every_subset_of_a_random_choice_comes_equally_often():
    steps = 20_000
    found = chosen(np.ones(6, np.float32), 3, "random", 0, steps)
    count = np.bincount(found @ (1 << np.arange(6)), minlength=64)
    subsets = [code for code in range(64) if code.bit_count() == 3]
    assert count.sum() == count[subsets].sum() == steps
    z = (count[subsets] - steps / 20) / math.sqrt(steps / 20 * 19 / 20)
    assert np.abs(z).max() < MAX_Z


@pytest.mark.parametrize("other", ["rank", "step"])
def test_ranks_and_steps_choose_independently(other):
    values, k = np.ones(64, np.float32), 16
    first = chosen(values, k, "random", 0, 6001)
    second = chosen(values, k, "random", 0, 6001, rank=1) if other == "rank" else first[1:]
    both = (first[:6000] & second[:6000]).mean(0)
    p = (k / 64) ** 2
    z = (both - p) / math.sqrt(p * (1 - p) / 6000)
    assert np.abs(z).max() < MAX_Z
    same = (first & first).mean(0)  # control: a rank that is ignored
    assert np.abs((same - p) / math.sqrt(p * (1 - p) / 6000)).min() > MAX_Z
