# SPDX-License-Identifier: Apache-2.0
"""Ranks by radix select: equal to sorting in NumPy, bit for bit, whatever the scores are."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch
from _assertions import assert_bitwise, num_threads
from _cases import AWKWARD, float32, floats, int64, salts, sizes
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native

LOWEST = -oracle.FLT_MAX
LARGE = 300_001  # where the cpu guesses its first window from a sample


def shapes(n: int) -> dict[str, np.ndarray]:
    """Return adversarial score vectors of a size."""
    rng = np.random.default_rng(n)
    plain = rng.exponential(0.25, n).astype(np.float32)
    lopsided = np.zeros(n, np.float32)
    lopsided[1::7] = plain[1::7]  # a regular sample of the scores sees but one kind
    return {
        "plain": plain,
        "all equal": np.full(n, 0.1, np.float32),
        "two values": np.where(rng.random(n) < 0.3, 0.5, 0.25).astype(np.float32),
        "sorted": np.sort(plain),
        "reversed": np.sort(plain)[::-1].copy(),
        "denormals": (rng.integers(-50, 50, n) * 2.0**-149).astype(np.float32),
        "zeros of both signs": np.where(rng.random(n) < 0.5, -0.0, 0.0).astype(np.float32),
        "mixed signs": rng.standard_normal(n).astype(np.float32),
        "neighbours": (1 + rng.integers(0, 5, n) * 2.0**-23).astype(np.float32),
        "huge": np.where(plain < 0.2, -3e38, 3e38).astype(np.float32),
        "lopsided": lopsided,
        "half unseen": np.where(rng.random(n) < 0.5, np.nan, plain).astype(np.float32),
        "nearly all unseen": np.where(np.arange(n) == n // 2, plain, np.nan).astype(np.float32),
        "never seen": np.full(n, np.nan, np.float32),
    }


def expected(scores: np.ndarray, offsets: list[int], shares: list[int], den: int) -> np.ndarray:
    """Sort and count in Python's integers."""
    seen = np.sort(scores[~np.isnan(scores)]) + np.float32(0)  # no -0.0
    if not len(seen):
        return np.full(len(offsets), LOWEST, np.float32)
    ranks = [
        -(-(len(seen) - 1) * share // den) + offset
        for offset, share in zip(offsets, shares, strict=True)
    ]
    return seen[np.clip(np.array(ranks, dtype=np.int64), 0, len(seen) - 1)]


def as_records(scores: np.ndarray) -> torch.Tensor:
    """Return records of the scores, of two epochs."""
    kept = [0 if np.isnan(x) else oracle.record_of(float(x), i % 2) for i, x in enumerate(scores)]
    return int64(kept)


@given(n=sizes, kind=st.sampled_from(sorted(shapes(1))), salt=salts, backend=st.sampled_from(
    ["reference", "cpu"]))  # fmt: skip
def test_select_equals_sorting(n, kind, salt, backend):
    rng, scores = random.Random(salt), shapes(n)[kind]
    den = rng.choice([1, 2, 100, 1000, 2**31 - 1])
    shares = [rng.choice([0, den, rng.randint(0, den)]) for _ in range(rng.randrange(8))]
    offsets = [rng.choice([0, 0, 1, -1, n, -n, 2**31 - 1, -(2**31 - 1)]) for _ in shares]
    want = expected(scores, offsets, shares, den)
    for values in (torch.from_numpy(scores), as_records(scores)):
        got = pe.ops.select(values, offsets, shares, den, backend=backend)
        assert_bitwise(got, want, f"{kind} {values.dtype}")


@given(salt=salts, n=st.integers(0, 300), backend=st.sampled_from(["reference", "cpu"]))
def test_select_orders_every_awkward_float(salt, n, backend):
    rng = random.Random(salt)
    values = floats(rng, n) + AWKWARD + [math.inf, -math.inf]
    scores = np.array(values, np.float32)
    everything = pe.ops.select(
        torch.from_numpy(scores), list(range(len(scores))), [0] * len(scores), 1, backend=backend
    )
    assert_bitwise(everything, np.sort(scores) + np.float32(0), "the whole order")


@pytest.mark.parametrize("kind", sorted(shapes(1)))
@pytest.mark.parametrize("threads", [1, 2])
def test_select_guesses_and_is_right_all_the_same(kind, threads):
    scores = shapes(LARGE)[kind]
    values = torch.from_numpy(scores)
    ranks = ([0, 0, 0, 7, -3], [200, 850, 1, 0, 1000], 1000)
    with num_threads(threads):
        got = pe.ops.select(values, *ranks, backend="cpu")
    assert_bitwise(got, expected(scores, *ranks), kind)
    bits = np.where(np.isnan(scores), 0, scores + np.float32(0)).astype(np.float32).view(np.uint32)
    bits = bits.astype(np.int64)
    key = np.where(bits >> 31 == 1, 0xFFFFFFFF - bits, bits | 0x80000000)
    records = torch.from_numpy(np.where(np.isnan(scores), 0, key | (5 << 32)))
    assert_bitwise(pe.ops.select(records, *ranks, backend="cpu"), got, "records")


@given(n=st.integers(1, 400), salt=salts, backend=st.sampled_from(["reference", "cpu"]))
def test_percentiles_are_numpys_higher_and_leave_linears_low_set(n, salt, backend):
    rng = random.Random(salt)
    scores = np.array(floats(rng, n), np.float32) + np.float32(0)
    percents = [rng.choice([0, 20, 50, 85, 100, 12.5, 99.9]) for _ in range(3)]
    got = pe.ops.percentiles(torch.from_numpy(scores), percents, backend=backend).numpy()
    for percent, threshold in zip(percents, got, strict=True):
        position = (n - 1) * Fraction(str(percent)) / 100
        # NumPy's own position is a double; where that is exact the methods must agree.
        if Fraction((n - 1) * (percent / 100)) == position:
            higher = np.percentile(scores, percent, method="higher")
            assert_bitwise(np.array([threshold]), np.array([higher], np.float32), "higher")
        # The default method's percentile, in fractions: x[f] + (x[c] - x[f]) (position - f).
        ordered = sorted(Fraction(float(x)) for x in scores)
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        linear = low + (high - low) * (position - math.floor(position))
        below = [Fraction(float(x)) < linear for x in scores]
        assert (scores < threshold).tolist() == below


def test_control_the_lower_method_leaves_another_low_set():
    scores = float32([1, 2, 3, 4])
    threshold = pe.ops.percentiles(scores, [50]).item()
    assert threshold == 3.0
    lower = np.percentile(scores.numpy(), 50, method="lower")
    assert (scores.numpy() < lower).sum() == 1
    assert int((scores < threshold).sum()) == 2


def test_many_percentiles_at_once(backend):
    scores = torch.arange(101.0).flip(0)
    percents = [float(p) for p in range(0, 101, 7)]
    got = pe.ops.percentiles(scores, percents, backend=backend)
    assert got.tolist() == percents, "more than one call of the operator takes"


@pytest.mark.parametrize("k", [1, 2, 3, 4, 2**31 - 1])
def test_kth_counts_from_one_and_stops_at_the_last(backend, k):
    values = float32([5.0, math.nan, 1.0, 3.0])
    assert pe.ops.kth(values, k, backend=backend).item() == [1.0, 3.0, 5.0, 5.0, 5.0][min(k, 5) - 1]


def test_nothing_seen_and_nothing_asked(backend):
    for values in (float32([]), int64([]), float32([math.nan]), int64([0, 0])):
        assert_bitwise(
            pe.ops.percentiles(values, [20, 85], backend=backend), float32([LOWEST] * 2), "none"
        )
    assert pe.ops.percentiles(float32([1.0]), [], backend=backend).shape == (0,)


def test_the_argument_is_left_alone_and_may_be_strided(backend):
    room = float32([4.0, 9.0, 1.0, 9.0, 2.0, 9.0])
    strided, before = room[::2], room.clone()
    assert pe.ops.kth(strided, 2, backend=backend).item() == 2.0
    assert_bitwise(room, before, "values")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pe.ops.kth(float32([1]), 0), ValueError, r"k must be in 1\.\.\d+, got 0"),
        (lambda: pe.ops.kth(float32([1]), 1.0), TypeError, "k must be an int"),
        (lambda: pe.ops.kth(torch.zeros(2, dtype=torch.float64), 1), TypeError, "values must be"),
        (lambda: pe.ops.kth(torch.zeros(1, 2), 1), ValueError, "values must be a vector"),
        (lambda: pe.ops.percentiles(float32([1]), [101]), ValueError, "percents must be in"),
        (lambda: pe.ops.percentiles(float32([1]), [math.nan]), ValueError, "percents must be in"),
        (lambda: pe.ops.select(float32([1]), [0], [2], 1), ValueError, "shares must be in"),
        (lambda: pe.ops.select(float32([1]), [0], [0], 0), ValueError, "den must be in"),
        (lambda: pe.ops.select(float32([1]), [0], [], 1), ValueError, "one length"),
        (lambda: pe.ops.select(float32([1]), [2**31], [0], 1), ValueError, "offsets must be in"),
    ],
)
def test_edge_case_07_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "arguments",
    [([0] * 6, [0] * 6, 1), ([0], [0], 0), ([0], [2], 1), ([0], [0, 0], 1), ([2**31], [0], 1)],
)
def test_the_operator_itself_refuses_what_its_kernels_cannot_do(arguments):
    with pytest.raises(RuntimeError, match=r"must (be in|have)"):
        native.select(float32([1.0]), *arguments)


@pytest.mark.parametrize("values", [float32([2, 1, 3]), int64([0, 2**32 + 2**31])])
def test_opcheck(values):
    torch.library.opcheck(native.select, (values, [0, 1], [0, 1], 2))
    assert native.select(values, [0, 1], [0, 1], 2).shape == (2,)
