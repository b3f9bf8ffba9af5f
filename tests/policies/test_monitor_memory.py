# SPDX-License-Identifier: Apache-2.0
"""ActivationMonitor leaves nothing behind: no activation, no hook, no other gradient or name."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Checkpointed, conv_net, seeded, x_of
from torch import Tensor, nn

import prune_engine as pe

# --- what it leaves -----------------------------------------------------------------------------


class Live:
    """The bytes of the outputs that are alive, and their peak, from weak references to them."""

    def __init__(self, *modules: nn.Module) -> None:
        self.now = self.peak = 0
        for module in modules:
            module.register_forward_hook(self.see)

    def see(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        size = output.nbytes
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(output.untyped_storage(), self.gone, size)

    def gone(self, size: int) -> None:
        self.now -= size


class Keeper(pe.ActivationMonitor):
    """The control: keeps each output until the forward pass has ended."""

    def __init__(self, model: nn.Module, layers: Any = None) -> None:
        super().__init__(model, layers)
        self.kept: list[Tensor] = []

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.kept.append(output.detach())
        super()._see(module, inputs, output)


def peak_of(monitored: Callable[[nn.Module], Any] | None, **options: Any) -> int:
    model = seeded(lambda: Checkpointed(False))
    # What has hooks of its own is not fused, so what is to be fused gets them afterwards.
    live = None if options else Live(*(block[1] for block in model.blocks))
    monitor = monitored(model, **options) if monitored else None
    live = live or Live(*(block[1] for block in model.blocks))
    with torch.no_grad():
        model(x_of(1000, 16))
    assert live.now == 0 or monitor is not None
    return live.peak


def test_no_activation_lives_longer_than_without_a_monitor():
    one = 1000 * 16 * 4
    plain = peak_of(None)
    assert plain < 3 * one, "a checkpointed pass frees what it passes"
    assert peak_of(pe.ActivationMonitor) == plain
    assert peak_of(pe.ActivationMonitor, fuse=True) == plain
    assert peak_of(Keeper) >= 4 * one, "control: keeping them is seen"


def test_an_output_may_go_once_it_is_measured():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    pe.ActivationMonitor(model)
    with torch.no_grad():
        output = weakref.ref(model(x_of(3, 4)))
    assert output() is None


def test_gradients_are_those_without_a_monitor():
    grads = []
    for fuse in (None, False, True):
        model = conv_net()
        if fuse is not None:
            pe.ActivationMonitor(model, fuse=fuse)
        model(x_of(5, 2, 8, 8)).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])


def test_fused_activations_see_what_hooks_see_and_change_no_names():
    hooked, fused = conv_net(), conv_net()
    names = list(fused.state_dict())
    one, two = pe.ActivationMonitor(hooked), pe.ActivationMonitor(fused, fuse=True)
    assert list(fused.state_dict()) == names
    assert type(fused[2]).__name__ == "FusedActivation"
    torch.testing.assert_close(hooked(x_of(5, 2, 8, 8)), fused(x_of(5, 2, 8, 8)))
    torch.testing.assert_close(one.take(), two.take(), rtol=1e-6, atol=0)
    fused.eval()
    hooked.eval()
    torch.testing.assert_close(hooked(x_of(5, 2, 8, 8)), fused(x_of(5, 2, 8, 8)))


@pytest.mark.parametrize("fuse", [False, True])
def test_remove_takes_everything_out(fuse):
    model = conv_net()
    modules = list(model.modules())
    with pe.ActivationMonitor(model, fuse=fuse) as monitor:
        model(x_of(5, 2, 8, 8))
    monitor.remove()
    assert list(model.modules()) == modules
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    model(x_of(5, 2, 8, 8))
    with pytest.raises(pe.PruneEngineError, match="saw no activation"):
        monitor.take()


def test_a_shared_activation_is_fused_everywhere():
    relu = nn.ReLU()
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu))
    with pe.ActivationMonitor(model, fuse=True) as monitor:
        assert model[1] is model[3] is not relu
        model(x_of(3, 4))
        assert monitor.take().shape == (2, 3)
    assert model[1] is model[3] is relu


def test_a_sample_reads_a_part():
    model = nn.Sequential(nn.Identity())
    monitor = pe.ActivationMonitor(model, nn.Identity, sample=4)
    x = x_of(400, 1000)
    model(x)
    count, _, second = monitor.take()[0].tolist()
    assert 0.2 < count / x.numel() < 0.3
    assert (second / (count - 1)) ** 0.5 == pytest.approx(float(x.std()), rel=0.02)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "nothing"}, ValueError, "layers must match a module.*'nothing'.*0, 1, 2"),
        ({"preset": "vgg"}, ValueError, "preset must be .*got 'vgg'"),
        ({"preset": "gpt2_blocks"}, ValueError, "preset 'gpt2_blocks', which matches none"),
        ({"layers": nn.ReLU, "preset": "gpt2_blocks"}, ValueError, "together with layers"),
        ({"layers": 3}, TypeError, "layers must be module types"),
        ({"sample": 0}, ValueError, "sample must be at least 1, got 0"),
    ],
)
def test_edge_case_10_arguments_that_do_not_fit(options, error, message):
    model = conv_net()
    with pytest.raises(error, match=message):
        pe.ActivationMonitor(model, **options)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_what_is_no_module_or_returns_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got function"):
        pe.ActivationMonitor(lambda x: x)

    class Words(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "words"

    model = Words()
    pe.ActivationMonitor(model, Words)
    with pytest.raises(TypeError, match="return a tensor first, got str"):
        model(x_of(1))
