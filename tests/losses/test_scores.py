# SPDX-License-Identifier: Apache-2.0
"""Scores against NumPy in float64, GraNd against autograd, forgetting against whole histories."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise
from _cases import float32, int64
from hypothesis import given
from hypothesis import strategies as st

from prune_engine.losses import scores


def distribution(rows: int, classes: int, salt: int, scale: float):
    generator = torch.Generator().manual_seed(salt)
    logits = scale * torch.randn(rows, classes, generator=generator)
    targets = torch.randint(classes, (rows,), generator=generator)
    z = logits.double().numpy()
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return logits, targets, p / p.sum(axis=1, keepdims=True)


@given(
    rows=st.integers(1, 7),
    classes=st.sampled_from([2, 3, 10, 1000]),
    salt=st.integers(0, 999),
    scale=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_scores_are_their_formulas(rows, classes, salt, scale):
    logits, targets, p = distribution(rows, classes, salt, scale)
    own = p[np.arange(rows), targets]
    top = np.sort(p, axis=1)
    error = p - np.eye(classes)[targets]
    with np.errstate(divide="ignore", invalid="ignore"):
        want = {
            "nll": -np.log(own),
            "el2n": np.sqrt((error**2).sum(axis=1)),
            "margin": 1 - (top[:, -1] - top[:, -2]),
            "least_confidence": 1 - top[:, -1],
            "entropy": -np.where(p > 0, p * np.log(p), 0).sum(axis=1),
        }
    got = {
        "nll": scores.nll(logits, targets),
        "el2n": scores.el2n(logits, targets),
        "margin": scores.margin(logits),
        "least_confidence": scores.least_confidence(logits),
        "entropy": scores.entropy(logits),
    }
    for name, value in got.items():
        # float32 probabilities err by some 2^-24 each, summed over up to 1000 classes.
        np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("bias", [True, False])
def test_grand_is_the_norm_of_the_last_layers_gradient(bias):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(5, 7, generator=generator)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 7, 4, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    targets = torch.tensor([0, 1, 2, 3, 0])
    got = scores.grand(layer(features), targets, features, bias=bias)
    for row in range(5):
        layer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(features[row]), targets[row])
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in layer.parameters()))
        assert got[row].item() == pytest.approx(norm, rel=1e-5)
    wrong = scores.grand(layer(features), targets, features, bias=not bias)
    assert not torch.allclose(got, wrong), "control: the bias counts"


@pytest.mark.parametrize("name", ["nll", "el2n", "margin", "least_confidence", "entropy"])
def test_scores_are_low_where_easy_detached_and_of_float32(name):
    easy, hard = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    function, target = getattr(scores, name), [torch.tensor([0])]
    arguments = target if name in ("nll", "el2n") else []
    assert function(easy, *arguments) < function(hard, *arguments)
    half = function(hard.bfloat16().requires_grad_(), *arguments)
    assert half.dtype == torch.float32 and not half.requires_grad
    assert function(hard.double(), *arguments).dtype == torch.float64
    with pytest.raises(ValueError, match=r"logits must be \[B, C\]"):
        function(torch.zeros(3), *arguments)


def test_one_class_has_no_margin_to_lose():
    assert_bitwise(scores.margin(torch.zeros(2, 1)), [0.0, 0.0], "margin")


def test_an_unknown_score_is_refused_by_name():
    with pytest.raises(ValueError, match="no_such"):
        scores.score_kind("no_such")


def toneva(history: list[bool]) -> float:
    """Count events as the paper does, from the whole history."""
    if not any(history):
        return math.inf
    return sum(a and not b for a, b in itertools.pairwise(history))


def presented(history: list[bool], epochs: list[int]) -> torch.Tensor:
    last, when = float32([math.nan]), int64([0])
    for right, epoch in zip(history, epochs, strict=True):
        last = scores.forgetting(torch.tensor([right]), last, when, epoch)
        when = int64([epoch])
    return last


@given(history=st.lists(st.booleans(), min_size=1, max_size=12), gaps=st.integers(0, 3))
def test_forgetting_events_are_those_of_the_whole_history(history, gaps):
    rng = random.Random(gaps)
    epochs = list(itertools.accumulate(1 + rng.randrange(gaps + 1) for _ in history))
    last = presented(history, epochs)
    assert scores.forgetting_events(last).item() == toneva(history)


def test_a_sample_never_learned_stands_above_all_that_were():
    learned = max(float(presented(list(h), [*range(8)])) for h in itertools.product(
        [False, True], repeat=8) if any(h))  # fmt: skip
    assert float(presented([False] * 8, [*range(8)])) > learned


@given(st.lists(st.booleans(), max_size=4), st.lists(st.booleans(), min_size=2, max_size=3))
def test_presentations_of_one_epoch_start_where_the_first_did(before, now):
    epoch = len(before)
    start, when = float32([math.nan]), int64([0])
    if before:
        start, when = presented(before, [*range(epoch)]), int64([epoch - 1])
    apart = [scores.forgetting(torch.tensor([c]), start, when, epoch) for c in now]
    last, at = start, when
    for right in now:  # as the record keeps the larger one of an epoch
        fresh = scores.forgetting(torch.tensor([right]), last, at, epoch)
        last = fresh if int(at) != epoch or math.isnan(float(last)) else torch.maximum(last, fresh)
        at = int64([epoch])
    assert_bitwise(last, torch.stack(apart).amax(dim=0), "score")


def test_a_score_of_another_kind_is_read_without_failing():
    got = scores.forgetting(
        torch.tensor([True, False]), float32([-3.5, 3e38]), int64([0, 0]), int64([4])
    )
    assert bool(torch.isfinite(got).all())


def test_unseen_stays_nan():
    assert torch.isnan(scores.forgetting_events(float32([math.nan]))).item()


def test_a_mean_of_runs_is_exact_and_refuses_what_is_none() -> None:
    runs = [torch.tensor([0.1, torch.inf]), torch.tensor([0.3, 1.0]), torch.tensor([0.3, 2.0])]
    found = scores.mean(iter(runs))
    assert found.dtype == torch.float64
    assert found[0].item() == sum(run[0].double() for run in runs).item() / 3
    assert found[1].item() == float("inf")
    with pytest.raises(ValueError, match="runs must be at least one"):
        scores.mean([])
    with pytest.raises(ValueError, match=r"runs must be \(2,\) each, got \(3,\)"):
        scores.mean([runs[0], torch.zeros(3)])
    with pytest.raises(ValueError, match="got one in run 1"):
        scores.mean([runs[0], torch.tensor([0.0, torch.nan])])
    with pytest.raises(TypeError, match="runs must be floating"):
        scores.mean([torch.tensor([1, 2])])
