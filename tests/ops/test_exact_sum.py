# SPDX-License-Identifier: Apache-2.0
"""The exact sum on every backend that runs here: vectors, replacements, losses of any scale."""

from __future__ import annotations

import random
from typing import Any

import _sums
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import float32, floats, int64, salts
from _runs import losses_at
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends
from prune_engine.epoch.exact_sum import exact_mean, mean_as_sum, sum_in_units

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module", params=["reference", "cpu", "emulated"])
def kernels(request: pytest.FixtureRequest) -> Any:
    """Return the operators of a backend; those of cuda are emulated."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    return backends.load(request.param)


def test_every_vector_has_its_bits(kernels):
    assert _sums.check_vectors(kernels) == 30


@settings(max_examples=25)
@given(salt=salts, batches=st.integers(1, 6))
def test_replacements_in_any_order_leave_the_sum_made_anew(kernels, salt, batches):
    _sums.check_replacements(kernels, random.Random(salt), batches)


def test_losses_of_any_scale_keep_the_same_sets(kernels):
    _sums.check_scales(kernels, losses_at(range(5000)))


@pytest.mark.parametrize("count", [1023, 1024, 1025, 5000])
@pytest.mark.parametrize("exponents", [1, 40, 254])
def test_many_scores_are_summed_alike_by_every_backend(kernels, count, exponents):
    # One group of exponents, two, or all of them in each block of 1024.
    generator = torch.Generator().manual_seed(count + exponents)
    low, high = 254 - exponents, 254
    sign = torch.randint(2, (count,), generator=generator) << 31
    exponent = torch.randint(low, high + 1, (count,), generator=generator) << 23
    bits = sign | exponent | torch.randint(1 << 23, (count,), generator=generator)
    scores = ((bits ^ 1 << 31) - (1 << 31)).to(torch.int32).view(torch.float32)
    state = _sums.State(count)
    state.observe(kernels, scores, list(range(count)))
    state.records[::7] = 0
    got = kernels.audit(state.records, state.tensors[4], 0)[:10]
    assert_bitwise(got, int64(oracle.sum_of_records(state.records.tolist())), "score_sum")


def test_ranks_and_shards_add_as_the_vectors_say():
    row = _sums.VECTORS["ranks"]
    units = sum(map(sum_in_units, row["parts"]))
    assert (units, sum(part[9] for part in row["parts"])) == (int(row["units"]), row["seen"])
    score_sum = int64(mean_as_sum(units, row["seen"]))
    assert score_sum.tolist() == row["as_sum"]
    assert _sums.bits_of_threshold(backends.load("cpu"), score_sum) == row["threshold"]


def test_the_mean_of_every_vector_is_the_nearest_float64():
    for row in _sums.VECTORS["sums"]:
        mean = exact_mean(sum_in_units(row["score_sum"]), row["score_sum"][9])
        if row["mean"] is None:
            assert mean != mean
        else:
            assert mean.hex() == row["mean"], row["name"]


@given(scores=st.lists(finite, min_size=1, max_size=20))
def test_score_mean_is_the_float64_nearest_to_the_rational_mean(scores):
    buffer = pe.epoch.ScoreBuffer(len(scores))
    buffer.observe(float32(scores), torch.arange(len(scores)))
    total = oracle.value_of(oracle.sum_of_scores(scores))
    assert buffer.mean() == float(total / len(scores))


@given(salt=salts, count=st.sampled_from([0, 1, 7, 1024, 1500]), num_threads=st.integers(1, 3))
def test_the_host_module_has_the_same_threshold(salt, count, num_threads):
    from prune_engine import host  # not in every wheel

    rng = random.Random(salt)
    scores = [rng.choice([torch.nan, *floats(rng, 2), _sums.any_float(rng)]) for _ in range(count)]
    seen = [score for score in scores if score == score]
    got = host.mean_threshold(float32(scores).numpy(), num_threads=num_threads)
    assert oracle.bits_of(float(got)) == oracle.bits_of(
        oracle.mean_threshold(oracle.sum_of_scores(seen))
    )


def test_control_a_sum_of_steps_of_2_to_the_minus_40_keeps_other_sets():
    # What scores were summed as before: tiny ones all alike, large ones all the largest.
    kernels, losses = backends.load("reference"), losses_at(range(5000))

    class Stepped:
        observe, plan = staticmethod(kernels.observe), staticmethod(kernels.plan)

        def mean_threshold(self, score_sum):
            mean = exact_mean(sum_in_units(score_sum.tolist()), int(score_sum[9]))
            return float32([min(round(mean * 2**40) / 2**40, 2.0**22)])

    _sums.check_scales(kernels, losses)
    with pytest.raises(AssertionError, match=r"2\^-100"):
        _sums.check_scales(Stepped(), losses)
