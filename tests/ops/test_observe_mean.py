# SPDX-License-Identifier: Apache-2.0
"""observe_mean: observe's state, and the weights over B in one rounding, on every backend."""

from __future__ import annotations

import math
import random

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    EVERY_WEIGHT,
    counters,
    epochs,
    float32,
    floats,
    int64,
    records,
    salts,
    sizes,
    table,
    uint8,
)
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native

WEIGHTS = table(*EVERY_WEIGHT)
CHANGED = ("records", "score_sum", "counters", "step")
LOSSES, INDICES = float32([0.5, 1.5, 2.5]), int64([0, 1, 3])


def state(old=(0,) * 8, classes=(1, 2, 0, 3, 1, 2, 0, 3), **changed):
    """Return the keyword arguments of the operator, beginning from some records."""
    return {
        "records": int64(list(old)),
        "score_sum": int64(oracle.sum_of_records(list(old))),
        "counters": counters(),
        "step": int64([41]),
        "weight_class": uint8(list(classes)),
        "weight_table": WEIGHTS,
        "epoch": 0,
    } | changed


@given(
    num_samples=sizes.filter(bool),
    batch_size=st.integers(0, 70) | st.sampled_from([256, 3001]),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    score_dtype=st.sampled_from([None, torch.float16, torch.float32, torch.float64]),
    epoch=epochs,
    salt=salts,
)
def test_observe_mean_equals_oracle(
    backend, num_samples, batch_size, index_dtype, score_dtype, epoch, salt
):
    rng = random.Random(salt)
    old = records(rng, num_samples, epoch, unseen=rng.choice([0.0, 0.3, 1.0]))
    classes = [rng.randrange(256) for _ in range(num_samples)]
    indices = [rng.randrange(num_samples) for _ in range(batch_size)]
    losses = float32(floats(rng, batch_size, finite=False))
    scores = None
    if score_dtype is not None:
        scores = torch.tensor(floats(rng, batch_size, finite=False)).to(score_dtype)

    want = oracle.Buffer(list(old), oracle.sum_of_records(old))
    given_scores = (losses if scores is None else scores).double().tolist()
    part = oracle.f32(1 / max(1, batch_size))
    want_shares, _ = oracle.observe(
        [part] * batch_size,
        "float32",
        indices,
        given_scores,
        want,
        classes,
        WEIGHTS.tolist(),
        epoch,
    )
    held = state(old, classes, epoch=epoch)
    batch = losses, torch.tensor(indices, dtype=index_dtype)
    shares = pe.ops.observe_mean(*batch, score=scores, backend=backend, **held)
    assert_bitwise(shares, float32(want_shares), "shares")
    assert_bitwise(held["records"], want.records, "records")
    assert_bitwise(held["score_sum"], want.score_sum, "score_sum")
    assert_bitwise(held["counters"], want.counters, "counters")
    assert_bitwise(held["step"], [42], "step")


def test_a_share_is_rounded_after_the_part_and_after_the_weight(backend):
    # Of 3 samples weight 3 gives fl(3 * fl(1 / 3)) = 1, and weight 1.1 is not fl(1.1 / 3).
    weights = [3.0, 1.1, 1e38]
    held = state(classes=[2, 3, 4, 1], old=[0] * 4, weight_table=table(*weights))
    shares = pe.ops.observe_mean(LOSSES, int64([0, 1, 2]), backend=backend, **held)
    part = oracle.f32(1 / 3)
    assert shares.tolist() == [oracle.f32(part * oracle.f32(weight)) for weight in weights]
    once = [oracle.f32(oracle.f32(weight) / 3) for weight in weights]
    assert shares.tolist() != once, "control: one rounding would give other bits"


def test_what_comes_back_is_the_gradient_of_the_mean_and_has_none_itself(backend):
    losses = LOSSES.clone().requires_grad_()
    shares = pe.ops.observe_mean(losses, INDICES, backend=backend, **state())
    assert not shares.requires_grad
    rescaled, _ = pe.ops.observe(losses, INDICES, backend=backend, **state())
    (want,) = torch.autograd.grad(rescaled.mean(), losses)
    assert_bitwise(shares, want, "gradient")
    losses.dot(shares).backward()
    assert_bitwise(losses.grad, want, "gradient of the dot product")
    assert pe.ops.observe_mean(losses, INDICES, score=losses, backend=backend, **state()).sum() > 0


@pytest.mark.parametrize("advance", [True, False])
@pytest.mark.parametrize("size", [0, 3])
def test_a_step_is_a_batch_that_is_served(backend, advance, size):
    held = state()
    pe.ops.observe_mean(
        torch.ones(size), torch.arange(size), advance=advance, backend=backend, **held
    )
    assert held["step"].item() == 41 + advance


def test_edge_case_02_a_loss_that_is_not_finite_is_counted_and_has_a_share(backend):
    held = state()
    shares = pe.ops.observe_mean(float32([math.nan, 1.0]), int64([0, 4]), backend=backend, **held)
    assert shares.tolist() == [0.5, 0.5]
    assert held["counters"].tolist()[:2] == [2, 1]
    assert held["records"].tolist() == [0] * 4 + [oracle.record_of(1.0, 0)] + [0] * 3


@pytest.mark.parametrize("bad", [-1, 8, 2**40])
def test_edge_case_03_an_index_out_of_range_writes_nothing(backend, bad):
    held = state()
    with pytest.raises(IndexError, match=str(bad)):
        pe.ops.observe_mean(LOSSES, int64([0, 1, bad]), backend=backend, **held)
    for name in CHANGED:
        assert_bitwise(held[name], state()[name], name)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("losses", torch.zeros(3, dtype=torch.float64)),
        ("losses", torch.zeros(3, dtype=torch.float16)),
        ("losses", torch.zeros(3, 1)),
        ("losses", torch.zeros(3, device="meta")),
        ("indices", int64([0, 1])),
        ("indices", float32([0, 1, 2])),
        ("score", torch.zeros(4)),
        ("score", int64([1, 2, 3])),
        ("records", torch.zeros(8)),
        ("counters", torch.zeros(10, dtype=torch.int64)[::2]),
        ("weight_table", torch.ones(8)),
        ("epoch", int64([0, 1])),
        ("epoch", -1),
    ],
)
def test_edge_case_07_a_wrong_argument_is_named_and_nothing_is_written(backend, argument, value):
    held = state() | {"losses": LOSSES, "indices": INDICES} | {argument: value}
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        pe.ops.observe_mean(held.pop("losses"), held.pop("indices"), backend=backend, **held)
    for name in {*CHANGED} - {argument}:
        assert_bitwise(held[name], state()[name], name)


def test_edge_case_07_what_is_not_contiguous_is_converted(backend):
    plain, strided = state(), state()
    want = pe.ops.observe_mean(LOSSES, INDICES, backend=backend, **plain)
    wide = torch.stack([LOSSES, LOSSES * 0 - 1], dim=1)[:, 0]
    got = pe.ops.observe_mean(wide, INDICES.repeat_interleave(2)[::2], backend=backend, **strided)
    assert not wide.is_contiguous()
    assert_bitwise(got, want, "shares")
    assert_bitwise(strided["records"], plain["records"], "records")


def test_a_changed_tensor_that_was_saved_is_noticed(backend):
    held = state(epoch=int64([0]))
    factor = torch.ones(8, requires_grad=True)
    product = factor * held["records"]
    pe.ops.observe_mean(LOSSES, INDICES, backend=backend, **held)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("with_score", [False, True])
def test_opcheck(with_score):
    given_score = LOSSES.double() if with_score else None
    arguments = (LOSSES, INDICES, given_score, [*state(epoch=int64([0])).values()], True)
    torch.library.opcheck(native.observe_mean, arguments)
    assert not arguments[3][0].any(), "opcheck works on copies"


def test_the_operator_itself_refuses_a_backward_pass():
    losses = LOSSES.clone().requires_grad_()
    tensors = [*state(epoch=int64([0])).values()]
    shares = native.observe_mean(losses, INDICES, None, tensors, True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        shares.sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full("inductor compiles"))]
)
def test_a_compiled_step_has_the_bits_of_eager(compiler):
    def step(losses, held):
        return losses.dot(pe.ops.observe_mean(losses, INDICES, **held))

    torch._dynamo.reset()
    results = []
    for call in (step, torch.compile(step, fullgraph=True, backend=compiler)):
        losses, held = LOSSES.clone().requires_grad_(), state(epoch=int64([0]))
        call(losses, held).backward()
        results.append([losses.grad, *(held[name] for name in CHANGED)])
    torch._dynamo.reset()
    for name, want, got in zip(("gradient", *CHANGED), *results, strict=True):
        assert_bitwise(got, want, name)
