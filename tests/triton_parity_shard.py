# SPDX-License-Identifier: Apache-2.0
"""Triton: a shard's plan, shuffle and draws far into a data set, the largest of a pool.

Run as triton_parity.py is.
"""

from __future__ import annotations

import os

import pytest
import torch
from _assertions import assert_bitwise
from _cases import MAX_EPOCH, MAX_SEED, mean_rule, records_of

import prune_engine as pe
from prune_engine.ops.rule import TopRule

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("first", [4096, 2**32 + 4096, 2**35 - 4096, 2**35, 2**61])
def test_plan_of_a_shard_equals_the_reference(first):
    old, rule = records_of([float(i % 3) for i in range(4500)]), mean_rule(1.0, 32768)
    at = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1, "first": first}
    there = pe.policies.Rule(rule.thresholds.to(DEVICE), rule.bands, rule.weight_table)
    got = pe.ops.plan(old.to(DEVICE), there, backend="triton", **at)
    want = pe.ops.plan(old, rule, backend="reference", **at)
    assert_bitwise(got[0], want[0], "weight_class")
    assert_bitwise(got[1], want[1], "block_offsets")
    near = pe.ops.plan(old, rule, backend="reference", **{**at, "first": 0})
    assert not torch.equal(near[0], want[0]), "control: the draws of other samples"


@pytest.mark.parametrize("n", [1, 2, 5, 700, 65_537, 2**31, 2**32 + 1, 10**10, 2**62])
@pytest.mark.parametrize("inverse", [False, True])
def test_shuffle_equals_the_reference(n, inverse):
    places = torch.tensor([*range(min(n, 600)), n - 1, n // 2, n // 3])
    work = pe.ops.unshuffle if inverse else pe.ops.shuffle
    at = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1}
    got = work(places.to(DEVICE), n, backend="triton", **at)
    assert_bitwise(got, work(places, n, backend="reference", **at), "places")


def test_shuffle_out_of_range():
    outside = torch.tensor([-1, 10, 2**62], device=DEVICE)
    assert pe.ops.shuffle(outside, 10, seed=0, epoch=0, backend="triton").tolist() == [-1] * 3


def test_draw_equals_the_reference():
    indices = torch.tensor([*range(600), 2**32 - 1, 2**34, 2**40 + 3, 2**62])
    at = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1, "stream": 2**28 - 1}
    got = pe.ops.draw(indices.to(DEVICE), backend="triton", **at)
    assert_bitwise(got, pe.ops.draw(indices, backend="reference", **at), "draws")
    outside = torch.tensor([-1, 2**62 + 1], device=DEVICE)
    assert pe.ops.draw(outside, seed=0, epoch=0, backend="triton").tolist() == [-1] * 2


@pytest.mark.parametrize("count", [1, 5000])
def test_plan_top_equals_the_reference(count):
    old = records_of([float(i % 3) for i in range(count)]) * (torch.arange(count) % 7 != 0)
    at = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1}
    for k in (0, count // 3, count // 2, count):
        rule = TopRule(k, cut=20_000)
        got = pe.ops.plan(old.to(DEVICE), rule, backend="triton", **at)
        want = pe.ops.plan(old, rule, backend="reference", **at)
        assert_bitwise(got[0], want[0], "weight_class")
        assert_bitwise(got[1], want[1], "block_offsets")
