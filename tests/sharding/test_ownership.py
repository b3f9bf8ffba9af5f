# SPDX-License-Identifier: Apache-2.0
"""Index arithmetic of divided scores, past 2^31 and 2^32: nothing of that size is allocated."""

from __future__ import annotations

from itertools import pairwise

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import MAX_EPOCH, MAX_SEED, float32, int64, mean_rule
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.epoch.exact_sum import exact_mean, mean_as_sum, sum_in_units
from prune_engine.sharding.layout import (
    edges,
    owned,
    owner,
    shard_cost,
    shared,
)

HUGE = [10**9, 2**31 - 1, 2**31, 2**32 + 1, 10**10, 2**40 + 4097, 2**62]
SIZES = st.sampled_from([*HUGE, 0, 1, 4095, 4096, 4097]) | st.integers(0, 2**62)
WORLDS = st.sampled_from([1, 2, 3, 4, 7, 64, 1000])


@given(n=SIZES, size=WORLDS)
def test_ranges_follow_one_another_cover_everything_and_are_equal_to_a_block(n, size):
    ranges = [owned(n, rank, size) for rank in (0, size // 2, size - 1)]
    assert ranges[0].start == 0
    assert ranges[-1].stop == n
    limits = edges(n, size)
    assert limits == sorted(limits)
    sizes = [stop - start for start, stop in pairwise(limits)]
    assert max(sizes) - min(sizes) <= 2 * 4096
    assert all(start % 4096 == 0 for start in limits[:-1] if start < n)


@given(n=SIZES.filter(bool), size=WORLDS, share=st.floats(0, 1))
def test_the_owner_by_arithmetic_is_the_rank_whose_range_has_the_sample(n, size, share):
    near = [0, n - 1, int(share * (n - 1)), n // size]
    near += [limit + step for limit in edges(n, size) for step in (-1, 0) if size < 9]
    for index in near:
        if 0 <= index < n:
            assert index in owned(n, owner(index, n, size), size)


def test_control_an_owner_that_ignores_whole_blocks_is_another():
    n, size = 10**10, 3
    edge = owned(n, 0, size).stop
    assert owner(edge, n, size) == 1
    assert edge * size // n == 0


@given(kept=st.integers(0, 10**10), size=WORLDS, start=st.integers(0, 10**10))
def test_every_position_is_one_ranks(kept, size, start):
    start = min(start, kept)
    ranges = [shared(kept, start, rank, size) for rank in range(size)]
    assert sum(map(len, ranges)) == kept - start
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    for position in (start, start + size, kept - 1):
        if start <= position < kept:
            assert [position in mine for mine in ranges].count(True) == 1


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="num_samples must be in"):
        owned(2**62 + 1, 0, 1)
    with pytest.raises(ValueError, match="0 <= rank < size"):
        owned(10, 2, 2)
    with pytest.raises(IndexError, match=r"index must be in 0\.\.9"):
        owner(10, 10, 2)
    with pytest.raises(ValueError, match="divide them among"):
        pe.sharding.ShardedBuffer(2**33, (0, 2))
    with pytest.raises(ValueError, match="multiple of 4096"):
        pe.ops.plan(
            int64([0]), pe.policies.Rule.keep_all(torch.device("cpu")), seed=0, epoch=0, first=8
        )


# --- draws, means and shuffles of samples that no device holds ------------------------------------


def global_draws(first: int, count: int, seed: int, epoch: int) -> list[int]:
    """Return the oracle's draws of neighbouring samples, anywhere."""
    out: list[int] = []
    for group in range(first // 8, (first + count + 7) // 8):
        words = oracle.philox([*oracle.halves(group), 0, epoch], oracle.halves(seed))
        out += [half for word in words for half in (word % 65536, word // 65536)]
    return out[:count]


FIRSTS = [0, 4096, 2**31, 2**32 + 4096, 10**10 // 4096 * 4096, 2**35 - 4096, 2**35, 2**61]


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("name", ["reference", "cpu", "emulated"])
def test_a_shards_plan_draws_as_the_data_set_does(first, name, emulated):
    size, seed, epoch = 5000, MAX_SEED - 7, MAX_EPOCH - 1
    old = int64([oracle.record_of(float(i % 2), 0) for i in range(size)])
    rule = mean_rule(1.0, 32768)
    if name == "emulated":
        classes = torch.empty(size, dtype=torch.uint8)
        cuts = [band.cut for band in rule.bands]
        kinds = [band.weight_class for band in rule.bands]
        plain = (cuts, kinds, [1, 1], 0, rule.unseen_band, seed, epoch, classes, first)
        emulated.plan(old, rule.thresholds, *plain)
    else:
        classes, _ = pe.ops.plan(old, rule, seed=seed, epoch=epoch, first=first, backend=name)
    drawn = global_draws(first, size, seed, epoch)
    low = [i % 2 == 0 and drawn[i] < rule.bands[0].cut for i in range(size)]
    assert_bitwise((classes == 0), low, "dropped")
    if first:
        near, _ = pe.ops.plan(old, rule, seed=seed, epoch=epoch, backend="cpu")
        assert not torch.equal(near, classes), "control: the draws of other samples"


def test_fixed_counts_of_a_shard_are_refused():
    rule = pe.InfoBatch(0.5, delta=1.0, sampling="fixed").rule(
        pe.epoch.ScoreBuffer(4), pe.policies.Progress(0, 0, None)
    )
    with pytest.raises(ValueError, match="fixed counts are of the whole data set"):
        pe.ops.plan(int64([0]), rule, seed=0, epoch=0, first=4096)


@given(
    scores=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6
    ),
    times=st.sampled_from([1, 3, 10**9, 10**10]),
)
def test_the_mean_of_ten_thousand_million_scores_is_exact(scores, times):
    one = oracle.sum_of_scores(scores)
    units, seen = sum_in_units(one) * times, one[9] * times
    got = pe.ops.mean_threshold(int64(mean_as_sum(units, seen)))
    assert_bitwise(got, float32([oracle.mean_threshold(one)]), "threshold")
    assert exact_mean(units, seen) == float(oracle.value_of(one) / one[9])


def test_control_the_limbs_of_so_many_scores_do_not_fit():
    many = [word * 10**10 for word in oracle.sum_of_scores([oracle.FLT_MAX])]
    assert max(many) >= 2**63
    assert max(mean_as_sum(sum_in_units(many), many[9])) < 2**32
    assert mean_as_sum(0, 0) == [0] * 10
    assert pe.ops.mean_threshold(int64([0] * 10)).item() == -oracle.FLT_MAX


# --- what it costs, on paper ---------------------------------------------------------------------


def test_a_world_of_one_receives_nothing_and_more_ranks_hold_less():
    alone, many = shard_cost(10**9, 1), shard_cost(10**9, 100)
    assert (alone.wire, alone.whole_wire) == (0, 0)
    assert many.owned <= alone.owned / 100 + 9 * 4096
    assert 12 * many.peak < alone.whole


@pytest.mark.parametrize("first", FIRSTS)
def test_the_host_module_has_the_same_numbers(first):
    from prune_engine import host  # not in every wheel

    seed, epoch, n = MAX_SEED - 7, MAX_EPOCH - 1, first + 9
    drawn = host.keep_draw(range(first, n), seed=seed, epoch=epoch)
    assert_bitwise(drawn, global_draws(first, 9, seed, epoch), "draws")
    pi = oracle.Bijection(n, seed, epoch)
    positions = [0, n // 2, n - 1]
    found = host.bijection(positions, n, seed=seed, epoch=epoch)
    assert_bitwise(found, [pi(p) for p in positions], "ranks")
