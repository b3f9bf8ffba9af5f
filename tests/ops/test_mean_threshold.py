# SPDX-License-Identifier: Apache-2.0
"""mean_threshold: below it is exactly below the mean code, and constants are below nothing."""

from __future__ import annotations

import random

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
TOP = 2**30  # the high limb of the largest code, that of 2^22


def threshold_of(score_sum: list[int], backend: str) -> torch.Tensor:
    return pe.ops.mean_threshold(int64(score_sum), backend=backend)


@given(salt=salts, count=st.integers(0, 200))
def test_mean_threshold_equals_oracle_and_the_definition_of_low(backend, salt, count):
    rng = random.Random(salt)
    scores = floats(rng, count)
    if rng.random() < 0.3:  # one scale of tiny numbers, where a float32 mean would round
        scores = [oracle.f32(rng.gauss(0.0, 2.0**-38)) for _ in scores]
    codes = [oracle.code_of(s) for s in scores]
    got = threshold_of(oracle.sum_of_codes(codes), backend)
    assert_bitwise(got, float32([oracle.mean_threshold(oracle.sum_of_codes(codes))]), "threshold")
    total, bound = sum(codes), got.item()
    for score, code in zip(scores, codes, strict=True):
        assert (score < bound) == (code * count < total), f"score {score!r}, threshold {bound!r}"


@given(
    seen=st.sampled_from([1, 2, 3, 2**31 - 1]) | st.integers(1, 2**31 - 1),
    high=st.fractions(-1, 1),
    low=st.fractions(0, 1),
)
def test_mean_threshold_equals_oracle_over_the_whole_range_of_sums(backend, seen, high, low):
    score_sum = [int(high * TOP * seen), int(low * (2**32 - 1) * seen), seen]
    total = score_sum[0] * 2**32 + score_sum[1]
    if total > seen * TOP * 2**32:  # no seen scores can have this sum
        score_sum[1] = 0
    want = oracle.mean_threshold(score_sum)
    assert_bitwise(threshold_of(score_sum, backend), float32([want]), f"{score_sum}")


@pytest.mark.parametrize(
    ("score_sum", "want"),
    [
        ([0, 0, 1], -(2.0**-41)),
        ([0, 1, 1], 2.0**-41),
        ([0, 1, 2], 2.0**-41),  # a mean of half a code rounds up
        ([-1, 2**32 - 1, 2], -(2.0**-41)),  # and -1/2 up to zero
        ([-1, 2**32 - 1, 1], -3 * 2.0**-41),
        ([256, 0, 1], 1.0),
        ([TOP, 0, 1], 2.0**22),
        ([TOP * (2**31 - 1), 0, 2**31 - 1], 2.0**22),
        ([-TOP * (2**31 - 1), 0, 2**31 - 1], LOWEST),
        ([-TOP, 0, 1], LOWEST),
        ([0, (2**32 - 1) * (2**31 - 1), 2**31 - 1], 2.0**-8),
    ],
)
def test_thresholds_worked_by_hand(backend, score_sum, want):
    assert_bitwise(threshold_of(score_sum, backend), float32([want]), f"{score_sum}")


def test_edge_case_06_nothing_seen_gives_the_lowest_float(backend):
    assert_bitwise(threshold_of([0, 0, 0], backend), float32([LOWEST]), "threshold")


@pytest.mark.parametrize("value", AWKWARD)
@pytest.mark.parametrize("seen", [1, 3, 14_197_122, 2**31 - 1])
def test_constant_scores_are_never_low(backend, value, seen):
    value = oracle.f32(value)
    one = oracle.sum_of_codes([oracle.code_of(value)])
    threshold = threshold_of([limb * seen for limb in one], backend).item()
    assert not value < threshold, f"{seen} scores of {value!r} fall below {threshold!r}"


def test_constant_scores_are_low_under_a_float32_mean():
    # Control: what the exact sum is for. The running float32 mean of 0.1 creeps above 0.1.
    scores = np.full(1_000_000, 0.1, dtype=np.float32)
    mean = np.cumsum(scores, dtype=np.float32)[-1] / np.float32(len(scores))
    assert (scores < mean).all()


def test_a_float32_neighbour_of_the_mean_is_on_the_right_side(backend):
    # Two scores one ulp apart: the mean code lies between, so exactly the lower one is low.
    for value in (0.1, 1.0, 3.7, 1000.0, 2.0**-17):
        lower = oracle.f32(value)
        upper = oracle.from_bits(oracle.bits_of(lower) + 1)
        codes = [oracle.code_of(lower), oracle.code_of(upper)]
        threshold = threshold_of(oracle.sum_of_codes(codes), backend).item()
        assert lower < threshold <= upper


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(1, 3, dtype=torch.int64),
        [0, 0, 0],
    ],
)
def test_edge_case_07_wrong_score_sum_is_named(backend, bad):
    with pytest.raises((TypeError, ValueError), match="score_sum"):
        pe.ops.mean_threshold(bad, backend=backend)


def test_edge_case_07_non_contiguous_score_sum_is_converted(backend):
    strided = int64([256, 9, 0, 9, 1, 9])[::2]
    assert_bitwise(pe.ops.mean_threshold(strided, backend=backend), float32([1.0]), "threshold")


def test_argument_is_left_alone_and_result_needs_no_gradient(backend):
    score_sum = int64([512, 0, 2])
    result = pe.ops.mean_threshold(score_sum, backend=backend)
    assert (result.dtype, result.shape, result.requires_grad) == (torch.float32, (1,), False)
    assert_bitwise(score_sum, [512, 0, 2], "score_sum")


@pytest.mark.parametrize("score_sum", [[0, 0, 0], [512, 7, 2]])
def test_opcheck(score_sum):
    op = native.mean_threshold
    torch.library.opcheck(op, (int64(score_sum),))
    assert op(int64(score_sum)).shape == (1,)
