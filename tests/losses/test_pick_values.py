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
from prune_engine.losses import DivBS, EvolvedSampling, ImportanceSampling, SelectiveBackprop


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


def test_averages_are_moved_in_place_and_outlive_inference_mode():
    with torch.inference_mode():
        rule, other = (EvolvedSampling(64) for _ in range(2))
        other.load_state_dict(through_disk(rule.state_dict()))
    for each in (rule, other):
        address = each.average.data_ptr()
        for losses in batches(3):
            value(each, losses)
        assert each.average.data_ptr() == address
        assert each.average.isfinite().any(), "control: they moved"


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


# --- DivBS ---------------------------------------------------------------------------------------


def outputs(size: int = 12, copies: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, labels and features of a batch that begins with some copies of one sample."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(size, 4, generator=generator)
    features = torch.randn(size, 5, generator=generator)
    targets = torch.arange(size) % 4
    logits[:copies], features[:copies], targets[:copies] = logits[0], 9 * features[0], 1
    return logits, targets, features


def projected(
    logits: torch.Tensor, targets: torch.Tensor, features: torch.Tensor, k: int, bias: bool = True
) -> list[int]:
    """DivBS with the gradients themselves: the order in which samples are chosen."""
    wide = logits.double().numpy()
    error = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    error[np.arange(len(error)), targets.numpy()] -= 1
    given = features.double().numpy()
    given = np.concatenate([given, np.ones((len(given), 1))], axis=1) if bias else given
    gradients = (error[:, :, None] * given[:, None, :]).reshape(len(error), -1)
    residual, basis, chosen = gradients.mean(axis=0), list[np.ndarray](), list[int]()
    for _ in range(k):
        size = np.abs(gradients @ residual)
        size[chosen] = -1
        chosen.append(int(size.argmax()))
        part = gradients[chosen[-1]].copy()
        for direction in basis:
            part -= (part @ direction) * direction
        basis.append(part / np.linalg.norm(part))
        residual = residual - (residual @ basis[-1]) * basis[-1]
    return chosen


def order_of(values: torch.Tensor, k: int) -> list[int]:
    assert sorted(values.tolist())[-k:] == [float(each) for each in range(1, k + 1)]
    return values.argsort(descending=True)[:k].tolist()


@pytest.mark.parametrize("bias", [True, False])
def test_divbs_is_the_projection_of_the_gradients(bias):
    batch = outputs()
    got = order_of(DivBS(6, bias=bias).values(*batch), 6)
    assert got == projected(*batch, 6, bias)
    assert got != projected(*batch, 6, not bias), "control: the bias has a gradient too"
    assert len(set(got) & {0, 1, 2}) == 1, "of three copies one says it all"
    alone = [projected(*(part[[i]] for part in batch), 1) for i in range(3)]
    assert alone == [[0]] * 3
    norms = pe.losses.scores.grand(*batch, bias=bias)
    assert set(norms.topk(3).indices.tolist()) == {0, 1, 2}, "control: one by one all copies are"


def test_divbs_goes_on_in_order_where_nothing_is_left_to_add():
    logits, targets, features = outputs(copies=12)
    assert order_of(DivBS(5).values(logits, targets, features), 5) == [0, 1, 2, 3, 4]
    empty = DivBS(5).values(logits[:0], targets[:0], features[:0])
    assert empty.tolist() == []
    assert sorted(DivBS(50).values(*outputs()).tolist()) == [float(v) for v in range(39, 51)]


def test_divbs_leaves_out_what_is_not_finite():
    logits, targets, features = outputs()
    without = projected(logits[2:], targets[2:], features[2:], 4)
    logits[0, 1], features[1, 2] = math.inf, math.nan
    values = DivBS(4).values(logits, targets, features)
    assert values[:2].isnan().all()
    assert order_of(values[2:], 4) == without
    engine = pe.PruneEngine(12, pe.KeepAll(), num_epochs=1)
    chosen, weights, eligible = engine.pick(values, 4, rule="top")
    assert chosen.tolist() == sorted(i + 2 for i in without)
    assert (weights.tolist(), eligible.item()) == ([1.0] * 4, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.zeros(2), torch.zeros(2).long(), torch.zeros(2, 3)), ValueError, "logits must be"),
        ((torch.zeros(2, 2), torch.zeros(3).long(), torch.zeros(2, 3)), ValueError, "targets must"),
        ((torch.zeros(2, 2), torch.zeros(2).long(), torch.zeros(3, 3)), ValueError, "features mus"),
        ((torch.zeros(2, 2), torch.zeros(2).long(), [1, 2]), TypeError, "features must be a ten"),
        ((torch.zeros(2, 2), torch.tensor([0, 2]), torch.zeros(2, 3)), IndexError, "targets must"),
    ],
)
def test_divbs_refuses_what_no_last_layer_gives(arguments, error, match):
    with pytest.raises(error, match=match):
        DivBS(2).values(*arguments)
    with pytest.raises(pe.StateMismatchError, match="expected none"):
        DivBS(2).load_state_dict({"tau": 1})


def test_divbs_does_not_make_the_host_wait():
    """Meta tensors have no numbers: whatever looks at one on the host fails."""
    on = {"device": "meta"}
    logits, features = torch.zeros(8, 4, **on), torch.zeros(8, 5, **on)
    found = DivBS(k=3).values(logits, torch.zeros(8, dtype=torch.int64, **on), features)
    assert (found.shape, found.device.type) == ((8,), "meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(found.sum())  # control: here a look at a number is seen
