# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources of levels, run thread by thread on a CPU: same bits as the reference."""

from __future__ import annotations

import random
from pathlib import Path

import _emulated
import _levels
import pytest
from _assertions import assert_bitwise
from _cases import int64


def case_of(rng: random.Random, count: int, first: int = 0) -> _levels.Case:
    """Return a case of many kinds."""
    scores = _levels.random_scores(rng, count)
    target = rng.randrange(count + 1)
    key = rng.randrange(2**63), rng.randrange(2**31 - 1)
    cell = rng.choice([(), (4112,), (6130,), (8175,)])  # of the never seen
    return (
        int64(_levels.records_of(scores, 2)),
        target,
        rng.choice([1, 100, 3000, 65536]),
        *key,
        first,
        *cell,
    )


def check(emulated, case: _levels.Case, label: str) -> None:
    """Fail unless the kernels make what the reference does."""
    got, want = _levels.run(emulated, case), _levels.specified(case)
    for name in want:
        assert_bitwise(got[name], want[name], f"{label}: {name}")


@pytest.mark.parametrize("seed", range(6))
def test_levels_have_the_references_bits(ordered, seed):
    rng = random.Random(seed)
    for count in (1, 33, 4095, 4097):
        check(ordered, case_of(rng, count, rng.choice([0, 4096, 2**61])), str(count))


@pytest.mark.full("fifty plans, thread by thread")
def test_fifty_seeds_have_them(ordered):
    records = int64(_levels.records_of(_levels.random_scores(random.Random(1), 300), 1))
    kept = set()
    for seed in range(50):
        case = (records, 180, 9830, seed, seed % 5, 0)
        check(ordered, case, f"seed {seed}")
        kept.add(bytes(_levels.run(ordered, case)["weight_class"].numpy().tobytes()))
    assert len(kept) == 50, "the control: no two seeds keep the same"


def test_several_blocks_and_strides_have_them(emulated):
    rng = random.Random(9)
    check(emulated, case_of(rng, 30_011), "strides")
    records, *rest = case_of(rng, 9001)
    check(emulated, (records[1:], *rest), "a view that is not aligned")


def test_the_written_vectors(emulated):
    for row in _levels.written()["plans"]:
        case = (
            int64(_levels.records_of(_levels.written_scores(row))),
            *(row[name] for name in ("target", "least", "seed", "epoch")),
            0,
        )
        found = _levels.run(emulated, case)
        assert _levels.facts(found, row["classes"]) == _levels.written_facts(row), row["name"]


AGAIN = pytest.mark.full("compiles a broken kernel more")


@pytest.mark.parametrize(
    ("source", "old", "new"),
    [
        ("solve_levels", "least * (above[0] - above[begin])", "0"),
        pytest.param("cells", "if (bins[i] == 0) continue;", "continue;", marks=AGAIN),
        pytest.param("plan_levels", "cut[threadIdx.x] = cuts[threadIdx.x];", "", marks=AGAIN),
        pytest.param("plan_levels", "level_of(never, top)", "1", marks=AGAIN),
    ],
)
def test_control_a_broken_kernel_is_caught(emulated, tmp_path: Path, source, old, new):
    broken = _emulated.break_kernel(tmp_path, emulated, source, old, new)
    scores = [1e-30] * 4000 + [1.0] * 1000 + [None] * 50
    case = (int64(_levels.records_of(scores)), 900, 3000, 1, 2, 0, 6128)
    check(emulated, case, "whole")
    with pytest.raises(AssertionError):
        check(broken, case, "broken")
