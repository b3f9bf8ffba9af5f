# SPDX-License-Identifier: Apache-2.0
"""audit: the sum recomputed from scratch, and who was seen against who was planned."""

from __future__ import annotations

import random

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    MAX_EPOCH,
    counters,
    epochs,
    float32,
    floats,
    int64,
    records,
    salts,
    sizes,
    threads,
    uint8,
)
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native


def audit(old: list[int], classes: list[int], epoch: int, backend: str) -> torch.Tensor:
    return pe.ops.audit(int64(old), uint8(classes), epoch=epoch, backend=backend)


@given(num_samples=sizes, epoch=epochs, salt=salts, thread_count=threads)
def test_audit_equals_oracle(backend, num_threads, num_samples, epoch, salt, thread_count):
    rng = random.Random(salt)
    old = records(rng, num_samples, epoch, unseen=rng.choice([0.0, 0.3, 1.0]))
    classes = [rng.randrange(3) for _ in range(num_samples)]
    with num_threads(thread_count):
        got = audit(old, classes, epoch, backend)
    assert_bitwise(got, int64(oracle.audit(old, classes, epoch)), "audit")


@given(salt=salts, batches=st.integers(1, 12))
def test_the_incremental_sum_equals_the_recomputed_sum(backend, salt, batches):
    rng = random.Random(salt)
    count = rng.randrange(1, 60)
    state = [int64([0] * count), int64([0] * 10), counters(), int64([0])]
    classes, weights = uint8([1] * count), float32([0.0] + [1.0] * 255)
    last, done = -1, 0
    for epoch in sorted(rng.randrange(4) for _ in range(batches)):
        size = rng.randrange(50)
        pe.ops.observe(
            float32(floats(rng, size, finite=False)),
            int64([rng.randrange(count) for _ in range(size)]),
            **dict(zip(("records", "score_sum", "counters", "step"), state, strict=True)),
            weight_class=classes,
            weight_table=weights,
            epoch=epoch,
            backend=backend,
        )
        last, done = epoch, done + size
        audited = pe.ops.audit(state[0], classes, epoch=last, backend=backend)
        assert_bitwise(audited[:10], state[1], f"sum after {done} samples")
    assert state[2][0] == done


def test_a_sum_that_missed_one_update_is_noticed(backend):
    # Control for the test above: one forgotten limb difference, and the two no longer agree.
    old = [oracle.record_of(0.5, 0), oracle.record_of(1.5, 0)]
    audited = audit(old, [1, 1], 0, backend)
    assert audited[:10].tolist() == oracle.sum_of_scores([0.5, 1.5])
    assert audited[:10].tolist() != oracle.sum_of_scores([0.5, 0.5])


@pytest.mark.parametrize(
    ("seen_in", "weight_class", "want"),
    [
        (2, 1, [1, 0, 0]),
        (2, 7, [1, 0, 0]),
        (1, 1, [0, 1, 0]),
        (3, 1, [0, 1, 0]),
        (None, 2, [0, 1, 0]),
        (2, 0, [0, 0, 1]),
        (1, 0, [0, 0, 0]),
        (None, 0, [0, 0, 0]),
    ],
)
def test_each_sample_is_served_missing_or_extra(backend, seen_in, weight_class, want):
    old = 0 if seen_in is None else oracle.record_of(-1.25, seen_in)
    got = audit([old], [weight_class], 2, backend)
    assert_bitwise(got[9:], [int(seen_in is not None), *want], "seen, served, missing, extra")


def test_limbs_do_not_carry(backend):
    # 300 scores that fill most of a limb: their sum passes 2^32 and must stay where it is.
    score = oracle.from_bits(0x0FFFFFFF)
    low, high = (2**24 - 1) * 2**30 % 2**32, (2**24 - 1) * 2**30 // 2**32
    count = 300
    got = audit([oracle.record_of(score, 0)] * count, [1] * count, 0, backend)
    assert_bitwise(got[:3], [low * count, high * count, 0], "sum")
    negative = audit([oracle.record_of(-(2.0**-149), 0)] * count, [1] * count, 0, backend)
    assert_bitwise(negative[:3], [(2**32 - 1) * count, -count, 0], "sum of negative scores")


def test_a_large_buffer_is_the_same_at_any_thread_count(num_threads):
    generator = torch.Generator().manual_seed(2)
    keys = torch.randint(0x00800000, 0xFF7FFFFF, (300_001,), generator=generator)
    seen_in = torch.randint(0, 4, (300_001,), generator=generator)
    old = torch.where(seen_in == 0, 0, (seen_in << 32) | keys)
    classes = torch.randint(0, 3, (300_001,), generator=generator).to(torch.uint8)
    want = pe.ops.audit(old, classes, epoch=1, backend="reference")
    for count in (1, 2, 4):
        with num_threads(count):
            got = pe.ops.audit(old, classes, epoch=1, backend="cpu")
        assert_bitwise(got, want, f"audit with {count} threads")


def test_edge_case_01_no_samples(backend):
    assert_bitwise(audit([], [], 0, backend), int64([0] * 13), "audit")


def test_edge_case_06_nothing_seen_is_all_missing(backend):
    assert_bitwise(audit([0] * 9, [1] * 9, 0, backend), [0] * 11 + [9, 0], "audit")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("records", float32([0, 0])),
        ("records", int64([0, 0])[None]),
        ("records", [0, 0]),
        ("weight_class", int64([1, 1])),
        ("weight_class", uint8([1, 1, 1])),
        ("weight_class", uint8([1])),
    ],
)
def test_edge_case_07_wrong_argument_is_named(backend, argument, value):
    given = {"records": int64([0, 0]), "weight_class": uint8([1, 1])}
    with pytest.raises((TypeError, ValueError), match=argument):
        pe.ops.audit(**(given | {argument: value}), epoch=0, backend=backend)


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCH + 1])
def test_edge_case_10_epoch_out_of_range(backend, epoch):
    with pytest.raises(ValueError, match="epoch"):
        audit([0], [1], epoch, backend)


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_opcheck(count):
    old = int64(records(random.Random(count), count, 3))
    op = native.audit
    torch.library.opcheck(op, (old, uint8([1] * count), 3))
    assert op(old, uint8([1] * count), 3).shape == (13,)
