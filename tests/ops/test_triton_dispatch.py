# SPDX-License-Identifier: Apache-2.0
"""The Triton operators under their public names: what a compiled step calls without nvcc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prune_engine.backends import native

pytestmark = pytest.mark.triton
ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, where the kernels run on CPU tensors: they are registered for a key that
# nobody uses here, and called through it.
SCRIPT = """
import torch
from _assertions import assert_bitwise
from torch._C import DispatchKey, DispatchKeySet
from prune_engine import backends
from prune_engine.backends import native, triton
from prune_engine.backends.triton.dispatch import register

def has_kernel(name):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"prune_engine::{name}", "XPU")

def call(name, *arguments):
    operator = getattr(torch.ops.prune_engine, name).default
    return operator.redispatch(DispatchKeySet(DispatchKey.XPU), *arguments)

def same(label, arguments, changed=()):
    def copied(given):
        if isinstance(given, list):
            return [copied(entry) for entry in given]
        return given.clone() if isinstance(given, torch.Tensor) else given

    mine, theirs = ([copied(given) for given in arguments] for _ in range(2))
    got = call(label, *mine)
    want = getattr(backends.load("reference"), label)(*theirs)
    both = zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True)
    for a, b in both:
        assert_bitwise(a, b, label)
    for at in changed:
        state = isinstance(mine[at], list)
        for a, b in zip(mine[at], theirs[at], strict=True) if state else [(mine[at], theirs[at])]:
            assert_bitwise(a, b, f"{label}, argument {at}")
    return want

names = sorted(triton.OPERATORS)
assert not any(has_kernel(name) for name in names)
library = register(triton.OPERATORS, "XPU")
assert all(has_kernel(name) for name in names)
assert register(triton.OPERATORS, "XPU") is None, "it never replaces a kernel"

n, generator = 5000, torch.Generator().manual_seed(0)
losses = torch.rand(700, generator=generator)
indices = torch.randint(n, (700,), generator=generator)
records, classes = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.uint8)
sums, counters = torch.zeros(10, dtype=torch.int64), torch.tensor([0, 0, 0, 2**63 - 1, 0])
table = torch.arange(256.0)
state = [records, sums, counters, torch.tensor([7]), classes, table, torch.tensor([4])]
same("observe", (losses, indices, None, state, True), changed=(3,))
call("observe", losses, indices, None, state, True)
same("observe_mean", (losses, indices, None, state, True), changed=(3,))
threshold = same("mean_threshold", (sums,))
rule = ([32768, 0], [2, 1], [1, 1], 0, -1, 7, 5)
offsets = same("plan", (records, threshold, *rule, classes), changed=(9,))
call("plan", records, threshold, *rule, classes)
kept = same("compact", (classes, offsets, int(offsets[-1])))
same("order", (kept, None, 3, 2, 99, 7, 5))
same("order", (kept, torch.arange(50), 0, 1, 0, 7, 5))
same("shuffle", (torch.arange(50), 50, True, 7, 5))
same("draw", (torch.arange(50), 7, 5, 2))
same("plan_top", (records, 99, 30000, 7, 5, classes), changed=(5,))
same("audit", (records, classes, 4))
counts = same("cells", (records,))
top, cut, *_ = same("solve_levels", (counts, 2500, 6554))
same("plan_levels", (records, top, cut, 7, 5, classes, 0), changed=(5,))
same("plan_levels", (records, top, cut, 7, 5, classes, 0, top - 40), changed=(5,))
same("select", (records, [0, 3], [1, 0], 4))
same("top", (records, 99))
same("pick", (losses, 99, 2, 6554, 7, torch.tensor([5]), torch.tensor([3]), 1, 2))

# What measures activations owes the reference closeness and not bits (SEMANTICS 3.9).
def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)

reference, x = backends.load("reference"), torch.randn(3, 700, generator=generator)
out = torch.zeros(2, dtype=torch.float64)
call("activation_std", [x, losses], out, torch.tensor([1]), True, 1)
close(out[1], (x.double().std() + losses.double().std()) / 2)
close(call("moments", [x, losses], 2), reference.moments([x, losses], 2))
close(call("relu_moments", x), reference.relu_moments(x))
close(call("gelu_moments", x, True), reference.gelu_moments(x, True))
over = x.clone()
close(call("relu_moments_", over), reference.relu_moments(x)[1])
close(over, x.relu())
library._destroy()
assert not any(has_kernel(name) for name in names)
print("served", *names)
"""


def test_the_dispatcher_reaches_the_kernels_with_the_bits_of_the_reference():
    pytest.importorskip("triton")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("served", "activation_std", "audit", "cells", "compact", "cross_entropy_grad"),
        *("cross_entropy_observe", "draw", "gelu_moments", "mean_threshold", "moments", "observe"),
        *(
            "observe_mean",
            "order",
            "pick",
            "plan",
            "plan_levels",
            "plan_top",
            "relu_moments",
            "relu_moments_",
        ),
        *("select", "shuffle", "solve_levels", "top"),
    ]


def test_cuda_tensors_find_triton_only_where_the_library_has_no_kernels():
    pytest.importorskip("triton")
    from prune_engine.backends import triton

    found = torch._C._dispatch_has_kernel_for_dispatch_key("prune_engine::observe", "CUDA")
    assert found, "by one or by the other"
    assert (triton.REGISTERED is None) == native.BUILT_WITH_CUDA


def test_a_library_without_cuda_is_still_known_as_one(monkeypatch):
    monkeypatch.setattr(native, "BUILT_WITH_CUDA", False)
    assert "built without CUDA" in native.cuda_refusal()
