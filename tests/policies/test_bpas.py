# SPDX-License-Identifier: Apache-2.0
"""B-PAS decides as published, decision for decision; its budget and its noise floor."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from _bpas import SAMPLES, SIZE, memory_of, restated, train
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.policies.batches import stability
from prune_engine.policies.batches.pacing import delta_at, planned_count

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "policy",
    [
        pe.BPAS(SIZE, 0.015, 0.05),
        pe.BPAS(SIZE, 0.015, 0.05, strict=True, shuffle_batches=True),
        pe.BPAS(SIZE, 0.03, 0.05, unbiased=False, drop_last=True),
    ],
    ids=["published", "slides", "biased"],
)
def test_the_published_rule_decision_for_decision(policy):
    engine, record = train(policy)
    want = restated(
        record,
        policy.delta_start,
        policy.delta_end,
        strict=policy.strict,
        ddof=int(policy.unbiased),
    )
    assert want is not None
    assert [set(epoch) for epoch in record] == want
    counts = [len(kept) for kept in want]
    assert counts[0] == counts[1] == SAMPLES // SIZE + (not policy.drop_last)
    assert counts[1] > counts[-1] > 0, "the record has decisions of both kinds"
    assert [report.planned for report in engine.history] == [
        sum(len(members) for members in kept) for kept in want
    ]
    for wrong in (1.2, 1 / 1.2):
        other = restated(
            record,
            wrong * policy.delta_start,
            wrong * policy.delta_end,
            strict=policy.strict,
            ddof=int(policy.unbiased),
        )
        assert other != want, "control: another delta decides otherwise"


def test_x_is_that_of_the_whole_batch_whatever_it_was_cut_into():
    policy = pe.BPAS(SIZE, 1e-9, 1e-9)
    (whole, record), (cut, _) = (train(policy, parts) for parts in (1, 4))
    fixed = memory_of(whole).batches
    want = torch.empty(fixed.num_batches, dtype=torch.float64)
    for members, layers in record[-1].items():
        want[fixed.batch_of[members[0]]] = float(np.mean([np.std(out, ddof=1) for out in layers]))
    last = whole.state_dict()["memory"]["now"]
    torch.testing.assert_close(last, want, rtol=1e-7, atol=0)
    # Summed in parts, gradients differ in the last bits, so the weights drift apart a little.
    torch.testing.assert_close(cut.state_dict()["memory"]["now"], want, rtol=1e-4, atol=0)


# --- the rule -----------------------------------------------------------------------------------

YES = torch.ones(4, dtype=torch.bool)


def test_delta_runs_from_start_to_end_in_equal_factors():
    values = [delta_at(i, 90, 5e-6, 5e-5) for i in range(1, 91)]
    assert values[-1] == pytest.approx(5e-5, rel=1e-12)
    factors = [b / a for a, b in pairwise(values)]
    assert factors == pytest.approx([10 ** (1 / 90)] * 89, rel=1e-12)
    assert values[0] == pytest.approx(5e-6 * 10 ** (1 / 90), rel=1e-12), "i starts at 1"


def test_at_most_and_below_differ_on_a_tie_alone():
    change = torch.tensor([0.5, 0.25, 1.0, math.nan], dtype=torch.float64)
    most, below = (
        stability.survivors(change, YES, 0.5, strict=strict, min_batches=0).tolist()
        for strict in (False, True)
    )
    assert most == [False, False, True, True], "what is not known stays"
    assert below == [True, False, True, True]


def test_the_dropped_stay_dropped():
    alive = torch.tensor([True, False, True, False])
    change = torch.tensor([9.0, 9.0, 0.0, math.nan], dtype=torch.float64)
    stays = stability.survivors(change, alive, 1.0, strict=False, min_batches=4)
    assert stays.tolist() == [True, False, True, False], "not even for min_batches"


@given(
    changes=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, math.nan]), min_size=1, max_size=12),
    least=st.integers(0, 14),
    delta=st.sampled_from([0.0, 0.5, 1.5, 3.0]),
)
def test_so_many_stay_those_that_changed_most(changes, least, delta):
    change = torch.tensor(changes, dtype=torch.float64)
    alive = torch.arange(len(changes)) % 3 != 1
    stays = stability.survivors(change, alive, delta, strict=False, min_batches=least)
    free = stability.survivors(change, alive, delta, strict=False, min_batches=0)
    assert int(stays.sum()) == min(int(alive.sum()), max(least, int(free.sum())))
    assert not (free & ~stays).any()
    rank = change.nan_to_num(nan=math.inf)
    added, gone = rank[stays & ~free], rank[alive & ~stays]
    assert not len(added) or not len(gone) or added.min() >= gone.max()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 25), st.integers(0, 5))
def test_the_budgets_delta_lets_exactly_so_many_go(changes, count, unknown):
    change = torch.tensor([*changes, *[math.nan] * unknown], dtype=torch.float64)
    alive = torch.arange(len(change)) % 4 != 3
    delta = stability.smallest(change, alive, count)
    stays = stability.survivors(change, alive, delta, strict=False, min_batches=0)
    usable = sorted(change[alive & ~change.isnan()].tolist())
    ties = usable[: min(count, len(usable))]
    want = sum(value <= ties[-1] for value in usable) if ties else 0
    assert int((alive & ~stays).sum()) == want >= min(count, len(usable))


# --- the budget ---------------------------------------------------------------------------------


@given(
    start=st.integers(10, 400),
    total=st.integers(8, 60),
    dsi=st.floats(0, 0.6),
    slip=st.integers(0, 3),
)
def test_the_budget_is_met_and_the_number_never_grows(start, total, dsi, slip):
    counts = [start, start]
    while len(counts) < total:
        now, done = counts[-1], len(counts)
        planned = planned_count(start, done, sum(counts), now, total, dsi, 1)
        assert 0 < planned <= now
        # Ties may take some more away; the next epochs make up for it.
        counts.append(max(1, planned - slip) if done == total // 2 else planned)
    got = 1 - sum(counts) / (total * start)
    # Less than a batch of one epoch is left, but the slip may come too late to be made up for.
    assert got == pytest.approx(dsi, abs=1 / (total * start) + slip / start)


def test_target_dsi_is_met_by_a_training():
    engine, _ = train(pe.BPAS(SIZE, target_dsi=0.35, drop_last=True))
    dropped = [a.planned - b.planned for a, b in pairwise(engine.history)]
    assert engine.history.dsi == pytest.approx(0.35, abs=0.01)
    assert dropped[0] == 0
    assert all(count >= 0 for count in dropped)
    other, _ = train(pe.BPAS(SIZE, target_dsi=0.1, drop_last=True))
    assert other.history.dsi == pytest.approx(0.1, abs=0.01)


# --- the noise floor ----------------------------------------------------------------------------


def simulate(noise_floor: float | None, drift: float, seed: int) -> float:
    """Return the share of drifting batches that are dropped in 20 epochs of noisy X.

    Half of the batches have converged: their X moves by noise alone (1e-2). The others drift.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 400
    drifts = torch.zeros(count, dtype=torch.float64)
    drifts[: count // 2] = drift
    alive = torch.ones(count, dtype=torch.bool)
    history = []
    for epoch in range(20):
        noise = 1e-2 * torch.randn(count, generator=generator, dtype=torch.float64)
        history.append(1 + drifts * epoch + noise)
        if epoch >= 2:
            change = stability.change_of(history[-1], history[-2], history[-3], alive, noise_floor)
            alive = stability.survivors(change, alive, 2e-3, strict=False, min_batches=0)
    assert not bool(alive[count // 2 :].all()), "the converged ones go"
    return 1 - float(alive[: count // 2].double().mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_epoch_alone_does_not_drop_a_batch_that_still_moves(seed):
    drift = 2e-2  # 1.4 times the noise of a difference
    plain, floored = simulate(None, drift, seed), simulate(1.0, drift, seed)
    assert plain > 0.5, "control: the published rule drops them by chance"
    assert floored < plain / 3


def test_the_floor_is_the_noise_of_a_difference_and_no_drift_moves_it():
    generator = torch.Generator().manual_seed(0)
    count, noise = 4000, 3e-4
    alive = torch.ones(count, dtype=torch.bool)
    alive[:100] = False
    drift = torch.rand(count, generator=generator, dtype=torch.float64)
    x = [
        2 + drift * i + noise * torch.randn(count, generator=generator, dtype=torch.float64)
        for i in range(3)
    ]
    for each in x:
        each[:100] = math.nan  # the dropped have no X any more
    floor = stability.noise_floor(x[2], x[1], x[0], alive)
    assert float(floor) == pytest.approx(noise * math.sqrt(2), rel=0.06)
