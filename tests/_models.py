# SPDX-License-Identifier: Apache-2.0
"""Models for the monitor's tests, and what they return as a plain hook sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import prune_engine as pe


class Recorder:
    """Keeps the outputs themselves, the way the monitor must not: the reference of these tests."""

    def __init__(self, *modules: nn.Module) -> None:
        self.outputs: list[Tensor] = []
        for module in modules:
            module.register_forward_hook(self.see)

    def see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.outputs.append(output.detach().clone())

    def std(self) -> list[float]:
        return [float(output.double().std()) for output in self.outputs]


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def conv_net() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 16, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
    )


def stds(monitor: pe.ActivationMonitor) -> list[float]:
    count, _, second = monitor.take().unbind(-1)
    return (second / (count - 1)).sqrt().tolist()


def close(got: list[float], want: list[float]) -> None:
    assert len(got) == len(want) > 0
    assert got == pytest.approx(want, rel=1e-6)


class Checkpointed(nn.Module):
    """Four blocks whose activations are computed again in the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        block = lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU())  # noqa: E731
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant, preserve_rng_state=False)
        return x
