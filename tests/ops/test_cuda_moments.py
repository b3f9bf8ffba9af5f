# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels that measure activations, on a GPU; see test_cuda."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from _activations import ACCURACY, DTYPES, activation, assert_gelu, assert_moments, two_pass
from _assertions import assert_bitwise

import prune_engine as pe
from prune_engine import backends

# torch warns that its search for synchronisation is a prototype, and its profiler of itself.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::UserWarning")]

SIZES = [0, 1, 255, 256, 257, 8192, 8193, 300_001]
BACKENDS = ["cuda", "triton"]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Fail where a GPU was asked for and none can serve."""
    name: str = request.param
    try:
        backends.load(name)
    except RuntimeError as error:
        pytest.fail(f"these tests need a GPU: {error}")
    return name


@contextmanager
def no_sync() -> Iterator[None]:
    """Make every wait for the device an error, a copy from pageable memory among them."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ratio", [0.0, 1e5])
@pytest.mark.parametrize("sample", [1, 3])
def test_moments(backend, dtype, ratio, sample):
    for layout in ("contiguous", "offset"):
        tensors = [
            activation((n,), dtype, mean=0.01 * ratio, std=0.01, layout=layout) for n in SIZES
        ]
        there = [tensor.cuda() for tensor in tensors]
        if layout == "offset":
            there = [torch.cat([t[:1], t])[1:] for t in there]
        got = pe.ops.moments(there, sample=sample, backend=backend)
        want = pe.ops.moments(tensors, sample=sample, backend="reference")
        for a, b in zip(got.cpu(), want, strict=True):
            assert_moments(a, tuple(b.tolist()))
        for _ in range(3):
            assert_bitwise(pe.ops.moments(there, sample=sample, backend=backend), got, "again")


@pytest.mark.parametrize("count", [1, 17, 97, 250])
def test_activation_std_of_many_layers_without_a_wait(backend, count):
    tensors = [activation((3, 1000 + k)) for k in range(count)]
    there = [tensor.cuda() for tensor in tensors]
    out = torch.zeros(4, dtype=torch.float64, device="cuda")
    slot = torch.full((1,), 2, device="cuda")
    with no_sync():
        pe.ops.activation_std(there, out, slot, backend=backend)
        pe.ops.activation_std(there, out, 3, backend=backend)
    want = torch.zeros(4, dtype=torch.float64)
    pe.ops.activation_std(tensors, want, 2, backend="reference")
    assert out[:2].tolist() == [0.0, 0.0]
    assert float(out[2]) == pytest.approx(float(want[2]), rel=ACCURACY)
    assert float(out[3]) == float(out[2])


def test_a_captured_graph_serves_every_batch(backend):
    x = torch.zeros(64, 64, 16, 16, device="cuda", dtype=torch.bfloat16)
    out, slot = torch.zeros(3, dtype=torch.float64, device="cuda"), torch.zeros(1, device="cuda")
    slot = slot.to(torch.int64)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles what is compiled at the first call
        pe.ops.activation_std([x, x], out, slot, backend=backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pe.ops.activation_std([x, x], out, slot, backend=backend)
    for batch in range(3):
        values = activation(tuple(x.shape), torch.bfloat16, mean=batch, salt=batch)
        x.copy_(values)
        slot.fill_(batch)
        graph.replay()
        n, _, squares = two_pass(values)
        assert float(out[batch]) == pytest.approx(math.sqrt(squares / (n - 1)), rel=ACCURACY)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_moments(backend, dtype, inplace):
    for size in SIZES:
        x = activation((size,), dtype).cuda()
        want = x.relu()
        y, found = pe.ops.relu_moments(x, inplace=inplace, backend=backend)
        assert torch.equal(y, want)
        assert_moments(found.cpu(), two_pass(want.cpu()))
    leaf = activation((5, 7), dtype).cuda().requires_grad_()
    pe.ops.relu_moments(leaf * 1, inplace=inplace, backend=backend)[0].sum().backward()
    assert torch.equal(leaf.grad, (leaf > 0).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_moments(backend, dtype, approximate):
    for size in SIZES:
        x = activation((size,), dtype, std=3.0)
        y, found = pe.ops.gelu_moments(x.cuda(), approximate, backend=backend)
        assert_gelu(y.cpu(), x, approximate)
        assert_moments(found.cpu(), two_pass(y.cpu()))


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_slot_out_of_range_writes_nothing(backend, slot):
    out = torch.zeros(4, dtype=torch.float64, device="cuda")
    place = torch.tensor([slot], device="cuda")
    pe.ops.activation_std([torch.ones(9, device="cuda")], out, place, backend=backend)
    assert out.tolist() == [0.0] * 4


def test_launches_are_counted():
    tensors = [torch.ones(1000, device="cuda") for _ in range(97)]
    out = torch.zeros(4, dtype=torch.float64, device="cuda")
    calls = {
        1: lambda: pe.ops.moments(tensors[:96], backend="cuda"),
        2: lambda: pe.ops.activation_std(tensors, out, 0, backend="cuda"),
    }
    for count, call in calls.items():
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        names = [event.name for event in profile.events() if "_kernel" in event.name]
        assert len(names) == count
