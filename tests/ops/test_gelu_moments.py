# SPDX-License-Identifier: Apache-2.0
"""gelu_moments: torch's GELU within a rounding, its gradient, the moments of what was written."""

from __future__ import annotations

import pytest
import torch
from _activations import (
    DTYPES,
    activation,
    assert_gelu,
    assert_moments,
    dtypes,
    layouts,
    shapes,
    two_pass,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import gelu as torch_gelu

import prune_engine as pe

gelu = pe.ops.gelu_moments
approximations = st.sampled_from(["none", "tanh"])


@given(
    shape=shapes, dtype=dtypes, layout=layouts, approximate=approximations, salt=st.integers(0, 999)
)
def test_it_is_torchs_gelu_with_the_moments_of_the_result(
    backend, shape, dtype, layout, approximate, salt
):
    x = activation(shape, dtype, mean=0.1, std=2.0, layout=layout, salt=salt)
    y, found = gelu(x, approximate, backend=backend)
    assert_gelu(y, x, approximate)
    assert_moments(found, two_pass(y))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_over_the_whole_range(backend, dtype, approximate):
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64).to(dtype)
    large = torch.tensor([0.0, -0.0, 100.0, -100.0, 6e4, -6e4], dtype=dtype)
    x = torch.cat([x, large])
    y, found = gelu(x, approximate, backend=backend)
    assert_gelu(y, x, approximate)
    assert_moments(found, two_pass(y))
    y, found = gelu(torch.tensor([1.0, torch.nan], dtype=dtype), approximate, backend=backend)
    assert y.isnan().tolist() == [False, True]
    assert found.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_torchs(backend, dtype, approximate):
    x = activation((3, 4, 5), dtype)
    grads = []
    for function in (
        lambda t: torch_gelu(t, approximate=approximate),
        lambda t: gelu(t, approximate, backend=backend)[0],
    ):
        leaf = x.clone().requires_grad_()
        function(leaf).backward(activation(x.shape, dtype, salt=1))
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_second_derivative_follows(backend, approximate):
    x = activation((4, 5), torch.float64).requires_grad_()
    function = lambda t: gelu(t, approximate, backend=backend)[0]  # noqa: E731
    with torch.random.fork_rng():  # they draw directions
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def test_what_does_not_fit_is_refused(backend):
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', got 'erf'"):
        gelu(torch.ones(1), "erf", backend=backend)
    with pytest.raises(TypeError, match="x must be float32 or"):
        gelu(torch.ones(1, dtype=torch.int32), backend=backend)
