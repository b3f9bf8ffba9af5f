# SPDX-License-Identifier: Apache-2.0
"""Weights of 256 classes: what a table must be, and each class's weight from rule to loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import _levels
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import EVERY_WEIGHT, float32
from _ranks import Ranks
from _runs import batches, losses_at, through_disk

import prune_engine as pe
from prune_engine.ops.weights import weights_on
from prune_engine.policies import Band, Rule, Selection, weight_table

N = 510
NOTHING = torch.empty(0)


@dataclass(frozen=True)
class EveryClass(pe.policies.Policy):
    """Sample i is of class i mod 255 + 1, from the second epoch on."""

    def rule(self, buffer, progress, memory=None):
        classes = torch.ones(N, dtype=torch.uint8)
        if progress.epoch:
            classes = (torch.arange(N) % 255 + 1).to(torch.uint8)
        return Selection(classes, weight_table(*EVERY_WEIGHT))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.0, 2.0), "got 0.0 for class 2"),
        ((2.0, -1.0), "got -1.0 for class 3"),
        ((math.nan,), "got nan for class 2"),
        ((1.0, 1.0, math.inf), "got inf for class 4"),
        ((1e39,), r"got 1e\+39 for class 2"),  # infinite in float32
        ((1e-46,), "got 1e-46 for class 2"),  # and this is 0
    ],
)
def test_edge_case_10_a_weight_that_is_none_is_refused(weights, message):
    with pytest.raises(ValueError, match="weight_table must be positive and finite.*" + message):
        Rule(NOTHING, (Band(0, 1),), weight_table(*weights))
    with pytest.raises(ValueError, match=message):
        Selection(torch.ones(1, dtype=torch.uint8), weight_table(*weights))


@pytest.mark.parametrize("table", [(), (0.0,), (1.0, 1.0), (0.0, 2.0), (0.0, *[1.0] * 256)])
def test_edge_case_10_a_table_of_another_length_or_start_is_refused(table):
    with pytest.raises(ValueError, match=r"2 to 256 entries that start 0\.0, 1\.0"):
        Rule(NOTHING, (Band(0, 1),), table)


def test_edge_case_10_too_many_weights_are_refused():
    assert len(weight_table(*[2.0] * 254)) == 256
    with pytest.raises(ValueError, match="at most 254 numbers, got 255"):
        weight_table(*[2.0] * 255)


def test_edge_case_10_a_band_without_a_weight_is_refused():
    with pytest.raises(
        ValueError, match=r"a weight for class 3 of bands, got \(0\.0, 1\.0, 2\.0\)"
    ):
        Rule(NOTHING, (Band(0, 3),), weight_table(2.0))
    assert Rule(NOTHING, (Band(0, 3),), weight_table(2.0, 3.0)).bands[0].weight_class == 3
    padded = (*weight_table(2.0), *[0.0] * 5)  # zeros at the end are no weights
    assert Rule(NOTHING, (Band(0, 2),), padded).weight_table == padded
    with pytest.raises(ValueError, match="a weight for class 3 of bands"):
        Rule(NOTHING, (Band(0, 3),), padded)
    for bad in (0, 256):
        with pytest.raises(ValueError, match=r"weight_class must be in 1\.\.255"):
            Band(0, bad)


def test_every_class_weighs_its_losses_and_survives_a_state(backend):
    engine, resumed = (
        pe.PruneEngine(N, EveryClass(), num_epochs=3, backend=backend) for _ in range(2)
    )
    engine.observe(losses_at(range(N)), torch.arange(N))
    engine.end_epoch()
    want = float32([1.0, *EVERY_WEIGHT] * 2)
    assert_bitwise(engine.plan.weights, want, "weights of the plan")
    resumed.load_state_dict(through_disk(engine.state_dict()))
    for each in (engine, resumed):
        got = each.observe(torch.ones(N), torch.arange(N), reduction="none")
        assert_bitwise(got, want, "weighed losses")


@dataclass(frozen=True)
class HighClass(pe.policies.Policy):
    """Half of the samples stay, of class 255."""

    divisible = True

    def rule(self, buffer, progress, memory=None):
        nothing = Rule.keep_all(buffer.device).thresholds
        table = weight_table(*[7.0] * 253, 2.0)
        return Rule(nothing, (Band(32768, 255, 1, 2),), table, unseen_band=0)


@pytest.mark.parametrize("size", [1, 2])
def test_a_shards_plan_has_the_high_classes_too(size):
    n = 9_000

    def train(rank: int) -> list[tuple[int, float]]:
        engine = pe.PruneEngine(n, HighClass(), num_epochs=2, seed=3, shard_scores=size > 1)
        seen = []
        for batch in batches(engine.sampler(align=100), 100 // size):
            weights = engine.observe(torch.ones(len(batch)), torch.tensor(batch), reduction="none")
            seen += zip(batch, weights.tolist(), strict=True)
        return seen

    found = dict(pair for rank in Ranks(size).run(train) for pair in rank)
    stay = [i for i, drawn in enumerate(oracle.draws(n, 3, 0)) if drawn >= 32768]
    assert set(found) <= set(stay)
    assert len(found) == len(stay) // 100 * 100
    assert set(found.values()) == {2.0}


@pytest.mark.parametrize("fixed", [False, True])
def test_bands_of_high_classes_are_planned_as_the_oracle_says(backend, fixed):
    fates = [
        oracle.Fate(30000, 255, Fraction(1, 2)),
        oracle.Fate(0, 8, Fraction(1)),
        oracle.Fate(60000, 128, Fraction(1, 3)),
    ]
    old = [oracle.record_of(oracle.f32(k / 100), 0) for k in range(300)]
    bands = tuple(Band(fate.cut, fate.weight_class, int(fate.keep * 6), 6) for fate in fates)
    rule = Rule(float32([1.0, 2.0]), bands, weight_table(*EVERY_WEIGHT), fixed)
    got, _ = pe.ops.plan(torch.tensor(old), rule, seed=1, epoch=2, backend=backend)
    want, _ = oracle.plan(old, [1.0, 2.0], fates, fixed=fixed, unseen_band=-1, seed=1, epoch=2)
    assert got.tolist() == want
    assert {255, 8, 128} <= set(want)


@pytest.mark.parametrize(("epochs", "words"), _levels.written()["missed"].items())
def test_the_written_weights_of_who_missed_epochs(epochs, words):
    table = weights_on(pe.policies.RePB().weights(int(epochs)), torch.device("cpu"))
    bits = [f"{word & 0xFFFFFFFF:08x}" for word in table.view(torch.int32).tolist()]
    assert bits[: len(words)] == words
    assert not table[int(epochs) + 1 :].any()
