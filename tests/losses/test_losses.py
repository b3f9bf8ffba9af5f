# SPDX-License-Identifier: Apache-2.0
"""The losses' helpers: what is trained and what is recorded are two things."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from _assertions import assert_bitwise
from _cases import table
from _runs import infobatch

import prune_engine as pe
from prune_engine.losses.reduce import reduce_losses

LOGITS = torch.tensor([[9.0, -9.0, 0.0], [0.5, 0.25, 0.0], [0.0, 2.0, 1.0]])
TARGETS = torch.tensor([0, 0, 2])


def test_without_smoothing_the_score_is_the_loss():
    losses, score = pe.losses.cross_entropy(LOGITS.clone().requires_grad_(), TARGETS)
    assert_bitwise(losses, F.cross_entropy(LOGITS, TARGETS, reduction="none"), "losses")
    assert_bitwise(score, losses, "score")
    assert losses.requires_grad and not score.requires_grad


def test_with_smoothing_the_score_stays_the_likelihood():
    losses, score = pe.losses.cross_entropy(LOGITS, TARGETS, label_smoothing=0.2)
    want = F.cross_entropy(LOGITS, TARGETS, reduction="none", label_smoothing=0.2)
    assert_bitwise(losses, want, "losses")
    assert_bitwise(score, F.cross_entropy(LOGITS, TARGETS, reduction="none"), "score")
    assert losses[0] > losses[1] and score[0] < score[1], "why: the surest looks the hardest"


def test_the_score_is_what_the_engine_records():
    engine = infobatch(3)
    losses, score = pe.losses.cross_entropy(LOGITS, TARGETS, label_smoothing=0.2)
    engine.observe(losses, torch.arange(3), score=score)
    assert_bitwise(engine.scores(), score, "scores")


def test_smoothing_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing must be in 0\.\.1, got 1.5"):
        pe.losses.cross_entropy(LOGITS, TARGETS, label_smoothing=1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_reductions_keep_the_dtype(dtype):
    losses, weights = torch.ones(4, dtype=dtype), torch.tensor([1.0, 2.0, 1.0, 2.0])
    for reduction in ("mean", "sum", "none", "weighted_mean"):
        got = reduce_losses(losses, weights, reduction, None)
        assert got.dtype == dtype


def test_weighted_mean_of_nothing_is_zero():
    losses, weights = torch.ones(2, requires_grad=True), torch.zeros(2)
    got = reduce_losses(losses * weights, weights, "weighted_mean", None)
    got.backward()
    assert_bitwise(got, torch.tensor(0.0), "loss")
    assert_bitwise(losses.grad, [0.0, 0.0], "gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_large_batch_of_half_precision_is_summed_wide(dtype):
    losses = torch.full((4096,), 20.0, dtype=dtype, requires_grad=True)
    for reduction, denom, weight, want in (
        ("mean", None, 1.0, 20.0),
        ("mean", 4096, 1.0, 20.0),
        ("mean", torch.tensor(4096), 1.0, 20.0),
        ("weighted_mean", None, 1.0, 20.0),
        ("weighted_mean", None, 20.0, 1.0),  # the weights' sum is beyond float16 as well
    ):
        weights = torch.full((4096,), weight)
        got = reduce_losses(losses, weights, reduction, denom)
        assert (got.item(), got.dtype) == (want, dtype), (reduction, denom, weight)
    engine = infobatch(4096)
    weights = table(2.0)
    engine.buffer.activate(torch.full((4096,), 2, dtype=torch.uint8), weights, 0)
    assert engine.observe(losses, torch.arange(4096), denom=4096).item() == 40.0
    control = losses.detach().sum() / 4096
    assert not control.isfinite() or dtype == torch.bfloat16, "torch's own sum overflows"


def test_smoothing_over_many_classes_is_summed_wide():
    logits = torch.zeros(2, 50_000, dtype=torch.float16)
    logits[:, 1] = 6.0
    targets = torch.tensor([1, 2])
    losses, score = pe.losses.cross_entropy(logits, targets, label_smoothing=0.1)
    want = F.cross_entropy(logits.double(), targets, reduction="none", label_smoothing=0.1)
    assert torch.allclose(losses.double(), want, rtol=1e-3)
    assert losses.dtype == torch.float16 and bool(score.isfinite().all())
    control = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)
    assert not control.isfinite().all(), "control: in half precision it is not"
