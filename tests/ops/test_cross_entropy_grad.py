# SPDX-License-Identifier: Apache-2.0
"""cross_entropy_grad: the backward pass as an operator; see also test_cross_entropy_observe.py."""

from __future__ import annotations

import pytest
import torch
from _assertions import assert_bitwise
from _cases import salts
from _logits import Case, tolerance
from hypothesis import given
from hypothesis import strategies as st

from prune_engine import backends
from prune_engine.backends import native

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFERENCE = backends.load("reference")


def arguments(case: Case, labels, salt: int = 0):
    """What the backward pass gets, from the forward pass of the reference."""
    found = case.run(REFERENCE, 0, labels)
    size = len(case.targets)
    generator = torch.Generator().manual_seed(salt)
    grad = torch.randn(size, generator=generator).to(found["rescaled"].dtype)
    saved = (found["batch_weights"].clamp(max=8.0), found["stats"])
    return (grad, case.logits, case.targets, *labels, *saved)


@given(
    batch_size=st.sampled_from([0, 1, 9]),
    num_classes=st.sampled_from([1, 2, 17, 1000, 1024, 1025, 3000]),
    dtype=st.sampled_from(DTYPES),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    salt=salts,
)
def test_cpu_agrees_with_the_reference(batch_size, num_classes, dtype, smoothing, weighted, salt):
    case = Case(batch_size, num_classes, salt, dtype=dtype)
    weight = torch.rand(num_classes, generator=torch.Generator().manual_seed(1))
    given_arguments = arguments(case, (weight if weighted else None, smoothing, -100), salt)
    want = REFERENCE.cross_entropy_grad(*given_arguments)
    got = backends.load("cpu").cross_entropy_grad(*given_arguments)
    assert got.dtype == dtype
    unit = torch.finfo(dtype).eps
    limits = tolerance(dtype)
    torch.testing.assert_close(
        got.double(), want.double(), rtol=limits["rtol"] + 2 * unit, atol=32 * limits["atol"]
    )


def test_rows_that_are_ignored_or_not_finite_stay_apart():
    case = Case(4, 6, 3, ignored=False)
    case.targets[1] = -100
    case.logits[2, 0] = torch.inf
    given_arguments = arguments(case, (None, 0.1, -100))
    for name in ("reference", "cpu"):
        made = backends.load(name).cross_entropy_grad(*given_arguments)
        assert_bitwise(made[1], [0.0] * 6, "ignored")
        assert bool(torch.isnan(made[2]).all())
        assert bool(torch.isfinite(made[[0, 3]]).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    torch.library.opcheck(
        native.cross_entropy_grad, arguments(Case(3, 5, 0, dtype=dtype), (None, 0.1, -100))
    )


def test_an_argument_of_another_shape_is_refused():
    given_arguments = list(arguments(Case(3, 5, 0), (None, 0.1, -100)))
    for at, name in ((0, "grad"), (6, "batch_weights"), (7, "stats")):
        wrong = [*given_arguments]
        wrong[at] = wrong[at][:2]
        with pytest.raises(RuntimeError, match=name):
            native.cross_entropy_grad(*wrong)
