# SPDX-License-Identifier: Apache-2.0
"""What ``torch.compile(mode="reduce-overhead")`` needs to make a CUDA graph, asked of a CPU.

torch makes none of a step that changes an input which is not static (``check_for_mutation`` of
inductor's cudagraph_utils); which inputs those are is decided before any device is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _runs import infobatch, losses_at, through_disk
from functorch.compile import make_boxed_func
from torch._dynamo.decorators import mark_static_address
from torch._functorch.aot_autograd import aot_module_simplified
from torch._guards import TracingContext

import prune_engine as pe
from prune_engine.lasting import stay
from prune_engine.sharding.local_samples import Share

# torch warns of its own modules while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SAMPLES, SIZE = 64, 8
STATE = 7  # tensors that a step changes or reads
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def moving_inputs(step: Step) -> tuple[list[str], int]:
    """Compile a step; name the inputs it changes that are not static, and count the static ones."""
    found: dict[str, Any] = {}

    def compile_forward(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        metadata = TracingContext.get().fw_metadata
        names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        static = list(metadata.static_input_indices)
        changed = [k for k, each in enumerate(metadata.input_info) if each.mutates_data]
        found["moving"] = [names[k] for k in changed if k not in static]
        found["static"] = len(static)
        return make_boxed_func(graph.forward)

    def compile_backward(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return aot_module_simplified(
            graph, inputs, fw_compiler=compile_forward, bw_compiler=compile_backward
        )

    weight = torch.ones((), requires_grad=True)
    compiled = torch.compile(
        lambda losses, indices: step(losses * weight, indices), fullgraph=True, backend=backend
    )
    compiled(losses_at(range(SIZE)), torch.arange(SIZE)).backward()
    assert weight.grad is not None
    return found["moving"], found["static"]


def step_of(buffer: pe.epoch.ScoreBuffer) -> Step:
    return lambda losses, indices: buffer.observe(losses, indices)[0].mean()


def of_logits(engine: pe.PruneEngine) -> Step:
    def step(losses: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([losses, -losses], dim=1)
        return engine.cross_entropy_observe(logits, indices % 2, indices)

    return step


def test_a_step_changes_no_input_that_moves():
    assert moving_inputs(step_of(pe.epoch.ScoreBuffer(SAMPLES))) == ([], STATE)


@pytest.mark.parametrize("make", [lambda e: e.observe, of_logits], ids=["observe", "logits"])
def test_a_step_of_the_engine_changes_no_input_that_moves(make):
    moving, static = moving_inputs(make(infobatch(SAMPLES)))
    assert moving == [] and static >= STATE


def test_control_without_the_mark_every_changed_tensor_moves():
    buffer = pe.epoch.ScoreBuffer(SAMPLES)
    for tensor in buffer.observe_arguments:
        vars(tensor).clear()
    moving, static = moving_inputs(step_of(buffer))
    assert static == 0
    assert len(moving) >= 4, "records, score_sum, counters and step at least"


def loaded(engine: pe.PruneEngine) -> pe.PruneEngine:
    engine.load_state_dict(through_disk(infobatch(SAMPLES).state_dict()))
    return engine


def resized(engine: pe.PruneEngine) -> pe.PruneEngine:
    engine.resize(SAMPLES + 3)
    return engine


@pytest.mark.parametrize("change", [loaded, resized, copy.deepcopy])
def test_tensors_that_come_in_place_of_others_are_static_too(change):
    assert moving_inputs(step_of(change(infobatch(SAMPLES)).buffer)) == ([], STATE)


def test_what_divided_scores_record_in_is_static():
    numbers = torch.arange(4)
    share = Share(numbers, torch.ones(4, dtype=torch.uint8), numbers.int(), 4, 0, (0, 1))
    for tensor in share.arguments(pe.epoch.ScoreBuffer(4).observe_arguments):
        assert vars(tensor) == marked(torch.zeros(1))


def marked(tensor: torch.Tensor) -> dict[str, Any]:
    mark_static_address(tensor)
    return vars(tensor)


def test_the_mark_is_torchs_own():
    tensor = torch.zeros(1)
    assert vars(tensor) == {}
    stay(tensor)
    assert vars(tensor) == marked(torch.zeros(1)) != {}


def test_the_mark_goes_with_no_copy_and_no_state():
    engine = infobatch(SAMPLES)
    handed_out = [*engine.buffer.state_dict().values(), engine.scores()]
    for tensor in handed_out:
        assert not isinstance(tensor, torch.Tensor) or vars(tensor) == {}
