# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on logits, their own sources on a CPU: as test_cuda_emulated.py."""

from __future__ import annotations

import _emulated
import pytest
import torch
from _assertions import assert_bitwise
from _cases import int64, salts
from _logits import Case, assert_agrees, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_engine import backends

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFERENCE = backends.load("reference")
# On both sides of a vector, a warp, the longest row of a warp, and a piece of the gradient.
CLASSES = st.sampled_from([1, 2, 7, 31, 33, 1000, 1023, 1024, 1025, 2500])


@settings(max_examples=40)
@given(
    batch_size=st.sampled_from([0, 1, 5, 41]),
    num_classes=CLASSES,
    dtype=st.sampled_from(DTYPES),
    kind=st.integers(0, 5),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    awkward=st.booleans(),
    salt=salts,
)
def test_observe_and_grad(
    emulated, batch_size, num_classes, dtype, kind, smoothing, weighted, awkward, salt
):
    case = Case(batch_size, num_classes, salt, dtype=dtype, awkward=awkward, span=9)
    weight = torch.rand(num_classes, generator=torch.Generator().manual_seed(salt))
    labels = (weight if weighted else None, smoothing, -100)
    want = case.run(REFERENCE, kind, labels)
    assert_agrees(case, case.run(emulated, kind, labels), want)
    grad = torch.linspace(-1, 2, batch_size).to(want["rescaled"].dtype)
    saved = (want["batch_weights"].clamp(max=8.0), want["stats"])
    given_arguments = (grad, case.logits, case.targets, *labels, *saved)
    got = emulated.cross_entropy_grad(*given_arguments)
    made = REFERENCE.cross_entropy_grad(*given_arguments)
    unit, limits = torch.finfo(dtype).eps, tolerance(dtype)
    torch.testing.assert_close(
        got.double(), made.double(), equal_nan=True,
        rtol=limits["rtol"] + 2 * unit, atol=32 * limits["atol"],
    )  # fmt: skip


@pytest.mark.parametrize("num_classes", [40, 1500])
def test_the_order_of_threads_does_not_show(emulated, num_classes):
    case = Case(20, num_classes, 3, span=5)
    labels = (None, 0.1, -100)
    forwards = case.run(emulated, 1, labels)
    with emulated.descending():
        backwards = case.run(emulated, 1, labels)
    for name, value in forwards.items():
        assert_bitwise(backwards[name], value, name)


@pytest.mark.parametrize("num_classes", [6, 1500])
def test_out_of_range_is_counted_or_nan_and_never_read(emulated, num_classes):
    case = Case(5, num_classes, 9, ignored=False)
    case.indices = int64([3, -1, 40, 2**62, 4])
    case.targets[4] = num_classes
    found = case.run(emulated, 0)
    assert found["counters"].tolist() == [2, 1, 3, -1, 0]
    assert_bitwise(found["batch_weights"][1:4], [1.0, 1.0, 1.0], "weights out of range")
    assert torch.isnan(found["rescaled"]).tolist() == [False] * 4 + [True]
    touched = (found["records"] != case.start[0]).nonzero().flatten().tolist()
    assert set(touched) <= {3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [70, 1100])
def test_a_nan_is_seen_wherever_it_stands(emulated, dtype, num_classes):
    # Of a row's ends, its vectors, and what each thread reads first.
    places = [0, 1, 2, 7, 8, 9, 31, 32, 33, num_classes // 2, num_classes - 2, num_classes - 1]
    case = Case(len(places), num_classes, 5, dtype=dtype, ignored=False)
    case.logits = torch.zeros(len(places), num_classes, dtype=dtype)
    case.logits[range(len(places)), places] = torch.nan
    for kind, smoothing in ((0, 0.0), (1, 0.1)):
        found = case.run(emulated, kind, (None, smoothing, -100))
        assert torch.isnan(found["rescaled"]).all() and torch.isnan(found["score"]).all()


def test_long_rows_are_cut_into_pieces_and_rows_begin_anywhere(emulated):
    case = Case(3, 16_384 * 2 + 77, 4, ignored=False)
    want = case.run(REFERENCE, 4)
    assert_agrees(case, case.run(emulated, 4), want)
    given_arguments = (
        torch.ones(3), case.logits, case.targets, None, 0.0, -100, torch.ones(3), want["stats"],
    )  # fmt: skip
    got = emulated.cross_entropy_grad(*given_arguments)
    made = REFERENCE.cross_entropy_grad(*given_arguments)
    torch.testing.assert_close(got, made, rtol=1e-4, atol=1e-7)
    assert got.sum(dim=1).abs().max() < 1e-3, "a row's gradient sums to nothing"


def test_a_gradient_without_classes_launches_nothing(emulated):  # a grid of 0 ends the emulator
    rows, one = torch.zeros(3, 0), torch.ones(3)
    labels = (torch.zeros(3, dtype=torch.int64), None, 0.0, -100)
    assert emulated.cross_entropy_grad(one, rows, *labels, one, torch.zeros(3, 2)).shape == (3, 0)


def test_a_missing_barrier_is_caught(emulated, tmp_path):
    barrier = "parts[warp_id()] = found;\n      __syncthreads();\n"
    broken = _emulated.break_kernel(
        tmp_path, emulated, "cross_entropy_observe", barrier, "parts[warp_id()] = found;\n"
    )
    case = Case(20, 1500, 3, ignored=False)
    want, got = case.run(REFERENCE, 0), case.run(broken, 0)
    assert not torch.allclose(got["rescaled"], want["rescaled"], rtol=1e-4)
