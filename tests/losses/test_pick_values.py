# SPDX-License-Identifier: Apache-2.0
"""What a batch is picked by: each rule said once more in NumPy, its state, and what it refuses."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch

import prune_engine as pe
from prune_engine.losses import EvolvedSampling, ImportanceSampling, SelectiveBackprop


def batches(count: int, size: int = 16) -> list[torch.Tensor]:
    """Return losses that grow uneven from batch to batch."""
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(size, generator=generator) ** (1 + 3 * at) for at in range(count)]


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_importance_is_used_once_tau_says_that_it_pays():
    rule, average, used = ImportanceSampling(k=12, decay=0.5), 0.0, []
    for losses in batches(12):
        p = losses.double().numpy()
        p = p / p.sum()
        uniform = np.full(16, 1 / 16)
        tau = 1 / math.sqrt(1 - ((p - uniform) ** 2).sum() / (p**2).sum())
        average = 0.5 * average + 0.5 * tau
        want = losses if average > (16 + 36) / 36 else torch.ones(16)
        assert torch.equal(rule.values(losses), want)
        assert rule.tau.item() == pytest.approx(average)
        used.append(bool((want != 1).any()))
    assert used == sorted(used)
    assert used[-1]
    assert not used[0], "control: the switch was thrown in between"
    assert torch.equal(ImportanceSampling(1).values(torch.tensor([math.nan, 0.0])), torch.ones(2))


def test_selective_backprop_is_the_share_of_smaller_losses_to_a_power():
    rule, seen = SelectiveBackprop(beta=3.0, history=40), np.empty(0, np.float32)
    for losses in batches(6):
        seen = np.concatenate([seen, losses.numpy()])[-40:]
        share = [(seen <= loss).mean() for loss in losses.numpy()]
        np.testing.assert_allclose(rule.values(losses).numpy(), np.array(share) ** 3, rtol=1e-6)
    other = SelectiveBackprop(beta=3.0, history=20)
    for losses in batches(6):
        got = other.values(losses)
    assert not np.allclose(got.numpy(), np.array(share) ** 3), "control: another history"


def test_evolved_sampling_moves_at_two_speeds():
    rule, average = EvolvedSampling(30, 0.25, 0.75), np.full(30, np.nan)
    for at, losses in enumerate(batches(6)):
        indices = (torch.arange(16) * 7 + at) % 30
        new, s = losses.double().numpy(), average[indices]
        s = np.where(np.isnan(s), new, s)
        got = rule.values(losses, indices)
        np.testing.assert_allclose(got.numpy(), 0.25 * s + 0.75 * new, rtol=1e-5)
        average[indices] = 0.75 * s + 0.25 * new
        np.testing.assert_allclose(rule.average.numpy(), average, rtol=1e-5)
    before = rule.average.clone()
    rule.values(torch.tensor([math.nan]), torch.tensor([3]))
    assert torch.equal(rule.average, before)


RULES = {
    "importance": lambda: ImportanceSampling(k=12, decay=0.5),
    "selective": lambda: SelectiveBackprop(2.0, 50),
    "evolved": lambda: EvolvedSampling(16),
}


def value(rule: Any, losses: torch.Tensor) -> torch.Tensor:
    extra = (torch.arange(16),) if isinstance(rule, EvolvedSampling) else ()
    return rule.values(losses, *extra)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_goes_on_after_a_restart_as_before(name):
    whole, resumed, fresh = (RULES[name]() for _ in range(3))
    stream = batches(8)
    for losses in stream[:6]:
        value(whole, losses)
    resumed.load_state_dict(through_disk(whole.state_dict()))
    differs = False
    for losses in stream[6:]:
        want = value(whole, losses)
        assert torch.equal(value(resumed, losses), want)
        differs |= not torch.equal(value(fresh, losses), want)
    assert differs, "control: what it remembers matters"
    with pytest.raises(pe.StateMismatchError, match="expected"):
        resumed.load_state_dict({})


@pytest.mark.parametrize("name", RULES)
def test_a_step_of_the_chosen_counts_all_and_costs_less(name):
    """The loop of the README by each rule: k of each batch are trained, all are observed."""
    engine, rule, trained = pe.PruneEngine(64, pe.KeepAll(), num_epochs=2), RULES[name](), 0
    for _ in engine.epochs():
        for at in range(4):
            indices = torch.tensor(list(engine.sampler())[:16])
            losses = batches(4)[at]
            picked = engine.pick(value(rule, losses), k=4)
            again = losses[picked[0]].clone().requires_grad_()
            engine.observe(again, indices, picked=picked, score=losses).backward()
            trained += len(again)
        assert engine.cursor == 64
    assert trained == 2 * 64 // 4


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ImportanceSampling(0), ValueError, "k must be in"),
        (lambda: ImportanceSampling(2, decay=1.0), ValueError, "decay must be in"),
        (lambda: SelectiveBackprop(0.0), ValueError, "beta must be"),
        (lambda: SelectiveBackprop("1"), TypeError, "beta must be"),
        (lambda: SelectiveBackprop(history=0), ValueError, "history must be in"),
        (lambda: EvolvedSampling(3, beta2=1.0), ValueError, "beta2 must be in"),
        (
            lambda: EvolvedSampling(3).values(torch.ones(2), torch.tensor([0])),
            ValueError,
            "indices",
        ),
        (
            lambda: SelectiveBackprop().values(torch.ones(2, 2)),
            ValueError,
            "losses must be a vector",
        ),
        (lambda: SelectiveBackprop().values(torch.tensor([1])), TypeError, "losses must be"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
