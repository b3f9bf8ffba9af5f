# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled and run on a GPU: the tests of triton_parity.py and what needs one.

Selected by ``-m cuda``; without a GPU they fail.
"""

from __future__ import annotations

import pytest
import torch
from _assertions import assert_bitwise
from _cases import MAX_SEED, counters, float32, mean_rule
from triton_parity import *  # noqa: F403 - its tests, here with DEVICE "cuda"
from triton_parity import DEVICE, WEIGHTS
from triton_parity_logits import *  # noqa: F403
from triton_parity_moments import *  # noqa: F403 - the same
from triton_parity_pick import *  # noqa: F403 - the same

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import triton

pytestmark = [
    pytest.mark.triton,
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]


@pytest.fixture(autouse=True)
def device() -> None:
    """Fail where a GPU was asked for and none can serve."""
    try:
        assert backends.resolve("triton", DEVICE) == "triton"
        assert DEVICE == "cuda"
    except RuntimeError as error:
        pytest.fail(f"these tests need a GPU: {error}")


def state(num_samples: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a buffer in which nothing was seen, on the device."""
    return {
        "records": torch.zeros(num_samples, dtype=torch.int64, device=DEVICE),
        "score_sum": torch.zeros(10, dtype=torch.int64, device=DEVICE),
        "counters": counters().to(DEVICE),
        "step": torch.zeros(1, dtype=torch.int64, device=DEVICE),
        "weight_class": torch.ones(num_samples, dtype=torch.uint8, device=DEVICE),
        "weight_table": WEIGHTS.to(DEVICE),
        "epoch": torch.zeros(1, dtype=torch.int64, device=DEVICE),
    }


def batch(size: int, num_samples: int, salt: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses and indices with duplicates, on the device."""
    generator = torch.Generator().manual_seed(salt)
    losses = torch.randn(size, generator=generator)
    indices = torch.randint(0, num_samples, (size,), generator=generator)
    return losses.to(DEVICE), indices.to(DEVICE)


@pytest.mark.parametrize("size", [65_536, 300_001])
def test_observe_of_a_large_batch_of_duplicates(size: int) -> None:
    there = state(1000)
    here = {name: value.cpu() for name, value in there.items()}
    losses, indices = batch(size, 1000, 3)
    pe.ops.observe(losses, indices, backend="triton", **there)
    pe.ops.observe(losses.cpu(), indices.cpu(), backend="cpu", **here)
    for name, value in here.items():
        assert_bitwise(there[name], value, name)


@pytest.mark.parametrize("num_samples", [2**24 + 3, 2**24 + 4096])
def test_a_large_epoch_equals_the_cpu(num_samples: int) -> None:
    there = state(num_samples)
    losses, indices = batch(num_samples, num_samples, 5)
    pe.ops.observe(losses, indices, backend="triton", **there)
    threshold = pe.ops.mean_threshold(there["score_sum"], backend="triton")
    rule = mean_rule(float(threshold), 32768)
    old = there["records"].cpu()
    want, want_offsets = pe.ops.plan(old, rule, seed=MAX_SEED, epoch=1, backend="cpu")
    rule = pe.policies.Rule(threshold, rule.bands, rule.weight_table)
    classes, offsets = pe.ops.plan(there["records"], rule, seed=MAX_SEED, epoch=1, backend="triton")
    assert_bitwise(classes, want, "weight_class")
    assert_bitwise(offsets, want_offsets, "block_offsets")
    num_kept = int(offsets[-1])
    kept = pe.ops.compact(classes, offsets, num_kept, backend="triton")
    want_kept = pe.ops.compact(want, want_offsets, num_kept, backend="cpu")
    assert_bitwise(kept, want_kept, "kept")
    whole = pe.ops.order(kept, range(num_kept), seed=2, epoch=1, backend="triton")
    want_whole = pe.ops.order(want_kept, range(num_kept), seed=2, epoch=1, backend="cpu")
    assert_bitwise(whole, want_whole, "order")
    audit = pe.ops.audit(there["records"], classes, epoch=0, backend="triton")
    assert_bitwise(audit, pe.ops.audit(old, want, epoch=0, backend="cpu"), "audit")
    assert_bitwise(audit[:10], there["score_sum"], "the running sum")


def test_an_epoch_never_makes_the_host_wait() -> None:
    there = state(10_000)
    losses, indices = batch(256, 10_000, 1)
    rule = mean_rule(0.5, 32768)
    rule = pe.policies.Rule(rule.thresholds.to(DEVICE), rule.bands, rule.weight_table, fixed=True)

    def epoch() -> None:
        pe.ops.observe(losses, indices, backend="triton", **there)
        pe.ops.mean_threshold(there["score_sum"], backend="triton")
        classes, offsets = pe.ops.plan(there["records"], rule, seed=1, epoch=1, backend="triton")
        kept = pe.ops.compact(classes, offsets, 5000, backend="triton")
        pe.ops.order(kept, range(256), seed=1, epoch=1, backend="triton")
        pe.ops.audit(there["records"], classes, epoch=0, backend="triton")

    epoch()  # compiles, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        epoch()
        with pytest.raises(RuntimeError, match="synchroniz"):  # the control
            int(losses[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_observe_stays_right_in_later_epochs() -> None:
    eager, captured = state(1000), state(1000)
    losses, indices = batch(256, 1000, 2)
    pe.ops.observe(losses, indices, backend="triton", **state(1000))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rescaled, weights = pe.ops.observe(losses, indices, backend="triton", **captured)
    for epoch in range(3):
        losses.copy_(batch(256, 1000, 10 + epoch)[0])
        for tensors in (eager, captured):
            tensors["epoch"].fill_(epoch)
        graph.replay()
        want = pe.ops.observe(losses, indices, backend="triton", **eager)
        assert_bitwise(rescaled, want[0], "rescaled")
        assert_bitwise(weights, want[1], "batch_weights")
    for name, value in eager.items():
        assert_bitwise(captured[name], value, name)
    assert int(captured["records"].max()) >> 32 == 3


# A kernel of the same name is overridden; and torch 2.11's compiler makes an instance of an
# autograd function, which torch itself warns of.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_step_reaches_the_kernels_and_equals_eager() -> None:
    eager, compiled = (
        pe.epoch.ScoreBuffer(1000, device=DEVICE, backend="triton") for _ in range(2)
    )
    losses, indices = batch(256, 1000, 4)
    weight = torch.ones((), device=DEVICE, requires_grad=True)

    def step(losses: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return compiled.observe(losses * weight, indices)[0].sum()

    # A library with CUDA kernels would serve the operators' names itself: put Triton in its place.
    library = torch.library.Library("prune_engine", "IMPL")
    try:
        for name, function in triton.OPERATORS.items():
            library.impl(name, function, "CUDA")
        run = torch.compile(step, fullgraph=True, mode="reduce-overhead")
        for _ in range(3):
            total = run(losses, indices)
            total.backward()
            assert weight.grad is not None
            gradient, weight.grad = weight.grad.clone(), None
    finally:
        library._destroy()
    want, weights = eager.observe(losses, indices)
    assert torch.allclose(total, want.sum())
    assert torch.allclose(gradient, (losses * weights).sum())
    assert_bitwise(compiled.records, eager.records, "records")


def test_the_gradient_is_that_of_the_weights() -> None:
    there = state(4) | {"weight_class": torch.tensor([0, 1, 2, 3], dtype=torch.uint8).to(DEVICE)}
    losses = torch.ones(4, device=DEVICE, requires_grad=True)
    rescaled, _ = pe.ops.observe(losses, torch.arange(4).to(DEVICE), backend="triton", **there)
    rescaled.sum().backward()
    assert losses.grad is not None
    assert_bitwise(losses.grad, float32([0.0, 1.0, 2.0, 1.3333334]), "grad")
