# SPDX-License-Identifier: Apache-2.0
"""Levels in Triton against the reference, bit for bit; see triton_parity.py."""

from __future__ import annotations

import random

import _levels
import pytest
from _assertions import assert_bitwise
from _cases import int64
from triton_parity import DEVICE

from prune_engine import backends

pytestmark = pytest.mark.triton


def check(case: _levels.Case, label: str) -> None:
    """Fail unless both backends make the same."""
    there = (case[0].to(DEVICE), *case[1:])
    got, want = _levels.run(backends.load("triton"), there), _levels.specified(case)
    for name in want:
        assert_bitwise(got[name].cpu(), want[name], f"{label}: {name}")


@pytest.mark.parametrize("seed", range(6))
def test_plan_levels_equals_the_reference(seed):
    rng = random.Random(seed)
    for count in (0, 1, 4095, 4097):
        records = int64(_levels.records_of(_levels.random_scores(rng, count), 1))
        least = rng.choice([1, 100, 3000, 65536])
        key = rng.randrange(2**63), rng.randrange(2**31 - 1), rng.choice([0, 4096, 2**61])
        cell = rng.choice([(), (4112,), (6130,), (8175,)])  # of the never seen
        check((records, rng.randrange(count + 1), least, *key, *cell), f"{seed}, {count}")


@pytest.mark.full("fifty plans in an interpreter")
def test_plan_levels_of_fifty_seeds_equals_the_reference():
    records = int64(_levels.records_of(_levels.random_scores(random.Random(1), 300), 1))
    for seed in range(50):
        check((records, 180, 9830, seed, seed % 5, 0), f"seed {seed}")


def test_cells_equals_the_reference():
    records = int64(_levels.records_of(_levels.random_scores(random.Random(7), 40_011)))
    got = backends.load("triton").cells(records.to(DEVICE)).cpu()
    assert_bitwise(got, backends.load("reference").cells(records), "several programs")


def test_solve_levels_equals_the_reference():
    for seed in range(8):
        rng = random.Random(seed)
        scores = _levels.random_scores(rng, 200)
        counts = backends.load("reference").cells(int64(_levels.records_of(scores)))
        for target, least in ((0, 1), (rng.randrange(200), 3000), (200, 65536)):
            got = backends.load("triton").solve_levels(counts.to(DEVICE), target, least)
            want = backends.load("reference").solve_levels(counts, target, least)
            for name, a, b in zip(("top", "cut", "table", "solution"), got, want, strict=True):
                assert_bitwise(a.cpu(), b, name)


def test_plan_levels_have_the_written_vectors():
    for row in _levels.written()["plans"]:
        records = int64(_levels.records_of(_levels.written_scores(row))).to(DEVICE)
        key = (row[name] for name in ("target", "least", "seed", "epoch"))
        found = _levels.run(backends.load("triton"), (records, *key, 0))
        found = {name: each.cpu() for name, each in found.items()}
        assert _levels.facts(found, row["classes"]) == _levels.written_facts(row), row["name"]


def test_solve_levels_depend_on_the_budget():
    records = int64(_levels.records_of([0.5, 1.0, 2.0] * 300))
    with pytest.raises(AssertionError, match="cut"):  # the control of the tests above
        got = _levels.run(backends.load("triton"), (records.to(DEVICE), 500, 1, 0, 0, 0))
        want = _levels.specified((records, 499, 1, 0, 0, 0))
        assert_bitwise(got["cut"].cpu(), want["cut"], "cut")
