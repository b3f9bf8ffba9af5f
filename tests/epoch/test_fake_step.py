# SPDX-License-Identifier: Apache-2.0
"""Whole training steps on tensors that have no numbers: whatever looks at one on the host fails.

Two kinds of such tensors. Fake CUDA tensors claim to be on a GPU; without one torch has no
autograd for them, so there they go forward only. Meta tensors have autograd, and take the road of a
device (they are not on a cpu) through loader, loss, backward, optimiser and schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import prune_engine as pe
from prune_engine import backends, ops
from prune_engine.backends import native
from prune_engine.epoch import run

N, KEPT, SIZE = 10_001, 7000, 256
WITH_GRADIENT = {"meta": True, "cuda": torch.cuda.is_available()}
LOOKS = {  # every way in which a training loop asks for a number
    "item": lambda loss: loss.item(),
    "float": float,
    "branch": lambda loss: 1 if loss > 0 else 2,
    "list": lambda loss: loss.tolist(),
}


def kernels_named(name: str, launched: list[str], patch: pytest.MonkeyPatch) -> Any:
    """Return a backend's operators and note what they launch."""
    if name == "cuda":

        def noted(operator: str) -> Any:
            def call(*arguments: Any) -> Any:
                launched.append(f"{operator}_kernel")
                return getattr(native, operator)(*arguments)

            return call

        names = ("observe", "observe_mean", "mean_threshold", "plan", "compact", "order", "audit")
        return SimpleNamespace(CHECKS_ARGUMENTS=True, **{each: noted(each) for each in names})
    pytest.importorskip("triton")
    import _triton_launches

    import prune_engine.backends.triton as triton

    def launch(kernel: Any, programs: int, on: Tensor, *arguments: Any, **options: Any) -> None:
        launched.append(kernel.fn.__name__)

    for module in _triton_launches.MODULES:
        patch.setattr(_triton_launches.module(module), "launch", launch)
    return triton


@contextmanager
def engine_on(
    device: str, kernels: str, **options: Any
) -> Iterator[tuple[pe.PruneEngine, list[str]]]:
    """Make an engine of numberless tensors; the one number it reads, the count, is given."""
    launched: list[str] = []

    def plan(buffer: Any, rule: Any, *, seed: int, epoch: int, **_: Any) -> pe.epoch.EpochPlan:
        classes, offsets = ops.plan(buffer.records, rule, seed=seed, epoch=epoch, backend=kernels)
        kept = ops.compact(classes, offsets, KEPT, backend=kernels)
        table = torch.empty(8, device=buffer.device)
        return pe.epoch.EpochPlan(epoch, seed, classes, table, kept, rule.thresholds, kernels)

    mode = FakeTensorMode(allow_non_fake_inputs=True) if device == "cuda" else nullcontext()
    with pytest.MonkeyPatch.context() as patch, mode:
        found = kernels_named(kernels, launched, patch)
        patch.setattr(backends, "resolve", lambda name, kind: kernels)
        patch.setattr(backends, "load", lambda name: found)
        patch.setattr(run, "make_plan", plan)
        policy = pe.InfoBatch(delta=1.0)
        yield pe.PruneEngine(N, policy, num_epochs=3, device=device, **options), launched


def parameter(*shape: int, device: str) -> Tensor:
    return torch.empty(*shape, device=device, requires_grad=WITH_GRADIENT[device])


def whole_epoch(engine: pe.PruneEngine, device: str, look: Any = None) -> int:
    """Train on every batch of a device-resident data set; return how many there were."""
    weights = [parameter(32, 12, device=device), parameter(10, 32, device=device)]
    data = (
        torch.empty(N, 12, dtype=torch.uint8, device=device),
        torch.empty(N, dtype=torch.int64, device=device),
    )
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=999)
    schedule = engine.wrap_scheduler(one_cycle, 999)
    total = torch.zeros((), device=device)
    batches = 0
    for x, y, indices in engine.device_loader(data, SIZE):
        assert {t.device.type for t in (x, y, indices)} == {device}
        hidden = torch.relu(x.float() @ weights[0].t())
        losses = torch.nn.functional.cross_entropy(hidden @ weights[1].t(), y, reduction="none")
        loss = engine.observe(losses, indices)
        optimizer.zero_grad()
        if WITH_GRADIENT[device]:
            loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        batches += 1
        if look is not None:
            look(loss.detach())
    if WITH_GRADIENT[device]:
        assert all(w.grad is not None and w.grad.device.type == device for w in weights)
    return batches


@pytest.mark.parametrize("kernels", ["cuda", "triton"])
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_an_epoch_looks_at_no_number_and_launches_once_per_batch(device, kernels):
    with engine_on(device, kernels) as (engine, launched):
        launched.clear()
        batches = whole_epoch(engine, device)
        assert batches == KEPT // SIZE
        # One launch of observe a batch; one of order serves the 64 batches of a chunk.
        assert sorted(launched) == ["observe_kernel"] * batches + ["order_kernel"]
        assert engine.cursor == batches * SIZE


@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_a_plan_looks_at_nothing_but_its_count(kernels):
    with engine_on("cuda", kernels) as (engine, launched):
        launched.clear()
        rule = engine._run._rule(1)  # the second epoch's, which starts from the mean
        plan = run.make_plan(engine.buffer, rule, seed=0, epoch=1)
        assert plan.threshold.device.type == "cuda"
        assert launched[0] == "mean_threshold_kernel"
        assert launched.count("plan_kernel") == launched.count("compact_kernel") == 1


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_control_a_look_at_a_loss_fails(device, look):
    with (
        engine_on(device, "cuda") as (engine, _),
        pytest.raises((RuntimeError, NotImplementedError, ValueError)),
    ):
        whole_epoch(engine, device, look)


def test_control_an_engine_that_raises_on_nonfinite_losses_still_looks_at_none():
    with engine_on("meta", "cuda", on_nonfinite="raise") as (engine, _):
        assert whole_epoch(engine, "meta") == KEPT // SIZE


@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_a_compiled_step_is_one_graph_that_names_the_operator(kernels):
    graphs: list[Any] = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    with engine_on("cuda", kernels) as (engine, launched), torch.no_grad():

        def step(x: Tensor, indices: Tensor) -> Tensor:
            return engine.observe(x * x, indices)

        launched.clear()
        compiled = torch.compile(step, fullgraph=True, backend=backend)
        loss = compiled(
            torch.empty(SIZE, device="cuda"), torch.empty(SIZE, dtype=torch.int64, device="cuda")
        )
        assert (loss.device.type, loss.shape) == ("cuda", ())
    torch._dynamo.reset()
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert len([name for name in called if "observe" in name]) == 1, called
    if kernels == "triton":
        assert launched == [], "nothing was launched while it was traced"


def test_control_a_look_breaks_the_graph():
    torch._dynamo.reset()
    with engine_on("cuda", "cuda") as (engine, _), torch.no_grad():

        def step(x: Tensor, indices: Tensor) -> float:
            return engine.observe(x * x, indices).item() + 1

        with pytest.raises((torch._dynamo.exc.Unsupported, DataDependentOutputException)):
            torch.compile(step, fullgraph=True, backend="eager")(
                torch.empty(4, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
            )
    torch._dynamo.reset()
