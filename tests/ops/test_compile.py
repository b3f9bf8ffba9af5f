# SPDX-License-Identifier: Apache-2.0
"""torch.compile(fullgraph=True) around engine.observe: one graph for all epochs, eager's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import batches, figures, infobatch, losses_at
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import prune_engine as pe

SIZE, SAMPLES = 16, 256


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step_of(engine: pe.PruneEngine) -> Any:
    def step(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return engine.observe(x * x, indices)

    return step


def run(engine: pe.PruneEngine, step: Any, epochs: int) -> list[torch.Tensor]:
    """Train some epochs; return the loss and the gradient of each batch."""
    results = []
    for _ in range(epochs):
        for batch in batches(engine.sampler(align=SIZE), SIZE):
            x = losses_at(batch, engine.epoch).requires_grad_()
            loss = step(x, torch.tensor(batch))
            loss.backward()
            results += [loss.detach(), x.grad]
        engine.end_epoch()
    return results


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_serves_all_epochs_with_the_bits_of_eager(backend):
    eager, compiled = infobatch(SAMPLES), infobatch(SAMPLES)
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(step_of(compiled), fullgraph=True, backend=counter)
    want = run(eager, step_of(eager), 4)
    got = run(compiled, step, 4)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_bitwise(a, b, f"result {k}")
    assert_bitwise(compiled.buffer.records, eager.buffer.records, "records")
    assert_bitwise(compiled.buffer.score_sum, eager.buffer.score_sum, "sum")
    assert figures(compiled) == figures(eager)
    assert compiled.cursor == eager.cursor
    graphs = counter.frame_count
    run(compiled, step, 3)
    assert counter.frame_count == graphs, "a later epoch needs no other graph"


def test_two_graphs_serve_a_whole_run():
    # One for the first batch; from the second on the count of samples is symbolic.
    engine, counter = infobatch(SAMPLES), CompileCounter()
    step = torch.compile(step_of(engine), fullgraph=True, backend=counter)
    run(engine, step, 4)
    assert counter.frame_count <= 2


def test_control_an_epoch_that_is_a_number_compiles_again():
    engine, counter = infobatch(SAMPLES), CompileCounter()
    names = ("records", "score_sum", "counters", "step", "weight_class", "weight_table")
    tensors = {name: getattr(engine.buffer, name) for name in names}

    def step(losses: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        return pe.ops.observe(losses, indices, epoch=epoch, **tensors)[0]

    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=False)
    for epoch in range(4):
        compiled(losses_at(range(4)), torch.arange(4), epoch)
    assert counter.frame_count == 4


def test_every_reduction_and_a_score_compile():
    engine = infobatch(SAMPLES)
    for options in ({"reduction": "sum"}, {"reduction": "weighted_mean"}, {"reduction": "none"}):
        torch._dynamo.reset()

        def step(x: torch.Tensor, indices: torch.Tensor, options: Any = options) -> torch.Tensor:
            return engine.observe(2 * x, indices, score=x.detach(), **options)

        x, indices = losses_at(range(SIZE)), torch.arange(SIZE)
        want = step(x, indices)
        got = torch.compile(step, fullgraph=True, backend="eager")(x, indices)
        assert_bitwise(got, want, str(options))
