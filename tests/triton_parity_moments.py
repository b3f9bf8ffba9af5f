# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that measure activations; run as triton_parity.py is."""

from __future__ import annotations

import math
import os

import pytest
import torch
from _activations import ACCURACY, DTYPES, activation, assert_gelu, assert_moments, two_pass
from _assertions import assert_bitwise

import prune_engine as pe

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SIZES = (0, 1, 255, 256, 4096, 4097, 17_001)

pytestmark = [
    pytest.mark.triton,
    # NumPy, of which the interpreter is made, warns where hardware gives inf and nan quietly.
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
    ),
]


@pytest.mark.parametrize("sample", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_equals_the_reference(dtype, sample):
    ratios = (0.0, 1e5, -3.0)
    tensors = [
        activation((n,), dtype, mean=0.01 * ratios[k % 3], std=0.01) for k, n in enumerate(SIZES)
    ]
    there = [tensor.to(DEVICE) for tensor in tensors]
    got = pe.ops.moments(there, sample=sample, backend="triton").cpu()
    want = pe.ops.moments(tensors, sample=sample, backend="reference")
    for a, b in zip(got, want, strict=True):
        assert_moments(a, tuple(b.tolist()))


def test_moments_of_what_is_not_finite():
    for value in (math.inf, math.nan):
        bad = torch.ones(5000)
        bad[4500] = value
        _, mean, squares = pe.ops.moments([bad.to(DEVICE)], backend="triton")[0].tolist()
        assert not math.isfinite(mean)
        assert math.isnan(squares)


def test_moments_are_the_same_again():
    x = activation((3, 5000), torch.bfloat16).to(DEVICE)
    first, second = (pe.ops.moments([x], backend="triton") for _ in range(2))
    assert_bitwise(first, second, "moments")


@pytest.mark.parametrize("unbiased", [True, False])
def test_activation_std_equals_the_reference(unbiased):
    tensors = [activation((2, 50 + k), DTYPES[k % 3]) for k in range(5)]
    want = torch.zeros(3, dtype=torch.float64)
    got = want.to(DEVICE)
    pe.ops.activation_std(tensors, want, 1, unbiased=unbiased, backend="reference")
    there = [tensor.to(DEVICE) for tensor in tensors]
    slot = torch.tensor([2], device=DEVICE)
    pe.ops.activation_std(there, got, 1, unbiased=unbiased, backend="triton")
    pe.ops.activation_std(there, got, slot, unbiased=unbiased, backend="triton")
    assert float(got[0]) == 0.0
    assert float(got[1]) == pytest.approx(float(want[1]), rel=ACCURACY)
    assert float(got[2]) == float(got[1])


def test_activation_std_without_freedom_is_nan():
    for tensor in (torch.ones(1), torch.zeros(0)):
        out = torch.zeros(1, dtype=torch.float64, device=DEVICE)
        pe.ops.activation_std([tensor.to(DEVICE)], out, 0, backend="triton")
        assert math.isnan(float(out[0]))


@pytest.mark.parametrize("slot", [-1, 3])
def test_activation_std_writes_nothing_out_of_range(slot):
    out = torch.zeros(3, dtype=torch.float64, device=DEVICE)
    place = torch.tensor([slot], device=DEVICE)
    pe.ops.activation_std([torch.ones(9, device=DEVICE)], out, place, backend="triton")
    assert out.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_moments_equals_the_reference(dtype, inplace):
    for size in SIZES:
        x = activation((size,), dtype, mean=0.3)
        y, found = pe.ops.relu_moments(x.clone().to(DEVICE), inplace=inplace, backend="triton")
        assert torch.equal(y.cpu(), x.relu())
        assert_moments(found.cpu(), two_pass(x.relu()))
    x = torch.tensor([math.nan, -math.inf, math.inf, -0.0, -1.0], dtype=dtype)
    y, _ = pe.ops.relu_moments(x.to(DEVICE), inplace=inplace, backend="triton")
    assert_bitwise(y.cpu(), torch.tensor([math.nan, 0.0, math.inf, 0.0, 0.0], dtype=dtype), "y")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_moments_equals_the_reference(dtype, approximate):
    x = torch.linspace(-12, 12, 5001, dtype=torch.float64).to(dtype)
    y, found = pe.ops.gelu_moments(x.to(DEVICE), approximate, backend="triton")
    assert_gelu(y.cpu(), x, approximate)
    assert_moments(found.cpu(), two_pass(y.cpu()))
