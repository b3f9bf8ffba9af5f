# SPDX-License-Identifier: Apache-2.0
"""A classification head's loss with its bookkeeping: from logits to their gradient.

One call is a forward and a backward pass on fresh indices: `F.cross_entropy(reduction="none")` and
`engine.observe` in eager torch, the same under torch.compile, or `engine.cross_entropy_observe`.
`gradient in the forward pass` is the design that was not taken: the same kernels, but the gradient
is made at once, kept, and multiplied in the backward pass.

Peak memory is the growth of a fresh process's resident set over one such step (bench_memory.py).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from functools import cache, partial
from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from bench_memory import Peak
from data import empty_engine
from harness import Alternative
from torch import Tensor

import prune_engine as pe
from prune_engine import backends

TABLE = "cross_entropy"
VERSUS = "F.cross_entropy + observe"
RELATIVE_TO = "F.cross_entropy(...).mean() (no pruning)"
UNIT = "ms"
SHAPES = ((256, 1000), (4096, 1000), (64, 50_257), (8, 262_144))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = "engine.cross_entropy_observe"


class LogitData:
    """Logits and targets of one shape and dtype, and an engine to put their scores into."""

    def __init__(self, num_samples: int, batch: int, num_classes: int, dtype: str) -> None:
        """Makes them; the logits are a leaf whose gradient is wanted."""
        generator = torch.Generator().manual_seed(0)
        self.dtype, self.items, self.num_classes = dtype, batch, num_classes
        logits = 3 * torch.randn(batch, num_classes, generator=generator)
        self.logits = logits.to(DTYPES[dtype]).requires_grad_()
        self.targets = torch.randint(num_classes, (batch,), generator=generator)
        self.num_samples = num_samples
        self.engine = empty_engine(num_samples)

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        bits = 8 * self.logits.element_size()
        return {"batch": self.items, "classes": self.num_classes, "bits_per_logit": bits}


def _indices(data: LogitData, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(data.num_samples, (data.items,), generator=generator)


def _backward(data: LogitData, loss: Tensor) -> None:
    data.logits.grad = None
    loss.backward()


def _ours(data: LogitData, indices: Tensor, score: Any = "loss") -> None:
    loss = data.engine.cross_entropy_observe(data.logits, data.targets, indices, score=score)
    _backward(data, loss)


def _eager(data: LogitData, indices: Tensor) -> None:
    losses = F.cross_entropy(data.logits, data.targets, reduction="none")
    _backward(data, data.engine.observe(losses, indices))


def _eager_el2n(data: LogitData, indices: Tensor) -> None:
    losses = F.cross_entropy(data.logits, data.targets, reduction="none")
    score = pe.scores.el2n(data.logits, data.targets)
    _backward(data, data.engine.observe(losses, indices, score=score))


@cache
def _compiled_step() -> Any:
    def step(engine: pe.PruneEngine, logits: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        return engine.observe(F.cross_entropy(logits, targets, reduction="none"), indices)

    return torch.compile(step, fullgraph=True)


def _compiled(data: LogitData, indices: Tensor) -> None:
    _backward(data, _compiled_step()(data.engine, data.logits, data.targets, indices))


def _plain(data: LogitData, _indices: Tensor) -> None:
    _backward(data, F.cross_entropy(data.logits, data.targets))


def _early(data: LogitData, indices: Tensor) -> None:
    kernels, state = backends.load("cpu"), data.engine.buffer.observe_arguments
    logits = data.logits.detach()
    labels = (None, 0.0, -100)
    rescaled, weights, _, stats = kernels.cross_entropy_observe(
        logits, data.targets, indices, *labels, 0, state, True
    )
    ones = torch.ones_like(rescaled)
    made = kernels.cross_entropy_grad(ones, logits, data.targets, *labels, weights, stats)
    rescaled.mean()
    data.logits.grad = made * (1 / data.items)


def _bytes(data: LogitData) -> int:
    return 3 * data.logits.numel() * data.logits.element_size()  # read, read again, written


_row = partial(Alternative, prepare=_indices, threads=2)
ALTERNATIVES = (
    _row(OURS, _ours, bytes_moved=_bytes),
    _row(f'{OURS}, score="el2n"', partial(_ours, score="el2n"), bytes_moved=_bytes),
    _row("gradient in the forward pass (not taken)", _early),
    _row(VERSUS, _eager),
    _row(f"{VERSUS}, score=el2n(logits)", _eager_el2n),
    _row(f"torch.compile({VERSUS})", _compiled),
    _row(RELATIVE_TO, _plain),
)
MEASURED = {row.name: row for row in ALTERNATIVES}
MEMORY_KINDS = (OURS, VERSUS)
MEMORY_SHAPES = ((4096, 1000), (8, 262_144))


def peak_here(kind: str, batch: int, num_classes: int, dtype: str) -> dict[str, Any]:
    """Measures one row's peak in this process, which should be a fresh one."""
    call = MEASURED[kind].call
    warm = LogitData(1000, 4, num_classes, dtype)
    call(warm, _indices(warm, 0))
    data = LogitData(1000, batch, num_classes, dtype)
    indices = _indices(data, 1)
    gc.collect()
    peak = Peak()
    peak.reset()
    base = peak.base()
    call(data, indices)
    logits = data.logits.numel() * data.logits.element_size()
    return {
        "kind": kind,
        "shape": f"{batch} x {num_classes}, {dtype}",
        "peak_bytes": peak.read() - base,
        "logit_bytes": logits,
        "method": peak.method,
    }


def peak(kind: str, batch: int, num_classes: int, dtype: str) -> dict[str, Any]:
    """Measures one row's peak in a fresh process.

    Raises:
        RuntimeError: the process failed; its last words are in the message.
    """
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(1 << 18), OMP_WAIT_POLICY="passive")
    done = subprocess.run(
        [sys.executable, __file__, kind, str(batch), str(num_classes), dtype],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"memory of {kind!r} at {batch} x {num_classes}: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@pytest.fixture(scope="module", params=SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def data(num_samples: int, request: pytest.FixtureRequest) -> LogitData:
    """The data, made once for all rows of a shape."""
    return LogitData(num_samples, *request.param, "float32")


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_cross_entropy_observe(benchmark: Any, data: LogitData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)


if __name__ == "__main__":
    print(json.dumps(peak_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
