# SPDX-License-Identifier: Apache-2.0
"""observe as a PyTorch operator: arguments, autograd, opcheck and torch.compile."""

from __future__ import annotations

import pytest
import torch
from _assertions import assert_bitwise
from _cases import MAX_EPOCH, counters, float32, int64, records_of, table, uint8

import prune_engine as pe
from prune_engine.backends import native

CLASSES = [1, 2, 0, 3, 1, 2, 0, 3]
WEIGHTS = table(2.0, 4.0)


def state(**changed):
    """Return the keyword arguments of observe for eight samples."""
    return {
        "records": torch.zeros(8, dtype=torch.int64),
        "score_sum": torch.zeros(10, dtype=torch.int64),
        "counters": counters(),
        "step": torch.zeros(1, dtype=torch.int64),
        "weight_class": uint8(CLASSES),
        "weight_table": WEIGHTS,
        "epoch": 0,
    } | changed


LOSSES, INDICES = float32([0.5, 1.5, 2.5, 3.5]), int64([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("losses", int64([1, 2, 3, 4])),
        ("losses", torch.zeros(2, 2)),
        ("losses", [0.5, 1.5, 2.5, 3.5]),
        ("losses", torch.zeros(4, device="meta")),
        ("indices", float32([0, 1, 2, 3])),
        ("indices", uint8([0, 1, 2, 3])),
        ("indices", torch.zeros(2, 2, dtype=torch.int64)),
        ("indices", int64([0, 1, 2])),
        ("indices", [0, 1, 2, 3]),
        ("indices", torch.zeros(4, dtype=torch.int64, device="meta")),
        ("records", torch.zeros(8, dtype=torch.int32)),
        ("records", torch.zeros(2, 4, dtype=torch.int64)),
        ("records", torch.zeros(16, dtype=torch.int64)[::2]),
        ("score_sum", torch.zeros(3, dtype=torch.int64)),
        ("score_sum", torch.zeros(10)),
        ("score_sum", torch.zeros(20, dtype=torch.int64)[::2]),
        ("counters", torch.zeros(4, dtype=torch.int64)),
        ("counters", torch.zeros(10, dtype=torch.int64)[::2]),
        ("step", torch.zeros(2, dtype=torch.int64)),
        ("step", torch.zeros(1)),
        ("weight_class", torch.ones(8, dtype=torch.int64)),
        ("weight_class", uint8([1] * 7)),
        ("weight_table", torch.ones(8)),
        ("weight_table", torch.ones(256, dtype=torch.float64)),
        ("score", int64([1, 2, 3, 4])),
        ("score", torch.zeros(5)),
        ("score", torch.zeros(4, device="meta")),
        ("epoch", float32([0.0])),
        ("epoch", int64([0, 1])),
    ],
)
def test_edge_case_07_wrong_argument_is_named_and_nothing_is_written(backend, argument, value):
    given = state() | {"losses": LOSSES, "indices": INDICES} | {argument: value}
    mutable = {"records", "score_sum", "counters", "step"} - {argument}
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        pe.ops.observe(given.pop("losses"), given.pop("indices"), backend=backend, **given)
    for name in mutable:
        assert_bitwise(given[name], state()[name], name)


def test_edge_case_07_non_contiguous_inputs_are_converted(backend):
    plain, strided = state(), state()
    want = pe.ops.observe(LOSSES, INDICES, score=LOSSES, backend=backend, **plain)
    wide = torch.stack([LOSSES, LOSSES * 0 - 1], dim=1)[:, 0]
    indices = torch.stack([INDICES, INDICES * 0 + 99], dim=1)[:, 0]
    strided["weight_class"] = uint8([c for pair in CLASSES for c in (pair, 7)])[::2]
    got = pe.ops.observe(wide, indices, score=wide, backend=backend, **strided)
    assert not wide.is_contiguous()
    assert_bitwise(got[0], want[0], "rescaled")
    assert_bitwise(strided["records"], plain["records"], "records")


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCH + 1, 2**40])
def test_edge_case_10_epoch_out_of_range(backend, epoch):
    given = state(epoch=epoch)
    with pytest.raises(ValueError, match="epoch"):
        pe.ops.observe(LOSSES, INDICES, backend=backend, **given)
    assert not given["records"].any()


def test_edge_case_10_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="no_such"):
        pe.ops.observe(LOSSES, INDICES, backend="no_such", **state())


def test_edge_case_12_scalar_loss_says_reduction_none(backend):
    with pytest.raises((TypeError, ValueError), match='reduction="none"'):
        pe.ops.observe(torch.tensor(0.5), INDICES, backend=backend, **state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_backward_is_grad_times_batch_weights(backend, dtype):
    losses = LOSSES.clone().to(dtype).requires_grad_()
    upstream = torch.tensor([1.0, 0.3, -2.0, 0.7], dtype=dtype)
    rescaled, weights = pe.ops.observe(losses, INDICES, backend=backend, **state())
    assert rescaled.requires_grad
    assert not weights.requires_grad, "batch_weights has no gradient to give"
    rescaled.backward(upstream)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    want = (upstream.to(wide) * weights.to(wide)).to(dtype)
    assert_bitwise(losses.grad, want, "gradient")


def test_score_receives_no_gradient(backend):
    losses, score = LOSSES.clone().requires_grad_(), LOSSES.clone().requires_grad_()
    rescaled, _ = pe.ops.observe(losses, INDICES, score=score, backend=backend, **state())
    rescaled.sum().backward()
    assert score.grad is None
    assert losses.grad is not None


def test_gradcheck_and_gradgradcheck(backend):
    losses = LOSSES.double().requires_grad_()

    def rescale(x):
        return pe.ops.observe(x, INDICES, backend=backend, **state())[0]

    with torch.random.fork_rng():  # gradgradcheck draws its own upstream gradients
        assert torch.autograd.gradcheck(rescale, (losses,))
        assert torch.autograd.gradgradcheck(rescale, (losses,))
        with pytest.raises(RuntimeError, match="Jacobian"):  # control: a wrong gradient
            torch.autograd.gradcheck(lambda x: rescale(x).detach() + 3 * x, (losses,))


def raw_arguments(losses, score=None):
    """Return fresh arguments of the operator itself, in the order of its schema."""
    given = state(epoch=int64([0]))
    return (losses, INDICES, score, [*given.values()], True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_score", [False, True])
def test_opcheck(dtype, with_score):
    arguments = raw_arguments(LOSSES.to(dtype), LOSSES.clone() if with_score else None)
    torch.library.opcheck(native.observe, arguments)
    assert not arguments[3][0].any(), "opcheck works on copies"


def test_the_operator_itself_refuses_a_backward_pass():
    # Gradients belong to pe.ops.observe; the bare operator must not pass for differentiable.
    rescaled, _ = native.observe(*raw_arguments(LOSSES.clone().requires_grad_()))
    with pytest.raises((UserWarning, RuntimeError), match=r"autograd|grad_fn"):
        rescaled.sum().backward()


@pytest.mark.parametrize("epoch", [0, 1, MAX_EPOCH])
def test_epoch_may_be_a_tensor(backend, epoch):
    number, tensor = state(epoch=epoch), state(epoch=int64([epoch]))
    for given in (number, tensor):
        pe.ops.observe(LOSSES, INDICES, backend=backend, **given)
    assert_bitwise(tensor["records"], number["records"], "records")
    assert_bitwise(number["records"][:4], records_of(LOSSES.tolist(), epoch), "records")
    assert tensor["epoch"].item() == epoch


# Inductor's own imports use a name that torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full("inductor compiles"))]
)
def test_compiled_step_has_the_bits_of_eager(compiler):
    # The reference is eager by definition: it looks at the indices before it writes.
    # Losses and weights are multiples of 1/2 below 2^20: their mean is exact in any order.
    def step(losses, given):
        rescaled, weights = pe.ops.observe(losses, INDICES, **given)
        return rescaled.mean(), weights

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    results = []
    for call in (step, compiled, compiled):
        losses, given = LOSSES.clone().requires_grad_(), state()
        mean, weights = call(losses, given)
        mean.backward()
        kept = [given[k] for k in ("records", "score_sum", "counters", "step")]
        results.append([mean, weights, losses.grad, *kept])
    torch._dynamo.reset()
    for compiled_result in results[1:]:
        for got, want, name in zip(
            compiled_result,
            results[0],
            ["mean", "batch_weights", "gradient", "records", "score_sum", "counters", "step"],
            strict=True,
        ):
            assert_bitwise(got, want, f"{compiler} {name}")


@pytest.mark.parametrize("count", [0, 6, 8])
def test_the_operator_itself_says_how_many_tensors_a_state_has(count):
    losses, indices, score, tensors, advance = raw_arguments(LOSSES)
    with pytest.raises(RuntimeError, match="state must be 7 tensors"):
        native.observe(losses, indices, score, (tensors + tensors)[:count], advance)
