# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on logits against the reference on the CPU: as triton_parity.py."""

from __future__ import annotations

import os

import pytest
import torch
from _assertions import assert_bitwise
from _cases import int64, salts
from _logits import Case, assert_agrees, tolerance
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prune_engine import backends

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

pytestmark = [
    pytest.mark.triton,
    # NumPy, of which the interpreter is made, warns where hardware gives inf and nan quietly.
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFERENCE = backends.load("reference")


def labels_of(num_classes, smoothing, weighted, salt):
    weight = torch.rand(num_classes, generator=torch.Generator().manual_seed(salt))
    return (weight if weighted else None, smoothing, -100)


@settings(max_examples=40)
@given(
    batch_size=st.sampled_from([0, 1, 6]),
    num_classes=st.sampled_from([1, 2, 33, 128, 129, 1000, 4097]),
    dtype=st.sampled_from(DTYPES),
    kind=st.integers(0, 5),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    awkward=st.booleans(),
    salt=salts,
)
@example(6, 4097, torch.float32, 4, 0.1, True, False, 5)
@example(6, 9000, torch.bfloat16, 1, 0.0, False, False, 6)
def test_cross_entropy_observe_equals_the_reference(
    batch_size, num_classes, dtype, kind, smoothing, weighted, awkward, salt
):
    case = Case(batch_size, num_classes, salt, dtype=dtype, awkward=awkward, span=9)
    labels = labels_of(num_classes, smoothing, weighted, salt)
    want = case.run(REFERENCE, kind, labels)
    assert_agrees(case, case.run(backends.load("triton"), kind, labels, DEVICE), want)


def test_cross_entropy_observe_out_of_range_is_counted_or_nan():
    case = Case(5, 6, 9, ignored=False)
    case.indices = int64([3, -1, 40, 2**62, 4])
    case.targets[4] = 6
    found = case.run(backends.load("triton"), 0, device=DEVICE)
    assert found["counters"].tolist() == [2, 1, 3, -1, 0]
    assert_bitwise(found["batch_weights"][1:4], [1.0, 1.0, 1.0], "weights out of range")
    assert torch.isnan(found["rescaled"]).tolist() == [False] * 4 + [True]


@settings(max_examples=20)
@given(
    batch_size=st.sampled_from([0, 1, 6]),
    num_classes=st.sampled_from([1, 2, 33, 2048, 2049, 5000]),
    dtype=st.sampled_from(DTYPES),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    awkward=st.booleans(),
    salt=salts,
)
def test_cross_entropy_grad_equals_the_reference(
    batch_size, num_classes, dtype, smoothing, weighted, awkward, salt
):
    case = Case(batch_size, num_classes, salt, dtype=dtype, awkward=awkward)
    labels = labels_of(num_classes, smoothing, weighted, salt)
    found = case.run(REFERENCE, 0, labels)
    grad = torch.linspace(-1, 2, batch_size).to(found["rescaled"].dtype)
    saved = (found["batch_weights"].clamp(max=8.0), found["stats"])
    arguments = (grad, case.logits, case.targets, *labels, *saved)
    want = REFERENCE.cross_entropy_grad(*arguments)
    there = (a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments)
    got = backends.load("triton").cross_entropy_grad(*there).cpu()
    unit, limits = torch.finfo(dtype).eps, tolerance(dtype)
    torch.testing.assert_close(
        got.double(), want.double(), equal_nan=True,
        rtol=limits["rtol"] + 2 * unit, atol=32 * limits["atol"],
    )  # fmt: skip
