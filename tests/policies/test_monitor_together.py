# SPDX-License-Identifier: Apache-2.0
"""ActivationMonitor measures together what may wait, with the numbers of each on its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from _models import Checkpointed, Recorder, conv_net, seeded, x_of
from test_monitor_memory import Keeper, Live
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import prune_engine as pe


class InPlace(nn.Module):
    """Blocks whose outputs the next line adds to: every other one, so that some may wait."""

    def __init__(self, blocks: int = 6, every: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.blocks):
            out = block(x)
            if (k + 1) % self.every == 0:
                out += x
            x = torch.tanh(out) * out
        return x


class Sometimes(InPlace):
    """Its third block is changed in place in some passes only."""

    changes = False

    def forward(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.blocks):
            out = block(x)
            x = torch.tanh(out) * out
            if self.changes and k == 2:
                with torch.no_grad():
                    out.detach().mul_(3)
        return x


class Calls(TorchDispatchMode):
    """Counts calls of the operator that measures, and the tensors it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket._qualified_op_name == "prune_engine::moments":
            self.tensors.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def step(
    model: nn.Module, monitor: pe.ActivationMonitor, scale: float = 1.0, *, train: bool = True
) -> tuple[Tensor, list[int], Any]:
    """Run a step as a loop does; return its moments, and what each call measured, and its grads."""
    with Calls() as calls:
        out = model(scale * x_of(16, 8))
        moments = monitor.take()
    if train:
        out.sum().backward()
    return moments, calls.tensors, out


def each_on_its_own(seen: Recorder, **options: Any) -> Tensor:
    return torch.cat([pe.ops.moments([output], **options) for output in seen.outputs])


@pytest.mark.parametrize("layers", [1, 6, 100])
def test_from_the_second_step_on_one_call_measures_all_layers(layers):
    model = seeded(lambda: InPlace(layers, every=layers + 1))
    monitor = pe.ActivationMonitor(model, nn.Linear)
    counts = [step(model, monitor)[1] for _ in range(3)]
    assert counts == [[1] * layers, [layers], [layers]]


def test_what_is_changed_in_place_is_measured_by_itself_for_ever():
    model = seeded(InPlace)
    monitor = pe.ActivationMonitor(model, nn.Linear)
    counts = [step(model, monitor)[1] for _ in range(4)]
    assert counts == [[1] * 6] + [[1, 1, 1, 3]] * 3


@pytest.mark.parametrize("sample", [1, 2])
@pytest.mark.parametrize("every", [2, 7], ids=["in place", "kept"])
def test_the_numbers_are_those_of_each_output_on_its_own_bit_for_bit(every, sample):
    model = seeded(lambda: InPlace(every=every))
    seen = Recorder(*model.blocks)
    monitor = pe.ActivationMonitor(model, nn.Linear, sample=sample)
    found = []
    for k in range(4):
        seen.outputs.clear()
        moments, _, _ = step(model, monitor, 1.0 + k)
        assert torch.equal(moments, each_on_its_own(seen, sample=sample))
        found.append(moments)
    assert not torch.equal(found[2], found[3]), "control: the steps differ"


def test_the_gradients_are_those_without_a_monitor():
    grads = []
    for monitored in (False, True):
        model = seeded(InPlace)
        monitor = pe.ActivationMonitor(model, nn.Linear) if monitored else None
        for _ in range(3):
            model.zero_grad()
            out = model(x_of(16, 8))
            if monitor is not None:
                monitor.take()
            out.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*grads)


# --- what lives how long ------------------------------------------------------------------------


class Deep(Checkpointed):
    """Its blocks have an activation inside, which a checkpoint does not keep."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__(reentrant)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(4)
        )


def peaks(reentrant: bool | None, monitored: Any) -> list[int]:
    """Return the most bytes of outputs that were alive up to the end of four forward passes."""
    model = seeded(lambda: Deep(reentrant))
    live = Live(*(layer for block in model.blocks for layer in block))
    monitor = monitored(model) if monitored else None
    found = []
    for _ in range(4):
        live.peak = live.now
        out = model(x_of(1000, 16).requires_grad_())
        found.append(live.peak)
        if monitor is not None:
            monitor.take()
        out.sum().backward()
        del out
        getattr(monitor, "kept", []).clear()
        assert live.now == 0
    return found


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_no_activation_lives_longer_in_training_than_without_a_monitor(reentrant):
    plain = peaks(reentrant, None)
    layers = (nn.Linear, nn.ReLU)
    monitor, keeper = partial(pe.ActivationMonitor, layers=layers), partial(Keeper, layers=layers)
    assert peaks(reentrant, monitor) == plain
    assert peaks(reentrant, keeper)[3] > plain[3], "control: keeping them is seen"


def test_outputs_that_wait_go_with_the_graph_that_made_them():
    model = seeded(lambda: InPlace(every=7))
    live, monitor = Live(*model.blocks), pe.ActivationMonitor(model, nn.Linear)
    step(model, monitor)
    out = model(x_of(16, 8))
    assert live.now == 6 * 16 * 8 * 4, "control: they wait"
    del out
    assert live.now == 0
    with pytest.warns(RuntimeWarning, match="let go before observe"):
        assert monitor.take()[:, 1:].isnan().all()


def test_outputs_that_wait_are_let_go_when_the_next_pass_begins_or_the_monitor_is_removed():
    model = seeded(lambda: InPlace(every=7))
    live, monitor = Live(*model.blocks), pe.ActivationMonitor(model, nn.Linear)
    want, _, _ = step(model, monitor)
    first = model(5 * x_of(16, 8)).sum()  # nobody takes it
    second = model(x_of(16, 8)).sum()
    first.backward()
    assert live.now == 6 * 16 * 8 * 4, "those of the second pass: the graph of the first is there"
    assert torch.equal(monitor.take(), want)
    third = model(x_of(16, 8)).sum()
    monitor.remove()
    second.backward()
    third.backward()
    assert live.now == 0


# --- passes that are not like the first ---------------------------------------------------------


def test_an_output_changed_in_a_later_pass_is_said_and_measured_by_itself_from_then_on():
    model = seeded(Sometimes)
    seen = Recorder(*model.blocks)
    monitor = pe.ActivationMonitor(model, nn.Linear)
    assert step(model, monitor)[1] == [1] * 6
    assert step(model, monitor)[1] == [6], "control: all of them wait"
    model.changes = True
    seen.outputs.clear()
    with pytest.warns(RuntimeWarning, match="an output of Linear was changed in place"):
        moments, tensors, _ = step(model, monitor, train=False)
    want = each_on_its_own(seen)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert tensors == [5]
    assert torch.equal(moments[others], want[others])
    assert moments[2].isnan().tolist() == [False, True, True]
    assert moments[2, 0] == want[2, 0]
    assert pe.ops.merge_moments(torch.stack([want, moments]))[2, 2].isnan(), "ranks see it too"
    for _ in range(2):
        seen.outputs.clear()
        moments, tensors, _ = step(model, monitor, train=False)
        assert torch.equal(moments, each_on_its_own(seen))
        assert tensors == [1, 5]


def test_a_pass_without_gradient_is_measured_at_once():
    model = seeded(lambda: InPlace(every=7))
    seen, monitor = Recorder(*model.blocks), pe.ActivationMonitor(model, nn.Linear)
    step(model, monitor)
    with torch.no_grad():
        seen.outputs.clear()
        moments, tensors, _ = step(model, monitor, train=False)
    assert torch.equal(moments, each_on_its_own(seen))
    assert tensors == [1] * 6
    assert step(model, monitor)[1] == [6], "control"


def test_checkpointing_that_begins_later_ends_the_waiting():
    model = seeded(lambda: Deep(None))
    monitor = pe.ActivationMonitor(model, nn.ReLU)

    def tensors() -> list[int]:
        with Calls() as calls:
            out = model(x_of(10, 16).requires_grad_())
            monitor.take()
        out.sum().backward()
        return calls.tensors

    assert [tensors() for _ in range(2)] == [[1] * 4, [4]]
    model.reentrant = False
    assert tensors() == [4], "the last pass in which they wait"
    assert tensors() == [1] * 4


def test_a_module_that_runs_more_often_later_is_measured_each_time():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.times = nn.Linear(8, 8), 2

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                out = self.linear(x)
                x = torch.tanh(out) * out
            return x

    model = seeded(Loop)
    seen, monitor = Recorder(model.linear), pe.ActivationMonitor(model, nn.Linear)
    step(model, monitor)
    for times, calls in ((2, [[1, 1], [2]]), (4, [[1, 1, 2], [4]])):
        model.times = times
        for want in calls[-1:] if times == 2 else calls:
            seen.outputs.clear()
            moments, tensors, _ = step(model, monitor)
            assert tensors == want
            assert torch.equal(moments, each_on_its_own(seen))


def test_fused_layers_and_those_that_wait_keep_their_order():
    model = conv_net()
    monitor = pe.ActivationMonitor(model, (nn.Conv2d, nn.ReLU), fuse=True)
    plain = conv_net()
    want = pe.ActivationMonitor(plain, (nn.Conv2d, nn.ReLU))
    for _ in range(3):
        for each in (model, plain):
            each(x_of(5, 2, 8, 8)).sum().backward()
        torch.testing.assert_close(monitor.take(), want.take(), rtol=1e-6, atol=1e-12)
