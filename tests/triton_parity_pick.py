# SPDX-License-Identifier: Apache-2.0
"""pick in Triton against the reference, bit for bit; see triton_parity.py."""

from __future__ import annotations

import importlib
import random

import _pick
import pytest
import torch
from _assertions import assert_bitwise
from triton_parity import DEVICE

from prune_engine import backends

pytestmark = pytest.mark.triton
REFERENCE = backends.load("reference")


def chosen(case):
    """Choose with Triton, where it runs."""
    there = [each.to(DEVICE) if isinstance(each, torch.Tensor) else each for each in case]
    return [each.cpu() for each in backends.load("triton").pick(*there)]


def check(case, label):
    """Fail unless both backends choose alike."""
    want = REFERENCE.pick(*case)
    for name, a, b in zip(("indices", "weights", "eligible"), chosen(case), want, strict=True):
        assert_bitwise(a, b, f"{label}: {name}")


@pytest.fixture(params=["one program", "tiles"])
def path(request, monkeypatch):
    """Take either path, whatever the size."""
    if request.param == "tiles":
        module = importlib.import_module("prune_engine.backends.triton.pick")
        monkeypatch.setattr(module, "ONE_PROGRAM", 0)
    return request.param


@pytest.mark.parametrize("seed", range(5))
def test_pick_equals_the_reference(path, seed):
    rng = random.Random(seed)
    for count in (0, 1, 33, 257):
        check(_pick.random_case(rng, count), f"{path}, {count}")


@pytest.mark.full("long under the interpreter")
@pytest.mark.parametrize("seed", range(50))
def test_pick_equals_the_reference_for_many_seeds(path, seed):
    rng = random.Random(100 + seed)
    for count in (2, 64, 300, 1024) if seed % 5 else (1025, 4095, 4096):
        check(_pick.random_case(rng, count), f"{path}, {count}")


@pytest.mark.parametrize("rule", _pick.RULES)
def test_pick_of_more_than_one_program_takes_equals_the_reference(rule):
    rng = random.Random(5)
    for count, k in ((4097, 4096), (9001, 700)):
        values = _pick.tensor_of(_pick.random_bits(rng, "heavy", count))
        check(_pick.arguments(values, k, rule, 6554, _pick.random_key(rng)), f"{rule}, {count}")


def test_pick_has_the_written_vectors(path):
    for vector in _pick.vectors():
        indices, weights, _ = chosen(vector.arguments)
        assert indices.tolist() == vector.indices, vector.name
        words = [word & 0xFFFFFFFF for word in weights.view(torch.int32).tolist()]
        assert words == vector.weights, vector.name


def test_pick_depends_on_the_step():
    values = torch.ones(300)
    one, other = (
        _pick.arguments(values, 90, "random", 0, _pick.Key(1, step=step)) for step in (1, 2)
    )
    with pytest.raises(AssertionError, match="indices"):  # the control of the tests above
        assert_bitwise(chosen(one)[0], REFERENCE.pick(*other)[0], "indices")


@pytest.mark.full("long under the interpreter")
@pytest.mark.parametrize("k", [1, 20_000, 70_000])
def test_pick_of_many_equals_the_reference(k):
    case, _ = _pick.large()
    for rule in range(3):
        check((case[0], k, rule, *case[3:]), f"rule {rule}")
