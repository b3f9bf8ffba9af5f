# SPDX-License-Identifier: Apache-2.0
"""torch.compile(fullgraph=True) around engine.observe: one graph for all epochs, eager's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _cases import table
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


# --- a captured step, replayed without Python -----------------------------------------------------


class Captured:
    """A step as a CUDA graph holds it: operators on inputs that stay in place, and no Python."""

    def __init__(self, engine: pe.PruneEngine) -> None:
        self.losses, self.indices = torch.zeros(SIZE), torch.zeros(SIZE, dtype=torch.int64)
        self._calls: list[Any] = []
        step = torch.compile(engine.observe, fullgraph=True, backend=self._keep)
        # To capture is to trace: on a CPU that records once, which the caller undoes.
        step(self.losses, self.indices)

    def _keep(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def first(*given: Any) -> Any:
            self._calls.append((graph, given))
            return graph(*given)

        return first

    def replay(self, batch: list[int], epoch: int) -> None:
        self.losses.copy_(losses_at(batch, epoch))
        self.indices.copy_(torch.tensor(batch))
        (graph, given), *others = self._calls
        assert not others, "one graph"
        graph(*given)


def captured(tell: bool) -> tuple[pe.PruneEngine, pe.PruneEngine]:
    """Train by eager calls, and by replays of a captured step; return both engines."""
    eager, replayed = infobatch(SAMPLES), infobatch(SAMPLES)
    before = replayed.state_dict()
    step = Captured(replayed)
    replayed.load_state_dict(before)
    for epoch in range(3):
        for batch in batches(eager.sampler(align=SIZE), SIZE):
            eager.observe(losses_at(batch, epoch), torch.tensor(batch))
        for batch in batches(replayed.sampler(align=SIZE), SIZE):
            step.replay(batch, epoch)
            if tell:
                replayed.consume(SIZE)
        assert_bitwise(replayed.buffer.records, eager.buffer.records, "records")
        if not tell:
            break
        assert (replayed.cursor, replayed.progress) == (eager.cursor, eager.progress)
        for engine in (eager, replayed):
            engine.end_epoch()
    return eager, replayed


def test_a_captured_engine_observe_that_is_replayed_is_the_eager_run():
    eager, replayed = captured(tell=True)
    assert figures(replayed) == figures(eager)
    assert replayed.plan.indices.tolist() == eager.plan.indices.tolist()
    assert len(eager.plan.indices) < SAMPLES, "something is pruned"


def test_control_a_captured_engine_observe_moves_no_cursor_by_itself():
    eager, replayed = captured(tell=False)
    assert (replayed.cursor, eager.cursor) == (0, SAMPLES)


# --- the gradient, which tensors of a device get in the same way ---------------------------------


def weighted() -> pe.epoch.ScoreBuffer:
    buffer = pe.epoch.ScoreBuffer(SAMPLES, backend="cpu")
    classes = torch.arange(SAMPLES).remainder(3).add(1).to(torch.uint8)
    buffer.activate(classes, table(0.1, 3.0), 2)
    return buffer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_gradient_has_the_bits_of_the_eager_one(dtype, compiler):
    indices = torch.arange(SIZE) * 3
    results = []
    for compiled in (True, False):
        buffer = weighted()

        def step(x: torch.Tensor, indices: torch.Tensor, buffer: Any = buffer) -> torch.Tensor:
            return buffer.observe(x * x, indices)[0]

        x = losses_at(indices).to(dtype).requires_grad_()
        run = torch.compile(step, fullgraph=True, backend=compiler) if compiled else step
        rescaled = run(x, indices)
        rescaled.sum().backward()
        results.append((rescaled.detach(), x.grad, buffer.records, buffer.score_sum, buffer.step))
    for name, a, b in zip(("loss", "gradient", "records", "sum", "step"), *results, strict=True):
        assert_bitwise(a, b, name)
    assert results[0][1].ne(0).all() and results[0][3][9] == SIZE


@pytest.mark.parametrize("compiled", [False, True])
def test_the_weights_have_no_gradient(compiled):
    x, buffer = losses_at(range(SIZE)).requires_grad_(), weighted()
    observe = torch.compile(buffer.observe, fullgraph=True, backend="eager")
    rescaled, weights = (observe if compiled else buffer.observe)(x, torch.arange(SIZE))
    assert rescaled.requires_grad and not weights.requires_grad
