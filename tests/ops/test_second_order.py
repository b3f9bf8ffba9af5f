# SPDX-License-Identifier: Apache-2.0
"""Gradients of gradients: a penalty on the gradient of a loss, a Hessian, and one order more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from _cases import table
from torch import Tensor
from torch.autograd import gradgradcheck

import prune_engine as pe

TABLE = table(2.0)
CLASSES = torch.tensor([1, 2, 1, 2], dtype=torch.uint8)
TARGETS, INDICES = torch.tensor([0, 4, -100, 2]), torch.arange(4)
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 1.5, 0.25])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weighing(backend: str) -> pe.PruneEngine:
    engine = pe.PruneEngine(4, pe.KeepAll(), num_epochs=1, backend=backend)
    engine.buffer.activate(CLASSES, TABLE, 0)
    return engine


def right_again(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Compare a gradient's gradient with differences, without the global generator."""
    shape = function(x).shape
    grads = drawn(*shape, seed=2).requires_grad_()
    return gradgradcheck(function, x, grads)


def penalty(loss: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the squared length of a loss's gradient."""
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(first.square().sum() + loss, x)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2, "class_weight": WEIGHT, "reduction": "sum"},
        {"label_smoothing": 0.1, "reduction": "weighted_mean", "score": "el2n"},
    ],
    ids=["plain", "weighted", "smoothed"],
)
def test_a_gradient_penalty_of_cross_entropy_observe_has_the_true_gradient(backend, options):
    layer, x = drawn(3, 5, seed=1), drawn(4, 3).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        logits = torch.tanh(x @ layer)
        return weighing(backend).cross_entropy_observe(logits, TARGETS, INDICES, **options)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(loss(x), x, create_graph=True)[0]

    assert right_again(loss, x)
    assert right_again(gradient, x), "the third order"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_second_order_is_torchs_in_every_dtype(backend, dtype):
    x = drawn(4, 5).to(dtype).requires_grad_()
    got = penalty(weighing(backend).cross_entropy_observe(x, TARGETS, INDICES), x)
    wide = x.detach().double().requires_grad_()
    losses = F.cross_entropy(wide, TARGETS, reduction="none") * TABLE[CLASSES.long()]
    only_first = torch.autograd.grad(losses.mean(), wide, retain_graph=True)[0]
    want = penalty(losses.mean(), wide)
    error = (got.double() - want).abs().max().item()
    assert error < 2 * torch.finfo(dtype).eps * want.abs().max().item()
    assert got.dtype == dtype
    assert (only_first - want).abs().max() > 0.01, "control: the penalty matters"


def test_the_first_order_has_the_same_bits_with_and_without_a_graph(backend):
    x = drawn(4, 5, dtype=torch.float32).requires_grad_()
    pair = []
    for create_graph in (False, True):
        loss = weighing(backend).cross_entropy_observe(x, TARGETS, INDICES)
        pair.append(torch.autograd.grad(loss, x, create_graph=create_graph)[0])
    assert torch.equal(*pair)
    assert [made.requires_grad for made in pair] == [False, True]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_observe_is_linear_to_any_order(backend, reduction):
    def loss(x: Tensor) -> Tensor:
        losses = x.square().sum(dim=1)
        return weighing(backend).observe(losses, INDICES, reduction=reduction)

    assert right_again(loss, drawn(4, 3).requires_grad_())


def test_a_penalty_on_the_gradient_of_a_float32_mean_is_that_of_product_and_mean(backend):
    x = drawn(4, 3, dtype=torch.float32).requires_grad_()
    got = penalty(weighing(backend).observe(x.pow(3).sum(dim=1), INDICES), x)
    assert torch.equal(got, penalty((x.pow(3).sum(dim=1) * TABLE[CLASSES.long()]).mean(), x))
    assert not torch.equal(got, penalty(x.pow(3).sum(dim=1).mean(), x)), "control: weights matter"


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: pe.ops.relu_moments(x)[0],
        lambda x: pe.ops.relu_moments(x * 1, inplace=True)[0],
        lambda x: pe.ops.gelu_moments(x)[0],
        lambda x: pe.ops.gelu_moments(x, "tanh")[0],
    ],
    ids=["relu", "relu_inplace", "gelu", "gelu_tanh"],
)
def test_activations_that_measure_have_torchs_second_order(activation):
    assert right_again(lambda x: activation(x).square(), drawn(4, 3).requires_grad_())


# --- forward mode, and gradients as functions ---------------------------------------------------

# torch itself calls what it has deprecated.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@forward_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_mode_goes_through_observe(dtype):
    losses, along = drawn(4, dtype=dtype), drawn(4, seed=1, dtype=dtype)
    engine = weighing("auto")
    _, tangent = torch.func.jvp(lambda x: engine.observe(x, INDICES), (losses,), (along,))
    weights = torch.tensor([1.0, 2.0, 1.0, 2.0])
    torch.testing.assert_close(tangent, (along * weights).mean(), check_dtype=False)
    assert engine.buffer.read_counters().observed == 4


@forward_mode
def test_forward_mode_is_refused_where_its_product_is_not_made_and_nothing_is_recorded():
    engine, x = weighing("auto"), drawn(4, 5)
    with pytest.raises(ValueError, match=r"forward-mode tangent.*F\.cross_entropy"):
        torch.func.jvp(lambda x: engine.cross_entropy_observe(x, TARGETS, INDICES), (x,), (x,))
    assert engine.buffer.read_counters().observed == 0


@forward_mode
def test_forward_mode_goes_through_activations_that_measure():
    x = drawn(4, 3)
    for measured, plain in (
        (pe.ops.relu_moments, torch.relu),
        (pe.ops.gelu_moments, F.gelu),
        (lambda x: pe.ops.gelu_moments(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    ):
        found = torch.func.jvp(lambda x, f=measured: f(x)[0], (x,), (x,))
        for one, two in zip(found, torch.func.jvp(plain, (x,), (x,)), strict=True):
            torch.testing.assert_close(one, two)
        moments = torch.func.jvp(lambda x, f=measured: f(x)[1], (x,), (x,))[0]
        torch.testing.assert_close(moments, measured(x)[1])


def test_torch_func_grad_is_autograd():
    x = drawn(4, 5)

    def loss(x: Tensor) -> Tensor:
        return weighing("auto").cross_entropy_observe(x, TARGETS, INDICES, class_weight=WEIGHT)

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), want)
    twice = torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x)
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (want,) = torch.autograd.grad(first.square().sum(), leaf)
    torch.testing.assert_close(twice, want)
