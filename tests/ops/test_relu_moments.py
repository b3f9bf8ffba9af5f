# SPDX-License-Identifier: Apache-2.0
"""relu_moments: torch's ReLU and its gradient, with the moments of what was written."""

from __future__ import annotations

import math

import pytest
import torch
from _activations import DTYPES, activation, assert_moments, dtypes, layouts, shapes, two_pass
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

relu = pe.ops.relu_moments


def strides(tensor: torch.Tensor) -> list[int]:
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


@given(shape=shapes, dtype=dtypes, layout=layouts, inplace=st.booleans(), salt=st.integers(0, 999))
def test_it_is_torchs_relu_with_the_moments_of_the_result(
    backend, shape, dtype, layout, inplace, salt
):
    layout = "strided" if inplace and layout == "expanded" else layout
    x = activation(shape, dtype, mean=0.1, layout=layout, salt=salt)
    want = x.relu()
    y, found = relu(x, inplace=inplace, backend=backend)
    assert torch.equal(y, want)
    assert y.dtype == x.dtype
    assert (y is x) == inplace
    assert inplace or strides(y) == strides(want)
    assert_moments(found, two_pass(want))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_torchs(backend, dtype, inplace):
    x = activation((3, 4, 5, 6), dtype, layout="channels_last")
    x[0, 0, 0] = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1.0], dtype=dtype)
    grads = []
    for function in (
        lambda t: torch.relu(t),
        lambda t: relu(t, inplace=inplace, backend=backend)[0],
    ):
        leaf = x.clone().requires_grad_()
        y = function(leaf * 1)
        y.backward(activation(x.shape, dtype, salt=1))
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck_and_the_second_derivative(backend, inplace):
    x = activation((4, 5), torch.float64).requires_grad_()
    function = lambda t: relu(t * 2, inplace=inplace, backend=backend)[0]  # noqa: E731
    with torch.random.fork_rng():  # they draw directions
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(lambda t: function(t).square(), x)


def test_the_moments_carry_no_gradient(backend):
    y, found = relu(torch.ones(3, requires_grad=True), backend=backend)
    assert y.requires_grad
    assert not found.requires_grad


def test_in_place_changes_are_seen_by_autograd(backend):
    x = torch.ones(3)
    before = x._version
    relu(x, inplace=True, backend=backend)
    assert x._version > before
    leaf = torch.ones(3, requires_grad=True)
    saved = leaf * 1
    squared = saved.square()
    relu(saved, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_in_place_on_a_view_of_what_needs_a_gradient(backend):
    leaf = torch.tensor([-1.0, 2.0, 3.0, -4.0], requires_grad=True)
    whole = leaf * 1
    _, found = relu(whole[:2], inplace=True, backend=backend)
    assert whole.tolist() == [0.0, 2.0, 3.0, -4.0]
    assert found.tolist() == [2.0, 1.0, 2.0]
    whole.sum().backward()
    assert leaf.grad.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_in_place_on_a_leaf_is_refused_before_it_is_written(backend):
    leaf = torch.tensor([-1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="x must not be a leaf"):
        relu(leaf, inplace=True, backend=backend)
    assert leaf.item() == -1.0
    with torch.no_grad():
        assert relu(leaf, inplace=True, backend=backend)[0].item() == 0.0


def test_nan_stays_and_shows(backend):
    x = torch.tensor([math.nan, -1.0, 2.0])
    y, found = relu(x, backend=backend)
    assert math.isnan(y[0])
    assert y[1:].tolist() == [0.0, 2.0]
    assert math.isnan(found[2])


def test_empty(backend):
    y, found = relu(torch.zeros(0, 3), backend=backend)
    assert y.shape == (0, 3)
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_what_does_not_fit_is_refused(backend):
    with pytest.raises(TypeError, match=r"x must be float32 or .*int64"):
        relu(torch.tensor([1]), backend=backend)
