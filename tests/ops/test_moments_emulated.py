# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels that measure activations, run thread by thread on a CPU; see _emulated."""

from __future__ import annotations

import math
from pathlib import Path

import _emulated
import pytest
import torch
from _activations import (
    ACCURACY,
    DTYPES,
    activation,
    assert_gelu,
    assert_moments,
    dtypes,
    two_pass,
)
from _assertions import assert_bitwise
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_engine import backends

REFERENCE = backends.load("reference")
# Ends of a vector, a unit of 256, a block's 32 units; and enough for several blocks.
SIZES = st.sampled_from([0, 1, 3, 255, 256, 257, 2048, 8191, 8192, 8193, 30_000])
LAYOUTS = st.sampled_from(["contiguous", "offset"])


@settings(max_examples=25)
@given(
    table=st.lists(st.tuples(SIZES, dtypes, LAYOUTS, st.sampled_from([0.0, -3.0, 1e5])),
                   min_size=1, max_size=3),
    sample=st.sampled_from([1, 1, 2, 5]),
    salt=st.integers(0, 999),
)  # fmt: skip
def test_moments(emulated, table, sample, salt):
    tensors = [
        activation((n,), dtype, mean=0.01 * ratio, std=0.01, layout=layout, salt=salt + k)
        for k, (n, dtype, layout, ratio) in enumerate(table)
    ]
    want = REFERENCE.moments(tensors, sample)
    for got, row in zip(emulated.moments(tensors, sample), want, strict=True):
        assert_moments(got, tuple(row.tolist()))


def test_the_order_of_threads_and_blocks_does_not_show(emulated):
    tensors = [activation((40_001,)), activation((3, 5000), torch.bfloat16)]
    want = emulated.moments(tensors, 1)
    with emulated.descending():
        assert_bitwise(emulated.moments(tensors, 1), want, "moments")


def test_moments_of_what_is_large_constant_or_not_finite(emulated):
    outlier = activation((20_000,), std=1e-3)
    outlier[::4096] = 1e4
    assert_moments(emulated.moments([outlier], 1)[0], two_pass(outlier))
    for dtype in DTYPES:
        same = torch.full((5000,), 0.1, dtype=dtype)
        assert emulated.moments([same], 1)[0].tolist() == [5000, float(same[0]), 0.0]
    for value in (math.inf, math.nan):
        for at in (0, 9000):
            bad = torch.ones(10_000)
            bad[at] = value
            _, mean, squares = emulated.moments([bad], 1)[0].tolist()
            assert not math.isfinite(mean)
            assert math.isnan(squares)


@pytest.mark.parametrize("count", [1, 96, 97, 200])
def test_activation_std_of_more_tensors_than_a_table_holds(emulated, count):
    tensors = [activation((2, 50 + k)) for k in range(count)]
    want, got = (torch.zeros(3, dtype=torch.float64) for _ in range(2))
    REFERENCE.activation_std(tensors, want, torch.tensor([2]), True, 1)
    emulated.activation_std(tensors, got, torch.tensor([2]), True, 1)
    assert got[:2].tolist() == [0.0, 0.0]
    assert float(got[2]) == pytest.approx(float(want[2]), rel=ACCURACY)
    emulated.activation_std(tensors, got, None, False, 1)
    REFERENCE.activation_std(tensors, want, None, False, 1)
    assert float(got[0]) == pytest.approx(float(want[0]), rel=ACCURACY)


@pytest.mark.parametrize("slot", [-1, 3, 2**40])
def test_activation_std_writes_nothing_out_of_range(emulated, slot):
    out = torch.zeros(3, dtype=torch.float64)
    emulated.activation_std([torch.ones(4)], out, torch.tensor([slot]), True, 1)
    assert out.tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=25)
@given(size=SIZES, dtype=dtypes, layout=LAYOUTS, mean=st.sampled_from([0.1, 1e3]),
       salt=st.integers(0, 999))  # fmt: skip
def test_relu_moments(emulated, size, dtype, layout, mean, salt):
    x = activation((size,), dtype, mean=mean, std=0.1, layout=layout, salt=salt)
    y, found = emulated.relu_moments(x)
    assert torch.equal(y, x.relu())
    assert_moments(found, two_pass(y))
    assert_moments(emulated.relu_moments_(x), two_pass(y))
    assert torch.equal(x, y)


def test_relu_moments_keeps_a_nan(emulated):
    y, found = emulated.relu_moments(torch.tensor([math.nan, -1.0, 2.0]))
    assert math.isnan(y[0])
    assert y[1:].tolist() == [0.0, 2.0]
    assert math.isnan(found[2])


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_moments(emulated, dtype, tanh):
    x = torch.linspace(-12, 12, 9001, dtype=torch.float64).to(dtype)
    y, found = emulated.gelu_moments(x, tanh)
    assert_gelu(y, x, "tanh" if tanh else "none")
    assert_moments(found, two_pass(y))


def test_control_a_missing_shift_is_caught(emulated, tmp_path: Path):
    shift = "static_cast<double>(centre) - origin"
    broken = _emulated.break_kernel(tmp_path, emulated, "moments", shift, "0.0 * centre")
    tensor = activation((8192,), mean=5.0)
    with pytest.raises(AssertionError):
        assert_moments(broken.moments([tensor], 1)[0], two_pass(tensor))
