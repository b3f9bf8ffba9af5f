# SPDX-License-Identifier: Apache-2.0
"""activation_std: the mean over layers of their standard deviations, into one slot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _activations import ACCURACY, activation, dtypes, layouts, shapes, two_pass
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe


def std_into(tensors, slots=3, slot=1, **options) -> list[float]:
    out = torch.full((slots,), -1.0, dtype=torch.float64)
    pe.ops.activation_std(tensors, out, slot, **options)
    return out.tolist()


def right(tensors, correction: float) -> float:
    found = [two_pass(tensor) for tensor in tensors]
    return float(np.mean([math.sqrt(squares / (n - correction)) for n, _, squares in found]))


@given(
    table=st.lists(st.tuples(shapes, dtypes, layouts), min_size=1, max_size=4),
    offset=st.sampled_from([0.0, 1.0, 1e5]),
    unbiased=st.booleans(),
    salt=st.integers(0, 999),
)
def test_it_is_the_mean_of_the_stds(backend, table, offset, unbiased, salt):
    tensors = [
        activation((2, *shape), dtype, mean=0.1 * offset, std=0.1, layout=layout, salt=salt + k)
        for k, (shape, dtype, layout) in enumerate(table)
    ]
    got = std_into(tensors, unbiased=unbiased, backend=backend)
    assert got[::2] == [-1.0, -1.0]
    assert got[1] == pytest.approx(right(tensors, float(unbiased)), rel=ACCURACY, abs=0)


@pytest.mark.parametrize("slot", [2, torch.tensor([2])])
def test_a_slot_is_a_number_or_a_tensor(backend, slot):
    assert std_into([torch.tensor([1.0, 3.0])], slot=slot, unbiased=False, backend=backend) == [
        -1.0, -1.0, 1.0,
    ]  # fmt: skip


def test_no_freedom_is_nan(backend):
    one, none = torch.tensor([3.0]), torch.zeros(0)
    assert math.isnan(std_into([one], backend=backend)[1])
    assert std_into([one], unbiased=False, backend=backend)[1] == 0.0
    for unbiased in (True, False):
        assert math.isnan(std_into([none, torch.ones(3)], unbiased=unbiased, backend=backend)[1])


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_gives_nan(backend, value):
    tensor = torch.ones(9000)
    tensor[8000] = value
    assert math.isnan(std_into([torch.ones(5), tensor], backend=backend)[1])


def test_a_sample(backend):
    tensor = activation((64, 64, 8, 8))
    count, _, squares = pe.ops.moments([tensor], sample=4, backend="reference")[0].tolist()
    got = std_into([tensor], sample=4, backend=backend)[1]
    assert got == pytest.approx(math.sqrt(squares / (count - 1)), rel=ACCURACY)
    assert got != std_into([tensor], backend=backend)[1]


def test_many_layers_in_one_call(backend):
    tensors = [activation((3, 5 + k)) for k in range(250)]
    got = std_into(tensors, backend=backend)[1]
    assert got == pytest.approx(right(tensors, 1.0), rel=ACCURACY)


@pytest.mark.parametrize("slot", [-1, 3, torch.tensor([3]), torch.tensor([-1])])
def test_a_slot_out_of_range_writes_nothing(backend, slot):
    out = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(IndexError, match=r"slot must be in 0\.\.2, got"):
        pe.ops.activation_std([torch.ones(2)], out, slot, backend=backend)
    assert out.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("out", "slot", "error", "message"),
    [
        (torch.zeros(3), 0, TypeError, "out must be float64"),
        (torch.zeros(6, dtype=torch.float64)[::2], 0, ValueError, "out must be contiguous"),
        (torch.zeros(3, dtype=torch.float64, device="meta"), 0, ValueError, "out must be on cpu"),
        (torch.zeros(3, dtype=torch.float64), torch.tensor([1.0]), TypeError, "slot must be int64"),
        (torch.zeros(3, dtype=torch.float64), torch.tensor(1), ValueError, "slot must be a vector"),
    ],
)
def test_what_does_not_fit_is_refused(backend, out, slot, error, message):
    with pytest.raises(error, match=message):
        pe.ops.activation_std([torch.ones(2)], out, slot, backend=backend)


def test_a_write_is_seen_by_autograd(backend):
    out = torch.zeros(2, dtype=torch.float64)
    before = out._version
    pe.ops.activation_std([torch.ones(2)], out, 0, backend=backend)
    assert out._version > before
