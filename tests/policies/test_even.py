# SPDX-License-Identifier: Apache-2.0
"""An even beginning: epoch 0 drops as many as later ones, and no epoch is longer for the unseen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import KnownReference, losses_at

import prune_engine as pe
from prune_engine.epoch.plan import make_plan
from prune_engine.policies import (
    KAKURENBO,
    RCAP,
    TABLE,
    UCB,
    AlignPrune,
    Band,
    EpsilonGreedy,
    InfoBatch,
    InfoBatchQuantile,
    OrderDP,
    PerSample,
    Progress,
    Proportional,
    RePB,
    Rule,
    ScoreRule,
    SeTa,
    weight_table,
)

SIZE, LENGTH = 4000, 40
LABELS = PerSample([i % 4 for i in range(SIZE)])
# Those whose rule spared whoever was never seen, so that epoch 1 was long.
SPARED: list[ScoreRule] = [
    InfoBatch(0.5, delta=1.0, first_epoch="even"),
    InfoBatch(0.6, delta=1.0, sampling="fixed", first_epoch="even"),
    InfoBatch(0.5, delta=1.0, rescale=False, side="high", first_epoch="even"),
    InfoBatchQuantile(delta=1.0, first_epoch="even"),
    InfoBatchQuantile((30.0, 60.0), (0.1, 0.7), 1.0, "fixed", first_epoch="even"),
    Proportional(0.7, delta=1.0, first_epoch="even"),
    SeTa(0.2, delta=1.0, first_epoch="even"),
    AlignPrune(0.5, delta=1.0, window=3, first_epoch="even"),
]
COUNTED: list[ScoreRule] = [
    pe.Budget(0.4, delta=1.0, first_epoch="even"),
    UCB(0.4, period=1, first_epoch="even"),
    EpsilonGreedy(0.4, period=2, first_epoch="even"),
    OrderDP(0.3, 0.5, first_epoch="even"),
    RCAP(LABELS, keep=0.3, first_epoch="even"),
    KAKURENBO(0.25, 0.5, first_epoch="even"),
    RePB(0.7, first_epoch="even"),
]


@dataclass(frozen=True)
class Spares(pe.policies.Policy):
    """What an even beginning was: a random epoch 0, and then the rule of a full beginning."""

    inner: ScoreRule

    @property
    def needs_total(self) -> bool:
        return self.inner.needs_total

    def describe(self) -> dict[str, Any]:
        return {"policy": "Spares"}

    def memory(self, buffer, seed):
        return self.inner.memory(buffer, seed)

    def rule(self, buffer, progress, memory=None):
        policy = self.inner if progress.epoch == 0 else replace(self.inner, first_epoch="full")
        return policy.rule(buffer, progress, memory)


def drawn(epoch: int) -> torch.Tensor:
    """Return losses in 0 to 2 that an epoch's number decides."""
    return 2 * torch.rand(SIZE, generator=torch.Generator().manual_seed(epoch))


def lengths(policy: pe.policies.Policy, epochs: int = 8) -> list[int]:
    """Return how many samples the first epochs have, of losses whose half is low in every epoch.

    They hardly move, for a rule by last scores; for those that ask again whoever was absent, each
    epoch's are others.
    """
    engine = pe.PruneEngine(SIZE, policy, num_epochs=LENGTH, seed=2)
    moved = 1.0 if isinstance(policy, RePB | KAKURENBO) else 0.01
    base = drawn(99)
    found = []
    for epoch in range(epochs):
        found.append(engine.plan.num_kept)
        for batch in engine.plan.batches(100):
            if isinstance(getattr(policy, "inner", policy), AlignPrune):
                engine.attach(KnownReference(epoch))
            engine.observe(torch.lerp(base, drawn(epoch), moved)[batch], batch)
        engine.end_epoch()
    return found


def longest(found: list[int], savings: float) -> float:
    """Return how far an epoch is from the mean of those after the third, in standard deviations.

    The deviation is that of independent draws of the share that is saved; whoever draws fixed
    counts has less.
    """
    later = sum(found[3:]) / len(found[3:])
    return max(abs(count - later) for count in found[:3]) / math.sqrt(
        SIZE * savings * (1 - savings)
    )


@pytest.mark.parametrize("policy", [*SPARED, *COUNTED], ids=str)
def test_no_epoch_of_an_even_beginning_is_longer_than_the_others(policy):
    share = float(getattr(policy, "savings", lambda: 0)()) or 1 - getattr(policy, "keep", 0.5)
    assert longest(lengths(policy), share) <= 4
    before = Spares(policy) if policy in SPARED else replace(policy, first_epoch="full")
    assert longest(lengths(before), share) > 4, "control: as it was, or a full beginning"


def test_every_rule_over_scores_that_begins_evenly_is_among_them():
    of_scores = {kind for kind in TABLE.values() if issubclass(kind, ScoreRule)}
    refused = set()
    for kind in of_scores:
        try:
            kind(first_epoch="even")
        except ValueError:
            refused.add(kind)
    assert {kind.__name__ for kind in refused} == {"IES", "ProgressiveDropout"}
    assert of_scores - refused <= {type(policy) for policy in [*SPARED, *COUNTED]}


def buffer_of(backend: str = "cpu", unseen: float = 0.4, n: int = 2000) -> pe.epoch.ScoreBuffer:
    """Return scores of epoch 0, of which a share was never seen."""
    buffer = pe.epoch.ScoreBuffer(n, backend=backend)
    generator = torch.Generator().manual_seed(3)
    seen = (torch.rand(n, generator=generator) >= unseen).nonzero().flatten()
    buffer.observe(torch.empty(len(seen)).log_normal_(generator=generator), seen)
    return buffer


def test_infobatch_drops_the_never_seen_at_half_its_rate_until_it_anneals(backend):
    policy = InfoBatch(0.6, delta=0.5, first_epoch="even")
    buffer = buffer_of(backend)
    seen = ~buffer.scores.isnan()
    for epoch in (1, 2, 9):
        rule = policy.rule(buffer, Progress(epoch, epoch, 20))
        assert rule.bands[-1].cut == math.floor(0.3 * 65536 + 0.5) and rule.unseen_band == 2
        assert rule.thresholds.tolist() == buffer.mean_threshold().tolist()
        weights = make_plan(buffer, rule, seed=1, epoch=epoch).weights
        full = replace(policy, first_epoch="full").rule(buffer, Progress(epoch, epoch, 20))
        assert_bitwise(
            weights[seen], make_plan(buffer, full, seed=1, epoch=epoch).weights[seen], "the seen"
        )
        values = set(weights[~seen].tolist())
        assert values == {0.0, float(torch.tensor(65536 / (65536 - 19661)))}
    annealed = policy.rule(buffer, Progress(10, 10, 20))
    assert annealed.bands == Rule.keep_all(buffer.device).bands and annealed.unseen_band == -1


@pytest.mark.parametrize("ratio", [0.5, 0.3, 1 / 3, 0.123456789, 1 / 2**30 * 123456789])
def test_fixed_counts_of_the_others_stay_what_they_were(ratio):
    buffer = buffer_of()
    policy = InfoBatch(ratio, delta=1.0, sampling="fixed", first_epoch="even")
    rule = policy.rule(buffer, Progress(1, 1, None))
    full = replace(policy, first_epoch="full").rule(buffer, Progress(1, 1, None))
    seen = ~buffer.scores.isnan()
    plan, other = (make_plan(buffer, each, seed=4, epoch=1, ahead=True) for each in (rule, full))
    assert_bitwise(plan.weights[seen], other.weights[seen], "the seen")
    own = rule.bands[-1]
    share = Fraction(own.keep_num, own.keep_den)
    assert abs(share - (1 - Fraction(str(ratio)) / 2)) < Fraction(1, 10**9)
    unseen = int((~seen).sum())
    assert int((plan.weights[~seen] > 0).sum()) == math.floor(unseen * share)
    assert float(plan.weights[~seen].max()) == pytest.approx(float(1 / share))


@pytest.mark.parametrize(
    "policy",
    [p for p in SPARED if p.weighs() and not getattr(p, "sampling", "") == "fixed"],
    ids=str,
)
@pytest.mark.full("a thousand draws")
def test_the_estimate_is_unbiased_for_the_never_seen_too(policy):
    """The mean weight of the seen and of the never seen is 1 within its standard error."""
    buffer, draws = buffer_of(n=600), 1000
    memory = policy.memory(buffer, 0)
    seen = ~buffer.scores.isnan()
    sums: list[list[float]] = [[], [], []]
    for epoch in range(1, draws + 1):
        rule = policy.rule(buffer, Progress(epoch, epoch, None), memory)
        weights = make_plan(buffer, rule, seed=7, epoch=epoch, ahead=True).weights.double()
        own = weights[~seen]
        # Control: with the weights of a full beginning, 1, the same draws count too little.
        for found, each in zip(sums, (weights[seen], own, own.sign()), strict=True):
            found.append(float(each.mean()))
    for found, biased in zip(sums, (False, False, True), strict=True):
        spread = torch.tensor(found).double()
        deviate = abs(float(spread.mean()) - 1) / (float(spread.std()) / math.sqrt(draws))
        assert (deviate > 20) == biased and (deviate < 4) != biased


def test_proportional_saves_what_it_says_in_the_first_epoch_and_in_the_second():
    """Within four standard deviations of the draw, where it was 443 more."""
    n = 1000
    for seed in range(5):
        engine = pe.PruneEngine(
            n, Proportional(0.7, delta=1.0, first_epoch="even"), num_epochs=8, seed=seed
        )
        for epoch in range(3):
            assert abs(engine.plan.num_kept - 300) <= 4 * math.sqrt(n * 0.7 * 0.3)
            for batch in engine.plan.batches(50):
                engine.observe(losses_at(batch, epoch), batch)
            engine.end_epoch()
    buffer = buffer_of()
    rule = Proportional(0.7, delta=1.0, first_epoch="even").rule(buffer, Progress(1, 1, None))
    levels = pe.ops.solve_levels(buffer.cells(), rule.target, least=rule.least, unseen=rule.unseen)
    expected = Fraction(int(levels.solution[1]), 65536)
    assert rule.target - Fraction(2000, 65536) <= expected <= rule.target == 600
    spared = pe.ops.solve_levels(buffer.cells(), rule.target, least=rule.least)
    assert Fraction(int(spared.solution[1]), 65536) > 800, "control: the never seen alone are more"


def test_a_rule_that_says_what_becomes_of_the_never_seen_is_left_alone():
    @dataclass(frozen=True)
    class Says(ScoreRule):
        band: int = -1
        cut: int = 30000

        def savings(self):
            return 0.25

        def decide(self, buffer, progress, memory):
            bands = Band(self.cut, 1), Band(0, 1)
            return Rule(buffer.mean_threshold(), bands, weight_table(), unseen_band=self.band)

    buffer, progress = buffer_of(), Progress(1, 1, None)
    assert Says(1, first_epoch="even").rule(buffer, progress).unseen_band == 1
    assert Says(-1, 0, first_epoch="even").rule(buffer, progress).unseen_band == -1, "drops nobody"
    assert Says(first_epoch="full").rule(buffer, progress).unseen_band == -1
    own = Says(first_epoch="even").rule(buffer, progress)
    assert (own.unseen_band, own.bands[2].cut, own.weight_table[2]) == (2, 16384, 65536 / 49152)


def test_an_even_beginning_has_room_for_four_percentiles():
    five, four = (10.0, 30.0, 50.0, 70.0, 90.0), (10.0, 30.0, 50.0, 70.0)
    with pytest.raises(ValueError, match="percentiles must have at most 4 entries where first_"):
        InfoBatchQuantile(five, (0.5,) * 5, first_epoch="even")
    InfoBatchQuantile(five, (0.5,) * 5)  # control
    policy = InfoBatchQuantile(four, (0.5,) * 4, delta=1.0, first_epoch="even")
    assert longest(lengths(policy, 5), policy.savings()) <= 4


def test_a_class_of_which_nobody_was_seen_has_a_share():
    buffer = pe.epoch.ScoreBuffer(40)
    buffer.observe(torch.full((20,), 2.0), torch.arange(20))
    labels = PerSample([0] * 20 + [1] * 20)
    even, full = (RCAP(labels, keep=0.5, first_epoch=word) for word in ("even", "full"))
    kept, before = (
        policy.rule(buffer, Progress(1, 1, None, 3)).weight_class for policy in (even, full)
    )
    assert int(kept[:20].sum()) == int(kept[20:].sum()) == 10
    assert int(before[20:].sum()) == 0, "control: of a loss of 0 none was kept"


def test_the_never_seen_of_a_class_are_as_likely_as_its_mean():
    buffer = buffer_of(n=4000, unseen=0.5)
    policy = RCAP(LABELS, keep=0.3, beta=0.3, first_epoch="even")
    kept, before = (
        each.rule(buffer, Progress(1, 1, None, 3)).weight_class.double()
        for each in (policy, replace(policy, first_epoch="full"))
    )
    seen = ~buffer.scores.isnan()
    assert float(kept[~seen].mean()) > 0.25
    assert float(before[~seen].mean()) < 0.1, "control: of a loss of 0 few are kept"
