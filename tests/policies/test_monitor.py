# SPDX-License-Identifier: Apache-2.0
"""ActivationMonitor sees what a layer returned, once, in training, and keeps none of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import Checkpointed, Recorder, close, conv_net, seeded, stds, x_of
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

import prune_engine as pe
from prune_engine.recipes import models


def test_default_is_the_post_relu_outputs_of_the_convolutions():
    model = conv_net()
    seen = Recorder(model[2], model[4])
    monitor = pe.ActivationMonitor(model)
    model(x_of(5, 2, 8, 8))
    close(stds(monitor), seen.std())


def test_default_of_a_model_without_convolutions_is_all_activations():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU()))
    seen = Recorder(model[1], model[3])
    monitor = pe.ActivationMonitor(model)
    model(x_of(6, 4))
    close(stds(monitor), seen.std())


def test_resnet18_has_its_seventeen_layers():
    model = models.build("resnet18", (3, 32, 32), 10, seed=0)
    monitor = pe.ActivationMonitor(model)
    model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    moments = monitor.take()
    assert moments.shape == (17, 3)
    sizes = [5 * [64 * 1024], 4 * [128 * 256], 4 * [256 * 64], 4 * [512 * 16]]
    assert moments[:, 0].tolist() == [2.0 * n for part in sizes for n in part]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (nn.Conv2d, ("0", "3")),
        ((nn.Linear, nn.BatchNorm2d), ("1", "6", "8")),
        ("[04]", ("0", "4")),
        (lambda name, module: name == "5", ("5",)),
    ],
    ids=["type", "types", "pattern", "callable"],
)
def test_layers_by_type_name_or_callable(layers, names):
    model = conv_net()
    seen = Recorder(*(model[int(name)] for name in names))
    monitor = pe.ActivationMonitor(model, layers)
    assert monitor.names == names
    model(x_of(5, 2, 8, 8))
    close(stds(monitor), seen.std())


class Block(nn.Module):
    """Returns a tuple, as the blocks of transformers may."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.mlp(x), None


class Nested(nn.Module):
    """Modules under the given path, called in order."""

    def __init__(self, path: str, count: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks: list[nn.Module] = []
        for k in range(count):
            *parents, name = f"{path}{k}".split(".")
            at: nn.Module = self
            for parent in parents:
                if parent not in dict(at.named_children()):
                    at.add_module(parent, nn.Module())
                at = at.get_submodule(parent)
            self.blocks.append(make())
            at.add_module(name, self.blocks[-1])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(x)
            x = out[0] if isinstance(out, tuple) else out
        return x


@pytest.mark.parametrize(
    ("preset", "path"),
    [
        ("resnet_stages", "layer"),
        ("resnet_stages", "module.backbone.layer"),
        ("cvt_stages", "stage"),
        ("cvt_stages", "cvt.encoder.stages."),
        ("gpt2_blocks", "transformer.h."),
    ],
)
def test_presets_find_the_blocks_and_nothing_inside_them(preset, path):
    model = seeded(lambda: Nested(path, 3, Block))
    monitor = pe.ActivationMonitor(model, preset=preset)
    assert monitor.names == tuple(f"{path}{k}" for k in range(3))
    model(x_of(2, 4))
    assert monitor.take().shape == (3, 3)


def test_a_module_that_runs_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.linear(self.relu(x)))

    model = seeded(Twice)
    seen = Recorder(model.relu)
    monitor = pe.ActivationMonitor(model)
    model(x_of(9, 4))
    close(stds(monitor), seen.std())


@pytest.mark.parametrize("fuse", [False, True])
def test_what_changes_an_output_afterwards_changes_nothing(fuse):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.linear(x))
            return out.mul_(0.0)

    model = seeded(Residual)
    want = torch.relu(model.linear(x_of(9, 4))).detach().double().std().tolist()
    monitor = pe.ActivationMonitor(model, fuse=fuse)
    with torch.no_grad():  # autograd itself would refuse the change
        model(x_of(9, 4))
    close(stds(monitor), [want])


# --- when it looks ------------------------------------------------------------------------------


def test_evaluation_is_not_seen():
    model = conv_net()
    monitor = pe.ActivationMonitor(model)
    model.eval()
    model(x_of(5, 2, 8, 8))
    with pytest.raises(pe.PruneEngineError, match="saw no activation"):
        monitor.take()
    model.train()
    model(x_of(5, 2, 8, 8))
    first = monitor.take()
    model(x_of(5, 2, 8, 8))
    model.eval()
    model(100 * x_of(5, 2, 8, 8))
    assert torch.equal(monitor.take()[:, 0], first[:, 0]), "the training pass is still there"


def test_frozen_parts_of_a_training_model_are_seen():
    model = conv_net()
    model[2].eval()
    monitor = pe.ActivationMonitor(model)
    model(x_of(5, 2, 8, 8))
    assert monitor.take().shape == (2, 3)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_counts_once(reentrant, fuse):
    plain, model = (seeded(lambda r=r: Checkpointed(r)) for r in (None, reentrant))
    seen = Recorder(*(block[1] for block in model.blocks))
    want, monitor = (pe.ActivationMonitor(m, fuse=fuse) for m in (plain, model))
    x = x_of(8, 16).requires_grad_()
    for _ in range(2):  # what a backward pass computes again must not reach the next batch
        plain(x)
        with set_checkpoint_early_stop(False):
            model(x).sum().backward()
        assert torch.equal(monitor.take(), want.take())
        assert fuse or len(seen.outputs) == 8, "control: a hook sees each layer twice"
        seen.outputs.clear()


@pytest.mark.parametrize("fuse", [False, True])
def test_autocast(fuse):
    model = conv_net()
    seen = Recorder(model[4])
    monitor = pe.ActivationMonitor(model, lambda name, module: name == "4", fuse=fuse)
    if fuse:
        seen = Recorder(model[4])
    with torch.autocast("cpu", torch.bfloat16):
        model(x_of(5, 2, 8, 8))
    assert seen.outputs[0].dtype == torch.bfloat16
    close(stds(monitor), seen.std())


# Dynamo instantiates an autograd function while it traces one: torch's own warning.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("fuse", [False, True])
def test_compiled_in_one_graph(fuse):
    def steps(model: nn.Module, run: Any) -> list[Tensor]:
        monitor = pe.ActivationMonitor(model, fuse=fuse)
        step = run(model)
        found = []
        for k in range(3):
            out = step(x_of(5, 2, 8, 8) * (k + 1))
            found.append(monitor.take())
            out.sum().backward()
        return found

    torch._dynamo.reset()
    eager = steps(conv_net(), lambda model: model)
    compiled = steps(
        conv_net(), lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)
    )
    torch._dynamo.reset()
    for got, want in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


def test_a_model_compiled_before_is_said_not_guessed():
    model = conv_net()
    torch._dynamo.reset()
    step = torch.compile(model, backend="eager")
    step(x_of(5, 2, 8, 8))
    monitor = pe.ActivationMonitor(model)
    step(x_of(5, 2, 8, 8))
    with pytest.raises(pe.PruneEngineError, match=r"before torch\.compile traces the model"):
        monitor.take()
    torch._dynamo.reset()


def test_a_forward_pass_that_failed_leaves_nothing_open():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor, fail: bool) -> Tensor:
            x = self.relu(x)
            if fail:
                raise ArithmeticError
            return self.relu(x)

    model = Sometimes()
    monitor = pe.ActivationMonitor(model)
    with pytest.raises(ArithmeticError):
        model(x_of(4), True)
    model.relu(x_of(4))
    assert not monitor.watching
    model(x_of(4), False)
    assert monitor.take().shape == (2, 3)


# --- a notebook's cell, run again ---------------------------------------------------------------


def test_a_second_fused_monitor_names_the_first():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU()))
    first = pe.ActivationMonitor(model, fuse=True)
    before = repr(model)
    with pytest.raises(pe.PruneEngineError, match=r"fuse=True already.*of 1, 3 .*remove\(\)"):
        pe.ActivationMonitor(model, fuse=True)
    assert repr(model) == before
    model(torch.ones(2, 4))
    assert first.take().shape == (2, 3)
    first.remove()
    with pe.ActivationMonitor(model, fuse=True) as second:  # control
        model(torch.ones(2, 4))
        assert second.take().shape == (2, 3)
    with pe.ActivationMonitor(model, fuse=True):
        pass


def test_a_second_monitor_sees_what_the_first_has_fused():
    model = seeded(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU())
    )
    first, second = pe.ActivationMonitor(model, fuse=True), pe.ActivationMonitor(model)
    assert second.names == first.names == ("1", "3")
    model(torch.arange(8.0).reshape(2, 4))
    torch.testing.assert_close(first.take(), second.take(), rtol=1e-6, atol=0)


def test_a_layer_with_hooks_of_its_own_is_not_fused():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()))
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    monitor = pe.ActivationMonitor(model, fuse=True)
    model(torch.ones(2, 4))
    assert seen == [1]
    assert monitor.take().shape == (2, 3)
    assert [type(layer).__name__ for layer in model[1::2]] == ["ReLU", "FusedActivation"]
