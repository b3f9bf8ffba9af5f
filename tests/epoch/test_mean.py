# SPDX-License-Identifier: Apache-2.0
"""The loss of a mean: its bits, its gradient, and what a step calls for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import prune_engine as pe
from prune_engine import backends
from prune_engine.ops.observe import observe_state

N = 5000
TABLE = torch.zeros(256).index_copy_(0, torch.arange(4), torch.tensor([0.0, 1.0, 2.0, 1 / 0.7]))
CLASSES = (torch.arange(N) % 3 + 1).to(torch.uint8)
WEIGHTS = TABLE[CLASSES.long()]
LARGEST = 4096


def engine(policy: pe.Policy | None = None, **options: Any) -> pe.PruneEngine:
    made = pe.PruneEngine(N, policy or pe.KeepAll(), num_epochs=2, **options)
    made.buffer.activate(CLASSES.to(made.buffer.device), TABLE.to(made.buffer.device), 0)
    return made


def losses_of(size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(size)) + 0.1


def dot(losses: Tensor, weights: Tensor) -> Tensor:
    return losses.dot(weights * torch.full((len(losses),), 1 / len(losses)))


def mean(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).mean()


@dataclass(frozen=True)
class Watching(pe.UCB):
    """A policy whose memory sees each batch."""


@pytest.mark.parametrize(
    ("size", "formula"), [(1, dot), (256, dot), (300, dot), (LARGEST, dot), (LARGEST + 1, mean)]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backend": "reference"},
        {"on_nonfinite": "raise"},
        {"policy": Watching(period=1)},
        {"mode": "flow"},
    ],
    ids=["plain", "reference", "raise", "watched", "flow"],
)
def test_a_float32_mean_is_the_dot_product_that_is_stated(size, formula, options):
    losses, indices = losses_of(size), torch.arange(size)
    for given in (losses, torch.stack([losses, -losses], dim=1)[:, 0]):  # the same in two strides
        made = engine(**options)
        assert_bitwise(made.observe(given, indices), formula(losses, WEIGHTS[:size]), "loss")
        assert_bitwise(made.scores()[:size], losses, "scores")


def test_the_two_formulas_differ_in_their_last_bits():
    """The control of the test above, and the reason why the limit between them is stated."""
    pairs = [
        (dot(x, w), mean(x, w)) for x, w in ((losses_of(n), WEIGHTS[:n]) for n in range(2, 99))
    ]
    assert any(one != two for one, two in pairs)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


@pytest.mark.parametrize("score", [None, "given"])
@pytest.mark.parametrize("size", [1, 7, 256, 300, LARGEST, LARGEST + 1])
@pytest.mark.parametrize("incoming", [1.0, 65536.0])
def test_the_gradient_is_that_of_product_and_mean_bit_for_bit(size, incoming, score):
    given = losses_of(size)
    one, two = given.clone().requires_grad_(), given.clone().requires_grad_()
    other = None if score is None else given + 1
    (engine().observe(one, torch.arange(size), score=other) * incoming).backward()
    (mean(two, WEIGHTS[:size]) * incoming).backward()
    assert_bitwise(one.grad, two.grad, "gradient")
    assert len(WEIGHTS[:size].unique()) == min(size, 3), "control: the weights matter"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_multiplied_and_averaged(dtype):
    losses, wide = losses_of(300).to(dtype), torch.float64 if dtype.itemsize == 8 else torch.float32
    want = (losses * WEIGHTS[:300]).to(dtype).mean(dtype=wide).to(dtype)
    assert_bitwise(engine().observe(losses, torch.arange(300)), want, "loss")


def test_a_score_beside_losses_of_another_shape_is_refused_and_nothing_is_recorded():
    made = engine()
    for losses in (torch.ones(4, 1), torch.ones(2, 2), torch.ones(3)):
        with pytest.raises(ValueError, match=r"losses must be|indices must"):
            made.observe(losses, torch.arange(4), score=torch.ones(4))
    assert made.buffer.read_counters().observed == made.steps == 0
    made.observe(torch.ones(4), torch.arange(4), score=torch.ones(4))  # control
    assert made.buffer.read_counters().observed == 4


# --- what is kept between steps -----------------------------------------------------------------


def strange(made: pe.PruneEngine, how: str) -> None:
    """Take the first step of a size where what is kept must not be kept."""
    losses, indices = losses_of(64), torch.arange(64)
    if how == "grad":
        torch.func.grad(lambda x: made.observe(x, indices))(losses)
    elif how == "jvp":
        torch.func.jvp(lambda x: made.observe(x, indices), (losses,), (losses,))
    elif how == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            made.observe(mode.from_tensor(losses), mode.from_tensor(indices))
    elif how == "inference":
        with torch.inference_mode():
            made.observe(losses.clone(), indices)
    elif how == "compiled":
        torch.compile(made.observe, backend="eager", fullgraph=True)(losses, indices)


# torch itself calls what it has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("how", ["plain", "grad", "jvp", "fake", "inference", "compiled"])
def test_a_step_in_a_transform_or_mode_leaves_nothing_to_those_that_follow(how):
    made = engine()
    strange(made, how)
    losses, indices = losses_of(64).requires_grad_(), torch.arange(64)
    for _ in range(2):
        loss = made.observe(losses, indices.clone())
        assert type(loss) is Tensor
        assert_bitwise(loss, dot(losses.detach(), WEIGHTS[:64]), "loss")
        loss.backward()
    assert_bitwise(losses.grad, WEIGHTS[:64] / 64 * 2, "gradient")


def test_a_batch_of_a_cpu_is_not_for_a_buffer_of_another_device():
    batch = torch.ones(4), torch.arange(4), None, True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "resolve", lambda name, kind: "cpu")
        assert pe.epoch.ScoreBuffer(N, device="meta").observe_mean(*batch) is None
    assert pe.epoch.ScoreBuffer(N).observe_mean(*batch) == 1, "control"


def test_batches_of_changing_size_have_their_own_divisors():
    made = engine()
    for size in (64, 32, 64, 1, 32):
        want = dot(losses_of(size), WEIGHTS[:size])
        assert_bitwise(made.observe(losses_of(size), torch.arange(size)), want, "loss")


def test_a_compiled_step_is_not_compiled_anew_for_what_eager_ones_keep():
    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    made = engine()
    step = torch.compile(made.buffer.observe_mean, backend=compiler, dynamic=False, fullgraph=True)
    for size in (32, 16, 8):
        loss = step(losses_of(64), torch.arange(64), None, True)
        assert_bitwise(loss, dot(losses_of(64), WEIGHTS[:64]), "loss")
        made.observe(losses_of(size), torch.arange(size))
    assert len(graphs) == 1
    step(losses_of(63), torch.arange(63), None, True)
    assert len(graphs) == 2, "control: another size is another graph"
    torch._dynamo.reset()


# --- what a step calls --------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Counts the operators that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def calls_of(function: Callable[[], Any]) -> dict[str, int]:
    with Calls() as calls:
        function()
    return dict(calls.found)


def test_a_step_calls_one_operator_of_the_library_and_one_product():
    made = engine()
    losses = (losses_of(256).requires_grad_() * 1.0, losses_of(256).requires_grad_() * 1.0)
    made.observe(losses[0], torch.arange(256))
    found: list[Tensor] = []
    forward = calls_of(lambda: found.append(made.observe(losses[1], torch.arange(256))))
    assert forward == {"arange": 1, "prune_engine::observe_mean": 1, "dot": 1}
    assert type(found[0].grad_fn).__name__ == "DotBackward0"
    by_sum = calls_of(lambda: made.observe(losses[1], torch.arange(256), reduction="sum"))
    assert by_sum == {  # control: another reduction calls more
        "arange": 1, "detach": 1, "prune_engine::observe": 1, "mul": 1, "sum": 1
    }  # fmt: skip


def test_on_a_device_the_gradient_is_that_of_torchs_own_product():
    """Of tensors without numbers, which take the road of a device."""
    state = [each.to("meta") for each in pe.epoch.ScoreBuffer(N).observe_arguments]
    losses = torch.empty(4, device="meta", requires_grad=True)
    indices = torch.empty(4, dtype=torch.int64, device="meta")
    kernels = backends.load("cpu")
    batch = losses, indices, None, tuple(state), kernels
    rescaled, weights = observe_state(*batch, advance=True, checks=True)
    assert type(rescaled.grad_fn).__name__ == "MulBackward0"
    assert not weights.requires_grad
