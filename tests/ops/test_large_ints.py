# SPDX-License-Identifier: Apache-2.0
"""Every int that an operator takes: right up to its limit, refused beyond it, never wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise

from prune_engine import ops
from prune_engine.ops.rule import Rule

BACKENDS = ["cpu", "reference"]
backends = pytest.mark.parametrize("backend", BACKENDS)
LIMIT = 2**63 - 1
LIST = torch.arange(5, dtype=torch.int32)
VALUES = torch.tensor([3.0, 1.0, 2.0])
RECORDS = torch.zeros(3, dtype=torch.int64)
CLASSES = torch.ones(3, dtype=torch.uint8)
LONG = torch.arange(2000.0)

# name of the argument -> what takes it, and a value that fits
CALLS: dict[str, tuple[Callable[[Any, str], Any], int]] = {
    "sample": (lambda n, b: ops.moments([LONG], sample=n, backend=b), 3),
    "slot": (
        lambda n, b: ops.activation_std([LONG], torch.zeros(3).double(), n, backend=b),
        2,
    ),
    "k": (lambda n, b: ops.top(VALUES, n, backend=b), 2),
    "seed": (lambda n, b: ops.order(LIST, range(5), seed=n, epoch=0, backend=b), 7),
    "epoch": (lambda n, b: ops.audit(RECORDS, CLASSES, epoch=n, backend=b), 7),
    "n": (lambda n, b: ops.shuffle(torch.arange(3), n, seed=0, epoch=0, backend=b), 7),
    "first": (lambda n, b: planned(n, b), 8192),
    "num_kept": (lambda n, b: ops.compact(CLASSES, torch.tensor([0, 3]), n, backend=b), 3),
    "den": (lambda n, b: ops.select(VALUES, [0], [0], n, backend=b), 7),
    "offsets": (lambda n, b: ops.select(VALUES, [n], [0], 1, backend=b), 1),
    "shares": (lambda n, b: ops.select(VALUES, [0], [n], 9, backend=b), 7),
}
BEYOND = [2**64, 2**70, -1, -(2**70)]


def planned(first: Any, backend: str) -> torch.Tensor:
    rule = Rule.keep_all(torch.device("cpu"))
    return ops.plan(RECORDS, rule, seed=0, epoch=0, first=first, backend=backend)[0]


@backends
@pytest.mark.parametrize("name", list(CALLS))
def test_an_int_beyond_its_range_is_refused_by_name(name: str, backend: str) -> None:
    call, fits = CALLS[name]
    largest = [] if name == "seed" else [LIMIT, 2**63]
    beyond = [value for value in BEYOND if name != "offsets" or value != -1]
    for value in (*largest, *beyond):
        with pytest.raises((ValueError, IndexError), match=f"{name} must be .*got {value}"):
            call(value, backend)
    call(fits, backend)  # control


@backends
@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("value", [1.5, "1", None, True, [1]], ids=repr)
def test_what_is_no_int_is_refused_by_name(name: str, value: Any, backend: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        CALLS[name][0](value, backend)


@backends
@pytest.mark.parametrize("name", list(CALLS))
def test_an_int_of_numpy_is_an_int(name: str, backend: str) -> None:
    call, fits = CALLS[name]
    plain, given = call(fits, backend), call(np.int64(fits), backend)
    assert (plain is None) == (given is None)
    if plain is not None:
        assert_bitwise(given, plain, name)


@backends
@pytest.mark.parametrize("sample", [8, 10**6, 2**31 - 1])
def test_a_sample_beyond_the_number_of_blocks_takes_one_of_them(sample: int, backend: str) -> None:
    found = ops.moments([LONG, torch.zeros(0)], sample=sample, backend=backend)
    assert found[0, 0].item() in (256.0, 2000 - 7 * 256)
    assert found[0, 2].item() > 0
    assert found[1].tolist() == [0.0, 0.0, 0.0]


@backends
@pytest.mark.parametrize(
    "positions",
    [
        range(LIMIT, 2**65, 2**62),
        range(2**62, 2**62 + 3),
        range(2**70, 2**70 + 2),
        range(0, 2**70),
        range(0, 2**66, 2**62),
        range(4, -(2**70), -(2**69)),
        range(-1, 3),
        range(3, 6),
    ],
    ids=repr,
)
def test_a_range_beyond_the_list_is_refused(positions: range, backend: str) -> None:
    with pytest.raises(IndexError, match=r"positions must be in 0\.\.4"):
        ops.order(LIST, positions, seed=0, epoch=0, backend=backend)


@backends
def test_a_step_that_is_not_taken_may_be_of_any_size(backend: str) -> None:
    whole = ops.order(LIST, range(5), seed=0, epoch=0, backend=backend).tolist()
    for step in (5, 2**62, 2**70):
        one = ops.order(LIST, range(3, 5, step), seed=0, epoch=0, backend=backend)
        assert one.tolist() == [whole[3]]
    back = ops.order(LIST, range(4, -1, -1), seed=0, epoch=0, backend=backend)
    assert back.tolist() == whole[::-1]
    assert ops.order(LIST, range(2**70, 0), seed=0, epoch=0, backend=backend).tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: op.moments([LONG], LIMIT), "sample must be in"),
        (lambda op: op.order(LIST, None, 0, 2**62, 5, 0, 0), "positions must be in"),
        (
            lambda op: op.plan(
                RECORDS, torch.empty(0), [0], [1], [1], 0, -1, 0, 0, CLASSES, 2**62 + 4096
            ),
            "first must be",
        ),
    ],
    ids=["sample", "order", "first"],
)
def test_the_compiled_operators_refuse_what_would_wrap(call: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.prune_engine)
