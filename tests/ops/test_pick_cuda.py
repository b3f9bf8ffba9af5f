# SPDX-License-Identifier: Apache-2.0
"""pick on a GPU, by its CUDA and its Triton kernels; see test_cuda."""

from __future__ import annotations

import random

import _pick
import pytest
import torch
from _assertions import assert_bitwise

from prune_engine import backends

# torch warns that its search for synchronisation is a prototype.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::UserWarning")]

SIZES = [1, 33, 257, 1024, 1025, 4096, 4097, 70_001, 1_000_003]


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def kernels(request: pytest.FixtureRequest):
    """Fail where a GPU was asked for and none can serve."""
    try:
        return backends.load(request.param)
    except RuntimeError as error:
        pytest.fail(f"these tests need a GPU: {error}")


def moved(case: tuple) -> list:
    return [each.to("cuda") if isinstance(each, torch.Tensor) else each for each in case]


@pytest.mark.parametrize("count", SIZES)
def test_a_choice_has_the_bits_of_the_cpu(kernels, count):
    rng = random.Random(count)
    for rule in _pick.RULES:
        values = _pick.tensor_of(_pick.random_bits(rng, rng.choice(_pick.KINDS), count))
        for k in {0, 1, count // 4, count - 1, count, count + 1}:
            case = _pick.arguments(values, k, rule, 6554, _pick.random_key(rng))
            there = moved(case)
            torch.cuda.set_sync_debug_mode("error")
            try:
                got = kernels.pick(*there)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for name, a, b in zip(
                ("indices", "weights", "eligible"),
                got,
                backends.load("cpu").pick(*case),
                strict=True,
            ):
                assert_bitwise(a.cpu(), b, f"{rule}, {count}, {k}: {name}")


@pytest.mark.parametrize("count", [512, 20_000])
def test_a_captured_graph_draws_anew_in_every_replay(kernels, count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(1))
    case = _pick.arguments(values, count // 4, "proportional", 6554, _pick.Key(7, 2, 0))
    there = moved(case)
    step = there[6]
    kernels.pick(*there)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = kernels.pick(*there)
        step.add_(1)
    seen = set()
    for number in range(3):
        graph.replay()
        want = backends.load("cpu").pick(*case[:6], _pick.counter(number), *case[7:])
        for a, b in zip(got, want, strict=True):
            assert_bitwise(a.cpu(), b, f"replay {number}")
        seen.add(tuple(got[0].tolist()))
    assert len(seen) == 3
