# SPDX-License-Identifier: Apache-2.0
"""mean_threshold: below it is exactly below the mean, and constants are below nothing."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import AWKWARD, float32, floats, int64, salts
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native

LOWEST = -oracle.FLT_MAX
MOST = 2**31 - 1
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def threshold_of(score_sum: list[int], backend: str) -> torch.Tensor:
    return pe.ops.mean_threshold(int64(score_sum), backend=backend)


def times(score_sum: list[int], count: int) -> list[int]:
    return [word * count for word in score_sum]


@given(salt=salts, count=st.integers(0, 200))
def test_mean_threshold_equals_oracle_and_the_definition_of_low(backend, salt, count):
    rng = random.Random(salt)
    scores = floats(rng, count)
    if rng.random() < 0.5:  # one scale, of any exponent, where a float32 mean would round
        scores = [
            oracle.f32(rng.gauss(0.0, 2.0 ** rng.choice([-140, -100, -38, 100]))) for _ in scores
        ]
    assert_low(scores, backend)


@given(scores=st.lists(finite, max_size=30))
def test_low_is_below_the_rational_mean_for_any_floats(backend, scores):
    assert_low(scores, backend)


@given(bits=st.integers(0, 0x7F7FFFFE), spread=st.integers(1, 3), sign=st.sampled_from([-1, 1]))
def test_neighbours_are_on_the_right_sides_of_their_mean(backend, bits, spread, sign):
    upper = min(bits + spread, 0x7F7FFFFF)
    assert_low([sign * oracle.from_bits(bits), sign * oracle.from_bits(upper)], backend)


def assert_low(scores: list[float], backend: str) -> None:
    """Fail unless the threshold is the oracle's and divides the scores as their mean does."""
    score_sum = oracle.sum_of_scores(scores)
    got = threshold_of(score_sum, backend)
    assert_bitwise(got, float32([oracle.mean_threshold(score_sum)]), "threshold")
    total, bound = sum(map(Fraction, scores), Fraction(0)), got.item()
    for score in scores:
        low = Fraction(score) * len(scores) < total
        assert (score < bound) == low, f"score {score!r}, threshold {bound!r}"


@given(first=finite, second=finite, count=st.integers(1, MOST - 1), rest=st.fractions(0, 1))
def test_mean_threshold_equals_oracle_for_up_to_2_31_scores(backend, first, second, count, rest):
    others = int(rest * (MOST - count))
    rows = zip(
        times(oracle.sum_of_scores([first]), count),
        times(oracle.sum_of_scores([second]), others),
        strict=True,
    )
    score_sum = [a + b for a, b in rows]
    want = oracle.mean_threshold(score_sum)
    assert_bitwise(threshold_of(score_sum, backend), float32([want]), f"{score_sum}")


@pytest.mark.parametrize(
    ("score_sum", "want"),
    [
        ([0] * 9 + [1], 0.0),
        ([1] + [0] * 8 + [1], 2.0**-149),
        ([1] + [0] * 8 + [2], 2.0**-149),  # a mean of half a unit rounds up
        ([2**32 - 1, -1] + [0] * 7 + [2], 0.0),  # and -1/2 up to zero
        ([2**32 - 3, -1] + [0] * 7 + [2], -(2.0**-149)),
        ([0, 0, 0, 0, 2**21, 0, 0, 0, 0, 1], 1.0),
        ([0, 0, 0, 0, 2**21, 0, 0, 0, 0, 3], oracle.from_bits(0x3EAAAAAB)),
        (times(oracle.sum_of_scores([oracle.FLT_MAX]), MOST), oracle.FLT_MAX),
        (times(oracle.sum_of_scores([LOWEST]), MOST), LOWEST),
    ],
)
def test_thresholds_worked_by_hand(backend, score_sum, want):
    assert_bitwise(threshold_of(score_sum, backend), float32([want]), f"{score_sum}")


def test_edge_case_06_nothing_seen_gives_the_lowest_float(backend):
    assert_bitwise(threshold_of([0] * 10, backend), float32([LOWEST]), "threshold")


@pytest.mark.parametrize("value", AWKWARD)
@pytest.mark.parametrize("seen", [1, 3, 14_197_122, MOST])
def test_constant_scores_are_their_own_threshold(backend, value, seen):
    value = oracle.f32(value)
    threshold = threshold_of(times(oracle.sum_of_scores([value]), seen), backend)
    assert_bitwise(threshold, float32([value + 0.0]), f"{seen} scores of {value!r}")


def test_constant_scores_are_low_under_a_float32_mean():
    # Control: what the exact sum is for. The running float32 mean of 0.1 creeps above 0.1.
    scores = np.full(1_000_000, 0.1, dtype=np.float32)
    mean = np.cumsum(scores, dtype=np.float32)[-1] / np.float32(len(scores))
    assert (scores < mean).all()


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(10),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(1, 10, dtype=torch.int64),
        [0] * 10,
    ],
)
def test_edge_case_07_wrong_score_sum_is_named(backend, bad):
    with pytest.raises((TypeError, ValueError), match="score_sum"):
        pe.ops.mean_threshold(bad, backend=backend)


def test_edge_case_07_non_contiguous_score_sum_is_converted(backend):
    strided = int64([word for limb in oracle.sum_of_scores([1.0]) for word in (limb, 9)])[::2]
    assert_bitwise(pe.ops.mean_threshold(strided, backend=backend), float32([1.0]), "threshold")


def test_argument_is_left_alone_and_result_needs_no_gradient(backend):
    score_sum = int64(oracle.sum_of_scores([1.0, 3.0]))
    before = score_sum.clone()
    result = pe.ops.mean_threshold(score_sum, backend=backend)
    assert (result.dtype, result.shape, result.requires_grad) == (torch.float32, (1,), False)
    assert_bitwise(score_sum, before, "score_sum")


@pytest.mark.parametrize("scores", [[], [2.0, -(2.0**102)]])
def test_opcheck(scores):
    op, score_sum = native.mean_threshold, int64(oracle.sum_of_scores(scores))
    torch.library.opcheck(op, (score_sum,))
    assert op(score_sum).shape == (1,)
