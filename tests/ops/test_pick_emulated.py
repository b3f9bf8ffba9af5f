# SPDX-License-Identifier: Apache-2.0
"""pick's CUDA source, run thread by thread on a CPU: same bits as the reference."""

from __future__ import annotations

import random
from pathlib import Path

import _emulated
import _pick
import pytest
import torch
from _assertions import assert_bitwise

from prune_engine import backends

REFERENCE = backends.load("reference")
SOURCE = "pick"


def check(emulated, case, label):
    """Fail unless the kernels choose as the reference does."""
    want = REFERENCE.pick(*case)
    for name, a, b in zip(
        ("indices", "weights", "eligible"), emulated.pick(*case), want, strict=True
    ):
        assert_bitwise(a, b, f"{label}: {name}")


@pytest.mark.parametrize("seed", range(50))
def test_one_block_has_the_references_bits(emulated, seed):
    rng = random.Random(seed)
    for count in (1, 33, 257, 1024, 1025, 4096)[: 6 if seed % 10 == 0 else 3]:
        check(emulated, _pick.random_case(rng, count), f"{count}")


@pytest.mark.parametrize("seed", range(3))
def test_several_blocks_have_them(ordered, seed):
    rng = random.Random(seed)
    for count in (4097, 9001):
        check(ordered, _pick.random_case(rng, count), f"{count}")


@pytest.mark.parametrize("rule", _pick.RULES)
@pytest.mark.parametrize("k", [0, 4097])
def test_several_blocks_of_powers_of_two(emulated, rule, k):
    # Newton's loop takes more rounds of these than all blocks do together.
    rng = random.Random(k)
    values = _pick.tensor_of(_pick.random_bits(rng, "powers", 9001))
    check(emulated, _pick.arguments(values, k, rule, 0, _pick.random_key(rng)), rule)


@pytest.mark.full("every kind, in both orders")
@pytest.mark.parametrize("rule", _pick.RULES)
@pytest.mark.parametrize("k", [0, 1, 4097, 12_000])
def test_several_blocks_of_every_kind(ordered, rule, k):
    rng = random.Random(k)
    for kind in ("powers", "odd", "heavy"):
        values = _pick.tensor_of(_pick.random_bits(rng, kind, 12_001))
        check(ordered, _pick.arguments(values, k, rule, 6554, _pick.random_key(rng)), kind)


def test_the_written_vectors(ordered):
    for vector in _pick.vectors():
        indices, weights, _ = ordered.pick(*vector.arguments)
        assert indices.tolist() == vector.indices, vector.name
        words = [word & 0xFFFFFFFF for word in weights.view(torch.int32).tolist()]
        assert words == vector.weights, vector.name


@pytest.mark.full("as long as ten others")
def test_the_written_large_vector(ordered):
    case, _ = _pick.large()
    check(ordered, case, "large")


def case_of(count: int) -> tuple:
    """Return a case in which some are certain."""
    values = torch.arange(1.0, count + 1.0) ** 4
    return _pick.arguments(values, count // 2, "proportional", 6554, _pick.Key(3, 1, 2))


AGAIN = pytest.mark.full("compiles a broken kernel more")


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ("walk(args, phase);\n    __syncthreads();", "walk(args, phase);", 700),
        ("const int end = all ? 2 : solve + 1;", "const int end = solve + 1;", 700),
        ("certain || !known ? kChosen", "!known ? kChosen", 700),
        pytest.param("args.sums[blockIdx.x] : 0", "args.sums[gridDim.x] : 0", 5000, marks=AGAIN),
        pytest.param("before.before += args.counts[blockIdx.x];", "", 5000, marks=AGAIN),
        pytest.param("if (!known) ++t;", "++t;", 700, marks=AGAIN),
    ],
    ids=["barrier", "floor", "certain", "offset", "place", "point"],
)
def test_control_a_broken_kernel_is_caught(emulated, tmp_path: Path, old, new, count):
    broken = _emulated.break_kernel(tmp_path, emulated, SOURCE, old, new)
    case = case_of(count)
    check(emulated, case, "whole")
    found = []
    for descending in (False, True):
        broken._library.emulator_descending(int(descending))
        try:
            check(broken, case, "broken")
        except AssertionError as error:
            found.append(str(error))
    broken._library.emulator_descending(0)
    assert found
