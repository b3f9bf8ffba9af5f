# SPDX-License-Identifier: Apache-2.0
"""What holds for all operators that measure activations: same bits, registration, compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from _activations import DTYPES, activation, assert_moments, two_pass
from _assertions import assert_bitwise
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_engine as pe

Threads = Callable[[int], AbstractContextManager[None]]
# A span is 131072 elements: the second tensor has several, shared out among the threads.
BIG = (3, 131072 + 77)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def measured(dtype: torch.dtype, sample: int, salt: int) -> list[torch.Tensor]:
    """Call every operator on the cpu and return all that came."""
    tensors = [activation((7, 33), dtype, salt=salt), activation(BIG, dtype, mean=3.0, salt=salt)]
    out = torch.zeros(2, dtype=torch.float64)
    pe.ops.activation_std(tensors, out, 1, sample=sample)
    found = [pe.ops.moments(tensors, sample=sample), out]
    found += pe.ops.relu_moments(tensors[1])
    found += pe.ops.gelu_moments(tensors[1])
    found += pe.ops.relu_moments(tensors[1], inplace=True)
    return found


@settings(max_examples=8)
@given(
    dtype=st.sampled_from(DTYPES),
    sample=st.sampled_from([1, 3]),
    threads=st.sampled_from([2, 3, 8]),
    salt=st.integers(0, 99),
)
def test_runs_and_thread_counts_give_the_same_bits(
    num_threads: Threads, dtype, sample, threads, salt
):
    with num_threads(1):
        want = measured(dtype, sample, salt)
    with num_threads(threads):
        for _ in range(2):
            for k, (a, b) in enumerate(zip(measured(dtype, sample, salt), want, strict=True)):
                assert_bitwise(a, b, f"result {k}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fused_activation_measures_as_moments_does(dtype):
    x = activation(BIG, dtype)
    for y, found in (pe.ops.relu_moments(x), pe.ops.gelu_moments(x, "tanh")):
        assert_bitwise(found, pe.ops.moments([y])[0], "moments of the result")


def test_control_another_order_gives_other_bits():
    x = activation(BIG)
    assert not torch.equal(pe.ops.moments([x]), pe.ops.moments([x.flip(1)]))
    assert_moments(pe.ops.moments([x.flip(1)])[0], two_pass(x))


OPS = torch.ops.prune_engine
X = activation((3, 5))
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "moments": (lambda: OPS.moments.default, ([X, X.bfloat16()], 1)),
    "activation_std": (
        lambda: OPS.activation_std.default,
        ([X], torch.zeros(3, dtype=torch.float64), torch.tensor([1]), True, 1),
    ),
    "activation_std, no slot": (
        lambda: OPS.activation_std.default,
        ([X, X], torch.zeros(1, dtype=torch.float64), None, False, 2),
    ),
    "relu_moments": (lambda: OPS.relu_moments.default, (X.t(),)),
    "relu_moments_": (lambda: OPS.relu_moments_.default, (X.clone(),)),
    "gelu_moments": (lambda: OPS.gelu_moments.default, (X.half(), True)),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case):
    op, args = CASES[case]
    torch.library.opcheck(op(), args)


# Dynamo itself makes an object of the class to trace an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_step_equals_eager(backend, inplace):
    def step(x: torch.Tensor, out: torch.Tensor, slot: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, first = pe.ops.relu_moments(x * 2, inplace=inplace)
        z, second = pe.ops.gelu_moments(y - 1, "tanh")
        pe.ops.activation_std([y, z], out, slot, sample=1)
        return z.square().sum(), first, second, pe.ops.moments([y, z])

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    results = []
    for function in (step, compiled):
        leaf = activation((4, 9)).requires_grad_()
        out, slot = torch.zeros(3, dtype=torch.float64), torch.tensor([2])
        loss, *rest = function(leaf, out, slot)
        loss.backward()
        results.append([loss.detach(), *rest, out, leaf.grad])
    for k, (a, b) in enumerate(zip(*results, strict=True)):
        assert_bitwise(b, a, f"result {k}")


@pytest.mark.parametrize("name", ["moments", "relu_moments", "gelu_moments"])
def test_a_strided_tensor_is_refused_below_the_checked_functions(name):
    x = activation((6, 6))[:, ::2]
    arguments = {"moments": ([x], 1), "relu_moments": (x,), "gelu_moments": (x, False)}[name]
    with pytest.raises(RuntimeError, match="must be dense"):
        getattr(OPS, name)(*arguments)
