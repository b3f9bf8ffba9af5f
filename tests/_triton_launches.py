# SPDX-License-Identifier: Apache-2.0
"""What the Triton operators launch, found without a GPU: fake CUDA tensors and a recorded launch.

A fake tensor has a shape, a dtype and a device but no numbers, so that an operator which looks at
one on the host fails here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

PACKAGE = "prune_engine.backends.triton"
MODULES = (
    *("observe", "mean_threshold", "plan", "fixed", "compact", "order", "shuffle", "audit"),
    *("draw", "plan_top"),
    *("moments", "activation_std", "select", "top", "pick"),
    *("cells", "solve_levels", "plan_levels"),
    *("cross_entropy_observe", "cross_entropy_grad"),
)
NUM_SAMPLES = 10_001


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with everything that decides how it is compiled."""

    label: str
    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    warps: int
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__


def module(name: str) -> Any:
    """Return a module of the package; its name as an attribute is the operator."""
    return importlib.import_module(f"{PACKAGE}.{name}")


def recorded(label: str, call: Callable[[], object]) -> list[Launch]:
    """Return the launches of a call on fake CUDA tensors, in order."""
    seen: list[Launch] = []

    def launch(
        kernel: Any, programs: int, on: torch.Tensor, *arguments: Any, warps: int, **constants: Any
    ) -> None:
        assert on.device.type == "cuda"
        seen.append(Launch(label, kernel, programs, arguments, warps, constants))

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        for name in MODULES:
            patch.setattr(module(name), "launch", launch)
        call()
    return seen


def cuda(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Return a tensor that claims to be on a GPU; only inside a fake mode."""
    return torch.empty(*shape, dtype=dtype, device="cuda")


def state() -> list[torch.Tensor]:
    """Return the state that a batch is observed in."""
    changed = [cuda(count) for count in (NUM_SAMPLES, 10, 5, 1)]
    classes, table = cuda(NUM_SAMPLES, dtype=torch.uint8), cuda(256, dtype=torch.float32)
    return [*changed, classes, table, cuda(1)]


def observe(losses: torch.dtype, indices: torch.dtype, score: torch.dtype | None) -> None:
    """Observe a batch of 700."""
    module("observe").observe(
        cuda(700, dtype=losses),
        cuda(700, dtype=indices),
        None if score is None else cuda(700, dtype=score),
        state(),
        True,
    )


def observe_mean() -> None:
    """Observe a batch of 700 whose mean is trained."""
    batch = cuda(700, dtype=torch.float32), cuda(700)
    module("observe_mean").observe_mean(*batch, None, state(), True)


def plan(bands: int, *, cut: int = 32768, keep_den: int = 0) -> torch.Tensor:
    """Plan with a number of bands."""
    return module("plan").plan(
        cuda(NUM_SAMPLES),
        cuda(bands - 1, dtype=torch.float32),
        [cut] * bands,
        [1] * bands,
        [1] * bands,
        keep_den,
        -1,
        2**63 - 1,
        0,
        cuda(NUM_SAMPLES, dtype=torch.uint8),
    )


def compact() -> torch.Tensor:
    """List 5000 kept samples."""
    return module("compact").compact(cuda(NUM_SAMPLES, dtype=torch.uint8), cuda(4), 5000)


def order(count: int, *, is_range: bool) -> torch.Tensor:
    """Order 256 of a number of kept samples."""
    positions = None if is_range else cuda(256)
    kept = cuda(count, dtype=torch.int32)
    return module("order").order(kept, positions, 0, 4, 256, 7, 1)


def shuffle(n: int, *, inverse: bool) -> torch.Tensor:
    """Shuffle 256 places."""
    return module("shuffle").shuffle(cuda(256), n, inverse, 7, 1)


def draw() -> torch.Tensor:
    """Draw 256 numbers."""
    return module("draw").draw(cuda(256), 2**63 - 1, 1, 2**28 - 1)


def plan_top() -> torch.Tensor:
    """Keep 500 of a pool."""
    classes = cuda(NUM_SAMPLES, dtype=torch.uint8)
    return module("plan_top").plan_top(cuda(NUM_SAMPLES), 500, 32768, 2**63 - 1, 1, classes)


def audit() -> torch.Tensor:
    """Audit all."""
    return module("audit").audit(cuda(NUM_SAMPLES), cuda(NUM_SAMPLES, dtype=torch.uint8), 3)


def cells() -> torch.Tensor:
    """Count all."""
    return module("cells").cells(cuda(NUM_SAMPLES))


def solve_levels() -> object:
    """Keep 700 of a count."""
    return module("solve_levels").solve_levels(cuda(4096), 700, 6554)


def plan_levels() -> torch.Tensor:
    """Plan by levels."""
    top, cut = cuda(1, dtype=torch.int32), cuda(256, dtype=torch.int32)
    out = cuda(NUM_SAMPLES, dtype=torch.uint8)
    return module("plan_levels").plan_levels(cuda(NUM_SAMPLES), top, cut, 2**63 - 1, 0, out)


def cross_entropy_observe(
    logits: torch.dtype, kind: int, smoothing: float = 0.0, weighted: bool = False
) -> None:
    """Observe 8 rows of GPT-2's vocabulary."""
    module("cross_entropy_observe").cross_entropy_observe(
        cuda(8, 50257, dtype=logits),
        cuda(8),
        cuda(8),
        cuda(50257, dtype=torch.float32) if weighted else None,
        smoothing,
        -100,
        kind,
        state(),
        True,
    )


def cross_entropy_grad(logits: torch.dtype, smoothing: float = 0.0, weighted: bool = False) -> None:
    """The gradient of 8 rows of 32,768 classes."""
    real = torch.float64 if logits == torch.float64 else torch.float32
    module("cross_entropy_grad").cross_entropy_grad(
        cuda(8, dtype=real),
        cuda(8, 32768, dtype=logits),
        cuda(8),
        cuda(32768, dtype=torch.float32) if weighted else None,
        smoothing,
        -100,
        cuda(8, dtype=torch.float32),
        cuda(8, 2, dtype=real),
    )


def select(dtype: torch.dtype, ranks: int) -> torch.Tensor:
    """Find some ranks."""
    offsets = list(range(-1, ranks - 1))
    return module("select").select(cuda(NUM_SAMPLES, dtype=dtype), offsets, [1] * ranks, 4)


def top(dtype: torch.dtype) -> torch.Tensor:
    """Mark the 5000 largest."""
    return module("top").top(cuda(NUM_SAMPLES, dtype=dtype), 5000)


def pick(rule: int, *, count: int = NUM_SAMPLES) -> None:
    """Choose 99 of a number of elements."""
    values = cuda(count, dtype=torch.float32)
    module("pick").pick(values, 99, rule, 6554, 2**63 - 1, cuda(1), cuda(1), 1, 2)


def activations(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Three activations of a dtype."""
    return [cuda(20_001, dtype=dtype) for _ in range(3)]


def activation_std(*, with_slot: bool) -> None:
    """Measure three activations."""
    out = cuda(5, dtype=torch.float64)
    slot = cuda(1) if with_slot else None
    module("activation_std").activation_std(activations(), out, slot, with_slot, 1)


# Label -> call, and how many launches it may take.
CALLS: dict[str, tuple[Callable[[], object], int]] = {
    "observe-float32": (lambda: observe(torch.float32, torch.int64, None), 1),
    "observe-bfloat16": (lambda: observe(torch.bfloat16, torch.int32, None), 1),
    "observe-float16": (lambda: observe(torch.float16, torch.int64, torch.float32), 1),
    "observe-float64": (lambda: observe(torch.float64, torch.int64, torch.float64), 1),
    "observe_mean": (observe_mean, 1),
    "mean_threshold": (lambda: module("mean_threshold").mean_threshold(cuda(10)), 1),
    "plan-keep-all": (lambda: plan(1, cut=0), 2),
    "plan-mean": (lambda: plan(2), 2),
    "plan-six-bands": (lambda: plan(6), 2),
    "plan-fixed": (lambda: plan(2, keep_den=2), 5),
    "plan-fixed-six-bands": (lambda: plan(6, keep_den=2), 5),
    "compact": (compact, 1),
    "order-positions": (lambda: order(5000, is_range=False), 1),
    "order-range": (lambda: order(10**6, is_range=True), 1),
    "shuffle": (lambda: shuffle(5000, inverse=False), 1),
    "shuffle-inverse": (lambda: shuffle(10**10, inverse=True), 1),
    "draw": (draw, 1),
    "plan_top": (plan_top, 29),
    "audit": (audit, 1),
    "cells": (cells, 1),
    "solve_levels": (solve_levels, 1),
    "plan_levels": (plan_levels, 2),
    "cross_entropy_observe-loss": (lambda: cross_entropy_observe(torch.float32, 0), 1),
    "cross_entropy_observe-el2n": (lambda: cross_entropy_observe(torch.bfloat16, 1, 0.1), 1),
    "cross_entropy_observe-margin": (lambda: cross_entropy_observe(torch.float16, 2), 1),
    "cross_entropy_observe-least": (lambda: cross_entropy_observe(torch.float64, 3), 1),
    "cross_entropy_observe-entropy": (
        lambda: cross_entropy_observe(torch.float32, 4, 0.1, weighted=True),
        1,
    ),
    "cross_entropy_observe-forgetting": (lambda: cross_entropy_observe(torch.bfloat16, 5), 1),
    "cross_entropy_grad-float32": (lambda: cross_entropy_grad(torch.float32), 1),
    "cross_entropy_grad-bfloat16": (lambda: cross_entropy_grad(torch.bfloat16, 0.1), 1),
    "cross_entropy_grad-float16": (lambda: cross_entropy_grad(torch.float16), 1),
    "cross_entropy_grad-float64": (lambda: cross_entropy_grad(torch.float64, 0.1, True), 1),
    "select-records": (lambda: select(torch.int64, 2), 8),
    "top-scores": (lambda: top(torch.float32), 17),
    "pick-one-top": (lambda: pick(0, count=4096), 1),
    "pick-one-random": (lambda: pick(1, count=700), 1),
    "pick-one": (lambda: pick(2, count=4096), 1),
    "pick-top": (lambda: pick(0), 10),
    "pick-random": (lambda: pick(1), 8),
    "pick": (lambda: pick(2), 20),
    **{
        f"moments-{str(dtype).removeprefix('torch.')}": (
            lambda dtype=dtype: module("moments").moments(activations(dtype), 1),
            4,
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    },
    "moments-sampled": (lambda: module("moments").moments(activations(), 8), 4),
    "activation_std": (lambda: activation_std(with_slot=True), 5),
    "activation_std-slot": (lambda: activation_std(with_slot=False), 5),
    "relu_moments": (lambda: module("relu_moments").relu_moments(activations()[0]), 2),
    "relu_moments-inplace": (
        lambda: module("relu_moments").relu_moments_(activations(torch.bfloat16)[0]),
        2,
    ),
    "gelu_moments": (lambda: module("gelu_moments").gelu_moments(activations()[0], False), 2),
    "gelu_moments-tanh": (
        lambda: module("gelu_moments").gelu_moments(activations(torch.float16)[0], True),
        2,
    ),
}
