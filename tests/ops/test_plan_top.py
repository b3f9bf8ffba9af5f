# SPDX-License-Identifier: Apache-2.0
"""plan with a TopRule: the largest scores of a random pool, ties by a draw, never by the order."""

from __future__ import annotations

import random
from typing import Any

import oracle
import pytest
import torch
from _assertions import assert_bitwise, chi_square_z
from _cases import MAX_EPOCH, MAX_SEED, int64, records, uint8
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import native
from prune_engine.ops.rule import TopRule

KEY = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1}


def contest(old: list[int], k: int, cut: int, seed: int, epoch: int) -> list[int]:
    """Return who stays, as the semantics say it, one sample at a time."""

    def tie(index: int) -> int:
        counter = [index // 4 % 2**32, index // 2**34, 16 * 2**27 + 15, epoch]
        return oracle.philox(counter, oracle.halves(seed))[index % 4] // 2

    draws = oracle.draws(len(old), seed, epoch)
    pool = [i for i, drawn in enumerate(draws) if drawn >= cut]
    first = sorted(pool, key=lambda i: (old[i] != 0, -(old[i] % 2**32), -tie(i), i))
    stays = set(first[:k])
    return [int(i in stays) for i in range(len(old))]


def few_scores(rng: random.Random, count: int) -> list[int]:
    """Return records of three scores, and some of samples never seen."""
    return [
        rng.choice([0, 1, 2, 3]) and oracle.record_of(rng.choice([-1, 0.5, 2]), 3)
        for _ in range(count)
    ]


@settings(max_examples=40)
@given(
    count=st.sampled_from([1, 7, 300, 4096, 5001]),
    share=st.sampled_from([0, 0.2, 0.5, 1, 3]),
    cut=st.sampled_from([0, 1, 20_000, 32_768, 65_535]),
    ties=st.booleans(),
    salt=st.integers(0, 10**6),
)
def test_it_is_the_oracles(backend, count, share, cut, ties, salt):
    rng = random.Random(salt)
    old = few_scores(rng, count) if ties else records(rng, count, 3)
    rule, key = TopRule(int(share * count), cut), {"seed": salt, "epoch": salt % 99}
    classes, offsets = pe.ops.plan(int64(old), rule, **key, backend=backend)
    want = contest(old, rule.k, cut, **key)
    assert_bitwise(classes, uint8(want), "weight_class")
    assert_bitwise(offsets, int64(oracle.block_offsets(want)), "block_offsets")


def cases() -> dict[str, torch.Tensor]:
    """Return records of more samples than a guess is worth: all alike, few scores, hostile."""
    generator = torch.Generator().manual_seed(1)
    n = 300_001
    scores = torch.rand(n, generator=generator)
    coarse = (scores * 4).floor()
    unseen = torch.rand(n, generator=generator) < 0.3
    # The samples that guess say nothing of the others.
    misleading = scores.clone()
    misleading[torch.arange(16384) * n // 16384] = 9.0
    made = {"scores": scores, "coarse": coarse, "equal": scores * 0, "misleading": misleading}
    found = {}
    for name, values in made.items():
        buffer = pe.epoch.ScoreBuffer(n)
        buffer.observe(values, torch.arange(n))
        found[name] = buffer.records
    found["unseen"] = scores.long() * 0
    found["some unseen"] = torch.where(unseen, 0, found["scores"])
    return found


@pytest.mark.parametrize(
    "name", ["scores", "coarse", "equal", "misleading", "unseen", "some unseen"]
)
def test_large_ones_are_the_references_at_any_number_of_threads(num_threads, name):
    old = cases()[name]
    for rule in (TopRule(len(old) // 3, 32768), TopRule(len(old) // 2, 32768), TopRule(9, 60_000)):
        want = pe.ops.plan(old, rule, **KEY, backend="reference")
        for count in (1, 3):
            with num_threads(count):
                got = pe.ops.plan(old, rule, **KEY, backend="cpu")
            assert_bitwise(got[0], want[0], f"{name} {rule}")
            assert_bitwise(got[1], want[1], f"{name} {rule}")


def test_ties_are_drawn_and_not_by_the_order_of_the_data_set():
    """Of samples never seen each tenth of the data set keeps as many; control: ties by index."""
    n, draws = 1000, 60
    old, tenth = torch.zeros(n, dtype=torch.int64), torch.arange(n) // 100
    kept, control = torch.zeros(10), torch.zeros(10)
    for epoch in range(draws):
        classes, _ = pe.ops.plan(old, TopRule(300, 32768), seed=5, epoch=epoch)
        assert int(classes.sum()) == 300
        kept += torch.bincount(tenth, classes.double(), minlength=10)
        pool, _ = pe.ops.plan(old, TopRule(n, 32768), seed=5, epoch=epoch)
        first = pe.ops.top(torch.where(pool == 1, 0.0, torch.nan), 300)
        control += torch.bincount(tenth, first.double(), minlength=10)
    expected = [draws * 30.0] * 10
    assert abs(chi_square_z(kept.tolist(), expected, 9)) < 4
    assert chi_square_z(control.tolist(), expected, 9) > 40


@pytest.mark.parametrize("cut", [0, 32768])
@pytest.mark.parametrize("ties", [False, True])
def test_the_emulated_kernels_have_the_bits_of_the_reference(emulated, cut, ties):
    rng = random.Random(3)
    for count in (1, 4096, 9001):
        old = int64(few_scores(rng, count) if ties else records(rng, count, 3))
        for k in (0, 1, count // 3, count):
            got, want = (torch.full((count,), 9, dtype=torch.uint8) for _ in range(2))
            offsets = emulated.plan_top(old, k, cut, *KEY.values(), got)
            expected = backends.load("reference").plan_top(old, k, cut, *KEY.values(), want)
            assert_bitwise(got, want, f"{count} {k}")
            assert_bitwise(offsets, expected, f"{count} {k}")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpu_has_the_bits_of_the_cpu(name):
    if not torch.cuda.is_available():
        pytest.fail("these tests need a GPU, and torch finds none")
    for old in cases().values():
        rule = TopRule(len(old) // 3, 32768)
        got = pe.ops.plan(old.cuda(), rule, **KEY, backend=name)
        want = pe.ops.plan(old, rule, **KEY, backend="cpu")
        assert_bitwise(got[0].cpu(), want[0], "weight_class")
        assert_bitwise(got[1].cpu(), want[1], "block_offsets")


def test_edge_case_01_nothing(backend):
    classes, offsets = pe.ops.plan(int64([]), TopRule(3), **KEY, backend=backend)
    assert classes.shape == (0,)
    assert offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("given_", "error", "match"),
    [
        ({"k": -1}, ValueError, "k must be in"),
        ({"k": 2**31}, ValueError, "k must be in"),
        ({"k": 0.5}, TypeError, "k must be"),
        ({"k": 3, "cut": 65536}, ValueError, "cut must be in"),
        ({"k": 3, "cut": -1}, ValueError, "cut must be in"),
    ],
)
def test_edge_case_10_a_number_out_of_range(given_: dict[str, Any], error, match):
    with pytest.raises(error, match=match):
        TopRule(**given_)


def test_a_part_of_the_scores_is_refused(backend):
    with pytest.raises(ValueError, match="first is above 0"):
        pe.ops.plan(int64([0] * 9), TopRule(3), **KEY, first=4096, backend=backend)


def test_opcheck():
    old, out = torch.zeros(5000, dtype=torch.int64), torch.zeros(5000, dtype=torch.uint8)
    torch.library.opcheck(native.plan_top, (old, 99, 3, 9, 4, out))
