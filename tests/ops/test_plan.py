# SPDX-License-Identifier: Apache-2.0
"""plan: the same weight classes as the oracle on every backend, for every kind of rule."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    MAX_EPOCH,
    MAX_SEED,
    epochs,
    float32,
    floats,
    int64,
    mean_rule,
    one_band,
    records,
    records_of,
    rule_of,
    salts,
    seeds,
    sizes,
    threads,
    uint8,
)
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native


def random_fates(rng: random.Random, count: int, den: int) -> list[oracle.Fate]:
    """Return bands with cuts at both ends of the range and everywhere between."""
    return [
        oracle.Fate(
            rng.choice([0, 1, 16384, 32768, 65535, rng.randrange(65536)]),
            rng.randrange(1, 256),
            Fraction(rng.choice([0, den, rng.randint(0, den)]), den),
        )
        for _ in range(count)
    ]


@given(
    num_samples=sizes,
    num_thresholds=st.sampled_from([0, 1, 1, 2, 2, 5]),
    fixed=st.booleans(),
    den=st.sampled_from([1, 2, 3, 1000, 65536, 2**31 - 1]),
    seed=seeds,
    epoch=epochs,
    salt=salts,
    thread_count=threads,
)
def test_plan_equals_oracle(
    backend,
    num_threads,
    num_samples,
    num_thresholds,
    fixed,
    den,
    seed,
    epoch,
    salt,
    thread_count,
):
    rng = random.Random(salt)
    old = records(rng, num_samples, rng.randrange(5), unseen=rng.choice([0.0, 0.2, 1.0]))
    seen = [oracle.score_of(r % oracle.WORD) for r in old if r]
    # A threshold that is itself a score is where < and <= part.
    thresholds = sorted(rng.choice([*seen, *floats(rng, 3)]) for _ in range(num_thresholds))
    own = num_thresholds < 5 and rng.random() < 0.3  # a band of the never seen alone
    fates = random_fates(rng, num_thresholds + 1 + own, den)
    unseen = num_thresholds + 1 if own else rng.randint(-1, num_thresholds)
    rest = {"fixed": fixed, "unseen_band": unseen}

    classes, offsets = oracle.plan(old, thresholds, fates, **rest, seed=seed, epoch=epoch)
    rule = rule_of(thresholds, fates, **rest)
    with num_threads(thread_count):
        got = pe.ops.plan(int64(old), rule, seed=seed, epoch=epoch, backend=backend)
    assert_bitwise(got[0], uint8(classes), "weight_class")
    assert_bitwise(got[1], int64(offsets), "block_offsets")


@pytest.mark.parametrize("fixed", [False, True])
def test_a_large_plan_is_the_same_at_any_thread_count(num_threads, fixed):
    generator = torch.Generator().manual_seed(3)
    keys = torch.randint(0x00800000, 0xFF7FFFFF, (400_003,), generator=generator)
    old = torch.where(keys % 5 == 0, 0, (1 << 32) | keys)
    fates = [oracle.Fate(40000, 2, Fraction(1, 3)), oracle.Fate(9, 1, Fraction(2, 3))]
    rule = rule_of([1.0], fates, fixed=fixed, unseen_band=1)
    want = pe.ops.plan(old, rule, seed=11, epoch=4, backend="reference")
    for count in (1, 2, 4):
        with num_threads(count):
            got = pe.ops.plan(old, rule, seed=11, epoch=4, backend="cpu")
        assert_bitwise(got[0], want[0], f"weight_class with {count} threads")
        assert_bitwise(got[1], want[1], f"block_offsets with {count} threads")
    another = pe.ops.plan(old, rule, seed=12, epoch=4, backend="cpu")
    assert not torch.equal(another[0], want[0]), "control: another seed gives another plan"


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("thresholds", [[], [0.5], [-1.0, 0.5, 0.5, 2.0]])
def test_a_band_of_the_never_seen_alone_is_nobody_elses(backend, fixed, thresholds):
    old = records(random.Random(2), 9000, 1, unseen=0.3)
    old[:2] = [oracle.record_of(oracle.FLT_MAX, 1), 0]
    fates = [oracle.Fate(20000, 2 + b, Fraction(1, 3)) for b in range(len(thresholds) + 1)]
    own = oracle.Fate(50000, 9, Fraction(1, 4))
    rule = rule_of(thresholds, [*fates, own], fixed=fixed, unseen_band=len(fates))
    plain = rule_of(thresholds, fates, fixed=fixed)
    seen = int64(old) != 0
    got, offsets = pe.ops.plan(int64(old), rule, seed=5, epoch=3, backend=backend)
    want, _ = pe.ops.plan(int64(old), plain, seed=5, epoch=3, backend=backend)
    assert_bitwise(got[seen], want[seen], "those of a score")
    assert set(got[~seen].tolist()) == {0, 9} and bool((want[~seen] == 1).all())
    count, kept = int((~seen).sum()), int((got[~seen] == 9).sum())
    assert kept == count // 4 if fixed else abs(kept - count * 15536 / 65536) < 4 * count**0.5
    assert offsets[-1] == int((got > 0).sum())
    assert rule.thresholds.tolist() == thresholds, "the rule's own are as they were"


def test_bands_that_do_not_fit_the_thresholds_are_refused():
    edges, band = float32([0.5]), pe.policies.Band(9, 1)
    table = pe.policies.weight_table()
    for count, unseen, words in (
        (1, -1, "bands must have 2 entries, or 3 with unseen_band 2"),
        (3, -1, "bands must have 2 entries, or 3 with unseen_band 2"),
        (3, 1, "bands must have 2 entries, or 3 with unseen_band 2"),
        (2, 2, "bands must have 3 entries"),
        (2, 3, "unseen_band must be in -1"),
        (2, -2, "unseen_band must be in -1"),
    ):
        with pytest.raises(ValueError, match=words):
            pe.policies.Rule(edges, (band,) * count, table, unseen_band=unseen)
    five = float32([1.0, 2.0, 3.0, 4.0, 5.0])
    with pytest.raises(ValueError, match="at most 6"):
        pe.policies.Rule(five, (band,) * 7, table, unseen_band=6)
    pe.policies.Rule(five[:4], (band,) * 6, table, unseen_band=5)  # control


@given(num_samples=st.integers(1, 900), seed=seeds, epoch=epochs, salt=salts)
def test_fixed_counts_are_exact(backend, num_samples, seed, epoch, salt):
    rng = random.Random(salt)
    low = rng.randint(0, num_samples)
    old = records_of([0.0] * low + [2.0] * (num_samples - low))
    keep = Fraction(rng.randint(0, 100), 100)
    fates = [oracle.Fate(0, 2, keep), oracle.Fate(0, 1, Fraction(1))]
    classes, offsets = pe.ops.plan(
        old, rule_of([1.0], fates, fixed=True), seed=seed, epoch=epoch, backend=backend
    )
    assert int((classes == 2).sum()) == low * keep.numerator // keep.denominator
    assert bool((classes[low:] == 1).all())
    assert offsets[-1] == classes.ne(0).sum()


def test_fixed_counts_break_ties_towards_the_smaller_index(backend):
    # 60,000 draws of 16 bits: at some count the last one kept equals the first one left out.
    count = 60_000
    drawn = oracle.draws(count, 1, 2)
    falling = sorted(drawn, reverse=True)
    kept = next(k for k in range(20_000, count) if falling[k - 1] == falling[k])
    tied = [i for i in range(count) if drawn[i] == falling[kept]]
    fates = [oracle.Fate(0, 1, Fraction(kept, count))]
    classes, _ = pe.ops.plan(
        records_of([0.5] * count), rule_of([], fates, fixed=True), seed=1, epoch=2, backend=backend
    )
    fate_of_tied = classes[tied].tolist()
    assert len(set(fate_of_tied)) == 2, "control: the tie is broken inside this group"
    assert fate_of_tied == sorted(fate_of_tied, reverse=True)
    assert int(classes.ne(0).sum()) == kept


@given(seed=seeds, epoch=epochs, cut=st.integers(0, 65535))
def test_a_decision_depends_on_nothing_but_its_own_sample(backend, seed, epoch, cut):
    values = floats(random.Random(seed), 300)
    rule = mean_rule(0.75, cut)
    whole, _ = pe.ops.plan(records_of(values), rule, seed=seed, epoch=epoch, backend=backend)
    part, _ = pe.ops.plan(records_of(values[:77]), rule, seed=seed, epoch=epoch, backend=backend)
    later, _ = pe.ops.plan(records_of(values, 9), rule, seed=seed, epoch=epoch, backend=backend)
    assert_bitwise(part, whole[:77], "plan of a prefix")
    assert_bitwise(later, whole, "plan of the same scores recorded in a later epoch")


def test_a_plan_can_be_written_over_an_old_one(backend):
    old, rule = records_of([0.0, 2.0] * 3000), mean_rule(1.0, 30000)
    want, offsets = pe.ops.plan(old, rule, seed=1, epoch=1, backend=backend)
    out = torch.full((6000,), 7, dtype=torch.uint8)
    got = pe.ops.plan(old, rule, seed=1, epoch=1, out=out, backend=backend)
    assert got[0].data_ptr() == out.data_ptr()
    assert_bitwise(out, want, "weight_class")
    assert_bitwise(got[1], offsets, "block_offsets")


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_threshold_of_either_zero_reads_as_zero(backend, zero):
    old = records_of([-0.0, 0.0, -(2.0**-149), 2.0**-149])
    fates = [oracle.Fate(0, 2, Fraction(1)), oracle.Fate(0, 3, Fraction(1))]
    classes, _ = pe.ops.plan(old, rule_of([zero], fates), seed=0, epoch=0, backend=backend)
    assert_bitwise(classes, [3, 3, 2, 3], "weight_class")


def test_equal_thresholds_leave_an_empty_band_between_them(backend):
    fates = [oracle.Fate(0, c, Fraction(1)) for c in (2, 3, 4)]
    rule = rule_of([1.0, 1.0], fates)
    classes, _ = pe.ops.plan(records_of([0.5, 1.0, 2.0]), rule, seed=0, epoch=0, backend=backend)
    assert_bitwise(classes, [2, 4, 4], "weight_class")


@pytest.mark.parametrize("value", [0.1, 0.0, -3.7, 3e38])
def test_constant_scores_prune_nobody(backend, value):
    old = records_of([value] * 1000)
    audited = pe.ops.audit(old, uint8([1] * 1000), epoch=0, backend=backend)
    threshold = pe.ops.mean_threshold(audited[:10].contiguous(), backend=backend)
    rule = replace(mean_rule(0.0, 65535), thresholds=threshold)
    classes, offsets = pe.ops.plan(old, rule, seed=0, epoch=1, backend=backend)
    assert bool((classes == 1).all())
    above = replace(rule, thresholds=torch.nextafter(float32([value]), float32([torch.inf])))
    dropped, _ = pe.ops.plan(old, above, seed=0, epoch=1, backend=backend)
    assert not dropped.all(), "control: one ulp higher and they are all low"
    assert offsets[-1] == 1000


def test_edge_case_01_no_samples(backend):
    for rule in (mean_rule(0.5, 32768), replace(mean_rule(0.5, 32768), fixed=True)):
        classes, offsets = pe.ops.plan(int64([]), rule, seed=0, epoch=0, backend=backend)
        assert_bitwise(classes, uint8([]), "weight_class")
        assert_bitwise(offsets, int64([0]), "block_offsets")


def test_edge_case_05_nothing_kept(backend):
    rule = rule_of([], [oracle.Fate(65535, 1, Fraction(0))], fixed=True)
    classes, offsets = pe.ops.plan(records_of([1.0] * 5000), rule, seed=0, epoch=0, backend=backend)
    assert not classes.any()
    assert_bitwise(offsets, int64([0, 0, 0]), "block_offsets")


@pytest.mark.parametrize("fixed", [False, True])
def test_edge_case_06_nothing_seen_keeps_all(backend, fixed):
    rule = replace(mean_rule(-oracle.FLT_MAX, 65535), fixed=fixed)
    classes, offsets = pe.ops.plan(int64([0] * 5000), rule, seed=5, epoch=0, backend=backend)
    assert bool((classes == 1).all())
    assert_bitwise(offsets, int64([0, 4096, 5000]), "block_offsets")


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(4),
        [0, 0, 0, 0],
    ],
)
def test_edge_case_07_wrong_records_are_named(backend, bad):
    with pytest.raises((TypeError, ValueError), match="records"):
        pe.ops.plan(bad, one_band(1), seed=0, epoch=0, backend=backend)


@pytest.mark.parametrize(
    "bad", [torch.zeros(4), uint8([0] * 3), uint8([0] * 8)[::2], uint8([0] * 4)[None], [0] * 4]
)
def test_edge_case_07_wrong_out_is_named(backend, bad):
    with pytest.raises((TypeError, ValueError), match=r"\bout\b"):
        pe.ops.plan(records_of([1.0] * 4), one_band(1), seed=0, epoch=0, out=bad, backend=backend)


def test_edge_case_07_thresholds_on_another_device_are_named(backend):
    rule = replace(mean_rule(0.5, 1), thresholds=torch.zeros(1, device="meta"))
    with pytest.raises((TypeError, ValueError), match="thresholds"):
        pe.ops.plan(records_of([1.0]), rule, seed=0, epoch=0, backend=backend)


def test_edge_case_07_non_contiguous_records_are_converted(backend):
    old = records_of([0.0, 9.0] * 20)[::2]
    classes, _ = pe.ops.plan(old, mean_rule(1.0, 30000), seed=3, epoch=1, backend=backend)
    want, _ = pe.ops.plan(
        records_of([0.0] * 20), mean_rule(1.0, 30000), seed=3, epoch=1, backend=backend
    )
    assert_bitwise(classes, want, "weight_class")


def test_edge_case_08_too_many_samples_names_sharding(backend):
    # On meta, so that an implementation without the check does not ask for 16 GiB.
    too_many = torch.zeros(2**31, dtype=torch.int64, device="meta")
    rule = replace(one_band(1), thresholds=torch.zeros(0, device="meta"))
    with pytest.raises(ValueError, match="shard"):
        pe.ops.plan(too_many, rule, seed=0, epoch=0, backend=backend)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", MAX_SEED + 1), ("epoch", -1), ("epoch", MAX_EPOCH + 1)],
)
def test_edge_case_10_seed_and_epoch_out_of_range(backend, name, value):
    with pytest.raises(ValueError, match=name):
        pe.ops.plan(
            records_of([1.0]),
            one_band(1),
            **({"seed": 0, "epoch": 0} | {name: value}),
            backend=backend,
        )


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("count", [0, 5, 5000])
def test_opcheck(count, fixed):
    op = native.plan
    old = int64(records(random.Random(count), count, 2))
    out = torch.empty(count, dtype=torch.uint8).fill_(9)
    args = (old, float32([0.5]), [30000, 0], [2, 1], [1, 2], 2 if fixed else 0, -1, 7, 3, out)
    torch.library.opcheck(op, args)
    assert op(*args).shape == (-(-count // 4096) + 1,)
    assert not out.eq(9).any(), "every class is written"
