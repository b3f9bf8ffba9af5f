# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on logits, on a GPU: as test_cuda.py. Asked for by ``-m cuda``."""

from __future__ import annotations

import pytest
import torch
from _assertions import assert_bitwise
from _logits import Case, assert_agrees, tolerance
from test_cuda import SANITIZE, device, launches  # noqa: F401 - fixtures

import prune_engine as pe
from prune_engine import backends
from prune_engine.losses import scores

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::UserWarning")]

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CLASSES = [1, 33, 1000, 1024, 1025, 50257] + [262_144] * (not SANITIZE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_its_gradient(device, dtype, num_classes, smoothing):  # noqa: F811
    cpu, cuda = backends.load("cpu"), backends.load("cuda")
    weight = torch.rand(num_classes, generator=torch.Generator().manual_seed(1))
    for kind in range(len(scores.SCORES)):
        case = Case(9, num_classes, kind, dtype=dtype, awkward=kind == 0, span=5)
        labels = (weight if kind % 2 else None, smoothing, -100)
        want = case.run(cpu, kind, labels)
        assert_agrees(case, case.run(cuda, kind, labels, "cuda"), want)
        grad = torch.linspace(-1, 2, 9).to(want["rescaled"].dtype)
        saved = (want["batch_weights"].clamp(max=8.0), want["stats"])
        arguments = (grad, case.logits, case.targets, *labels, *saved)
        made = cpu.cross_entropy_grad(*arguments)
        there = (a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
        got = cuda.cross_entropy_grad(*there).cpu()
        unit, limits = torch.finfo(dtype).eps, tolerance(dtype)
        torch.testing.assert_close(
            got.double(), made.double(), equal_nan=True,
            rtol=limits["rtol"] + 2 * unit, atol=32 * limits["atol"],
        )  # fmt: skip


@pytest.mark.parametrize("num_classes", [100, 5000])
def test_two_runs_have_the_same_bits(device, num_classes):  # noqa: F811
    case = Case(3000, num_classes, 2, span=40)
    first, second = (case.run(backends.load("cuda"), 4, (None, 0.1, -100), "cuda") for _ in "ab")
    for name, value in first.items():
        assert_bitwise(second[name], value, name)


@pytest.mark.parametrize("num_classes", [100, 5000])
def test_a_batch_is_one_launch_and_waits_for_nothing(device, num_classes):  # noqa: F811
    buffer = pe.epoch.ScoreBuffer(1000, device=device)
    logits = torch.zeros(256, num_classes, device=device)
    targets = torch.zeros(256, dtype=torch.int64, device=device)
    indices = torch.arange(256, device=device)

    def step():
        return buffer.cross_entropy_observe(logits, targets, indices, score="el2n")

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if not SANITIZE:  # a profiler and a sanitizer do not run together
        names = launches(step)
        assert len(names) == 1 and "cross_entropy" in names[0], names
