# SPDX-License-Identifier: Apache-2.0
"""``prune-engine info --check``: every operator is compared, and a fault in any is reported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import prune_engine as pe
from prune_engine import backends
from prune_engine.recipes import diagnostics, selftest

CPU = torch.device("cpu")
OPERATORS = [
    name
    for name, member in vars(backends.Kernels).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


def spoil(result: Any) -> Any:
    """Change a little of what an operator returned: a bit, or of what is measured 1e-5."""
    last: Tensor = result if isinstance(result, Tensor) else result[-1]
    flat = last.view(-1)
    if flat.dtype == torch.float64:
        flat *= 1 + 1e-5
    elif flat.is_floating_point():
        flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf, dtype=flat.dtype))
    else:
        flat[0] ^= 1
    return result


class Corrupted:
    """The operators, one of them slightly off."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = getattr(pe.ops, name)
        if name != self.name:
            return operator

        def spoiled(*args: Any, **kwargs: Any) -> Any:
            result = operator(*args, **kwargs)
            return spoil(args[1] if result is None else result)  # activation_std writes there

        return spoiled


def test_there_are_operators_and_each_has_a_case() -> None:
    assert len(OPERATORS) >= 6
    # relu_moments_ and its like are one more way into the operator of that name, and a gradient is
    # the second half of its own.
    whole = {name.rstrip("_").replace("_grad", "_observe") for name in OPERATORS}
    assert set(selftest.CASES) == whole


def test_every_backend_of_this_machine_is_checked_once_per_operator() -> None:
    there = [row for row in backends.describe() if row.available and row.name != "reference"]
    assert "cpu" in {row.name for row in there}
    expected = [
        f"{row.name} on {device}: {name}"
        for row in there
        for device in row.devices
        for name in selftest.CASES
    ]
    results = selftest.check()
    assert [check.name for check in results] == expected
    assert [check.name for check in results if not check.ok] == []


@pytest.mark.parametrize("name", selftest.CASES)
def test_a_little_wrong_in_an_operator_is_reported_as_that_operators_fault(name: str) -> None:
    results = selftest.parity("cpu", CPU, Corrupted(name))
    faults = [check for check in results if not check.ok]
    assert [check.name for check in faults] == [f"cpu on cpu: {name}"]
    assert "elements differ" in faults[0].detail
    facts = {**diagnostics.info(), "check": [check.as_dict() for check in results]}
    lines = [line for line in diagnostics.render(facts).splitlines() if "FAULT" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"  FAULT cpu on cpu: {name}: ")


def test_an_operator_that_raises_is_a_fault_and_the_others_are_tried() -> None:
    class Missing:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            if name == "plan":
                raise RuntimeError("no kernel image is available")
            return getattr(pe.ops, name)

    results = selftest.parity("cpu", CPU, Missing())
    assert [check.name for check in results if not check.ok] == ["cpu on cpu: plan"]
    (detail,) = [check.detail for check in results if not check.ok]
    assert detail == ": raised RuntimeError: no kernel image is available"


def test_a_result_of_another_shape_or_dtype_is_a_fault() -> None:
    class Wide:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return getattr(pe.ops, name)

        @staticmethod
        def order(*args: Any, **kwargs: Any) -> Tensor:
            return pe.ops.order(*args, **kwargs).long()

    (fault,) = [check for check in selftest.parity("cpu", CPU, Wide()) if not check.ok]
    assert fault.detail.startswith(": expected torch.int32")
