# SPDX-License-Identifier: Apache-2.0
"""host: NumPy plans equal the operators' bit for bit; keep needs no plan and says the same."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError, replace

import numpy as np
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import MAX_EPOCH, MAX_SEED, epochs, floats, salts, seeds, sizes
from _philox import PUBLISHED
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import host
from prune_engine.epoch.plan import EpochPlan, make_plan

ratios = st.sampled_from([0.0, 0.1, 0.5, 0.875, 0.99999999]) | st.floats(0, 1, exclude_max=True)
samplings = st.sampled_from(["bernoulli", "fixed"])
# Groups of 8 draws, and the places where 32 bits end.
EDGES = [0, 1, 7, 8, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**35 - 1, 2**35, 2**63 - 2, 2**63 - 1]


def score_array(rng: random.Random, count: int, unseen: float) -> np.ndarray:
    """Return scores with every awkward float, some of them nan."""
    values = np.array(floats(rng, count), dtype=np.float32)
    values[[rng.random() < unseen for _ in range(count)]] = np.nan
    return values


def operators_plan(
    scores: np.ndarray, policy: pe.InfoBatch, seed: int, epoch: int, threshold: float | None
) -> EpochPlan:
    """Observe the scores with the operators and plan with them."""
    buffer = pe.epoch.ScoreBuffer(len(scores))
    seen = np.flatnonzero(~np.isnan(scores))
    buffer.observe(torch.from_numpy(scores[seen]), torch.from_numpy(seen))
    rule = policy.rule(buffer, pe.policies.Progress(epoch, epoch, None))
    if threshold is not None:
        rule = replace(rule, thresholds=torch.tensor([threshold]))
    return make_plan(buffer, rule, seed=seed, epoch=epoch)


def assert_same_plan(got: host.HostPlan, want: EpochPlan) -> None:
    assert_bitwise(np.array([got.threshold]), want.threshold, "threshold")
    assert_bitwise(got.weight_class, want.weight_class, "weight_class")
    assert_bitwise(got.kept, want.kept, "kept")
    assert_bitwise(got.indices, want.indices, "indices")
    assert_bitwise(got.weights, want.weights, "weights")
    assert len(got) == want.num_kept
    assert (got.seed, got.epoch) == (want.seed, want.epoch)


@given(
    count=sizes | st.integers(0, 10_000),
    ratio=ratios,
    sampling=samplings,
    unseen=st.sampled_from([0.0, 0.2, 1.0]),
    given_threshold=st.sampled_from([None, None, 0.0, -0.0, 0.5, -oracle.FLT_MAX]),
    num_threads=st.sampled_from([1, 2, 3]),
    seed=seeds,
    epoch=epochs,
    salt=salts,
)
def test_a_plan_equals_the_operators(
    count, ratio, sampling, unseen, given_threshold, num_threads, seed, epoch, salt
):
    scores = score_array(random.Random(salt), count, unseen)
    before = scores.copy()
    got = host.plan(
        scores,
        prune_ratio=ratio,
        seed=seed,
        epoch=epoch,
        threshold=given_threshold,
        sampling=sampling,
        num_threads=num_threads,
    )
    policy = pe.InfoBatch(prune_ratio=ratio, delta=1.0, sampling=sampling)
    assert_same_plan(got, operators_plan(scores, policy, seed, epoch, given_threshold))
    assert_bitwise(scores, before, "scores, which are the caller's")


def big_plan_is_equal(count: int, sampling: str, threads: list[int]) -> None:
    scores = np.random.default_rng(5).exponential(size=count).astype(np.float32)
    scores[::7] = np.nan
    policy = pe.InfoBatch(prune_ratio=0.3, delta=1.0, sampling=sampling)
    want = operators_plan(scores, policy, 11, 4, None)
    choice = {"prune_ratio": 0.3, "sampling": sampling}
    for num_threads in threads:
        got = host.plan(scores, seed=11, epoch=4, num_threads=num_threads, **choice)
        assert_same_plan(got, want)
        assert_bitwise(
            got.order(range(len(got)), num_threads=num_threads), want.indices, "threaded order"
        )
    another = host.plan(scores, seed=12, epoch=4, **choice)
    assert not np.array_equal(another.weight_class, got.weight_class), "control: another seed"


@pytest.mark.parametrize("sampling", ["bernoulli", "fixed"])
def test_a_plan_of_many_blocks_is_the_same_with_any_number_of_threads(sampling):
    big_plan_is_equal(400_003, sampling, [1, 2, 3, 1024])


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["bernoulli", "fixed"])
def test_a_plan_of_all_of_imagenet_21k_equals_the_operators(sampling):
    big_plan_is_equal(14_197_122, sampling, [1, 2])


@given(count=st.integers(1, 3000), num_threads=st.sampled_from([1, 3]), seed=seeds, salt=salts)
def test_any_positions_in_any_form_are_ordered_alike(count, num_threads, seed, salt):
    rng = random.Random(salt)
    made = host.plan(np.zeros(count, np.float32), prune_ratio=0.0, seed=seed, epoch=3)
    whole = made.indices
    stop, step = rng.randrange(count + 1), rng.choice([1, 2, 7])
    for span in (range(0, stop, step), range(stop - 1, -1, -step), range(count - 1, count, 10**30)):
        want = whole[list(span)]
        assert_bitwise(made.order(span, num_threads=num_threads), want, f"{span}")
        assert_bitwise(made.order(np.array(span, dtype=np.int16)), want, "int16 positions")
        assert_bitwise(made.order(list(span)), want, "a list of positions")
    assert_bitwise(np.sort(whole), np.arange(count, dtype=np.int32), "a permutation")


@given(count=st.integers(1, 3000), ratio=ratios, chunk=st.integers(1, 700), seed=seeds, salt=salts)
def test_keep_is_the_decision_of_the_plan_in_any_order_and_chunking(
    count, ratio, chunk, seed, salt
):
    rng = random.Random(salt)
    scores = score_array(rng, count, 0.2)
    made = host.plan(scores, prune_ratio=ratio, seed=seed, epoch=9)
    low = scores < made.threshold  # false where nan
    indices = np.array(rng.sample(range(count), count))
    parts = [
        host.keep(part, 9, seed=seed, prune_ratio=ratio, low=low[part])
        for part in np.split(indices, range(chunk, count, chunk))
    ]
    assert_bitwise(np.concatenate(parts), made.weight_class[indices] != 0, "keep")

    subset = host.plan(scores, prune_ratio=ratio, seed=seed, epoch=9, threshold=3.4e38)
    of_all = host.keep(range(count), 9, seed=seed, prune_ratio=ratio)
    seen = ~np.isnan(scores) & (scores < np.float32(3.4e38))
    assert_bitwise(of_all[seen], subset.weight_class[seen] != 0, "keep of a random subset")


@given(
    indices=st.lists(st.sampled_from(EDGES) | st.integers(0, 2**63 - 1), max_size=30),
    ratio=ratios,
    seed=seeds,
    epoch=epochs,
)
def test_draws_and_decisions_beyond_32_bits_equal_the_oracle(indices, ratio, seed, epoch):
    want = []
    for i in indices:
        words = oracle.philox([*oracle.halves(i // 8), 0, epoch], oracle.halves(seed))
        want.append(words[i // 2 % 4] // 65536 ** (i % 2) % 65536)
    draws = host.keep_draw(indices, seed=seed, epoch=epoch)
    assert_bitwise(draws, np.array(want, dtype=np.uint16), "keep_draw")
    cut = min(65535, int(ratio * 65536 + 0.5))
    kept = host.keep(indices, epoch, seed=seed, prune_ratio=ratio)
    assert_bitwise(kept, np.array([d >= cut for d in want], dtype=bool), "keep")


def test_draws_of_a_range_are_those_of_its_numbers():
    for span in (range(2**32 - 5, 2**32 + 20, 3), range(9, -1, -1), range(5, 6, 10**30), range(0)):
        got = host.keep_draw(span, seed=3, epoch=1)
        assert_bitwise(got, host.keep_draw(list(span), seed=3, epoch=1), f"{span}")
    near, far = range(64), range(2**35, 2**35 + 64)
    draws = [host.keep_draw(span, seed=3, epoch=1) for span in (near, far)]
    assert not np.array_equal(*draws), "control: the high word of the counter counts"


@given(n=st.sampled_from([1, 2, 5, 65536, 65537, 2**31, 2**32 + 1, 2**62 - 1, 2**62]), seed=seeds)
def test_the_bijection_equals_the_oracle_for_any_n(n, seed):
    pi = oracle.Bijection(n, seed, 2)
    positions = sorted({0, n // 3, n // 2, n - 1})
    got = host.bijection(positions, n, seed=seed, epoch=2)
    assert_bitwise(got, np.array([pi(p) for p in positions], dtype=np.int64), "bijection")


def test_the_order_is_the_kept_list_under_the_bijection():
    made = host.plan(np.ones(3000, np.float32), prune_ratio=0.5, seed=4, epoch=6, threshold=2.0)
    ranks = host.bijection(range(len(made)), len(made), seed=4, epoch=6)
    assert_bitwise(made.indices, made.kept[ranks], "order")
    assert 1300 < len(made) < 1700, "control: about half is kept"


@pytest.mark.parametrize(("counter", "key", "want"), PUBLISHED)
def test_the_generator_reproduces_the_published_vectors(counter, key, want):
    assert_bitwise(host.philox4x32(counter, key), np.array(want, dtype=np.uint32), "words")
    assert host.philox4x32([*counter[:3], counter[3] ^ 1], key).tolist() != want, "control"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_and_strides_are_converted(dtype):
    scores = np.tile(np.array([0.1, 7.0, 2.5, 7.0], dtype=dtype), 500)[::2]
    want = np.ascontiguousarray(scores).astype(np.float32)
    got = host.plan(scores, prune_ratio=0.5, seed=0, epoch=0)
    assert_same_plan(got, operators_plan(want, pe.InfoBatch(delta=1.0), 0, 0, None))
    assert host.mean_threshold(scores) == got.threshold


def test_constant_scores_and_no_scores_prune_nobody():
    for scores in (np.full(1000, 0.1, np.float32), np.full(1000, np.nan, np.float32)):
        made = host.plan(scores, prune_ratio=0.9, seed=0, epoch=1)
        assert (made.weight_class == 1).all()
    assert made.threshold == -np.finfo(np.float32).max
    empty = host.plan(np.empty(0, np.float32), prune_ratio=0.9, seed=0, epoch=1)
    assert (len(empty), empty.indices.tolist(), empty.weights.tolist()) == (0, [], [])
    assert host.keep([], 0, seed=0, prune_ratio=0.5, low=[]).tolist() == []


def test_a_plan_is_frozen():
    made = host.plan(np.zeros(3, np.float32), prune_ratio=0.5, seed=0, epoch=0)
    with pytest.raises(FrozenInstanceError):
        made.epoch = 1


PLAN = {"scores": np.zeros(4, np.float32), "prune_ratio": 0.5, "seed": 0, "epoch": 0}
KEEP = {"indices": [0, 1], "epoch": 0, "seed": 0, "prune_ratio": 0.5}
BIJECTION = {"positions": [0, 1], "n": 4, "seed": 0, "epoch": 0}


@pytest.mark.parametrize(
    ("call", "right", "name", "value", "error"),
    [
        (host.plan, PLAN, "scores", np.zeros((2, 2), np.float32), ValueError),
        (host.plan, PLAN, "scores", np.zeros(4, np.int64), TypeError),
        (host.plan, PLAN, "scores", np.zeros(4, np.complex64), TypeError),
        (host.plan, PLAN, "scores", np.array([0, 1, np.inf], np.float32), ValueError),
        (host.plan, PLAN, "scores", np.array([0, 1, -np.inf], np.float32), ValueError),
        (host.plan, PLAN, "scores", np.array([0, 1e300]), ValueError),
        (host.plan, PLAN, "scores", np.broadcast_to(np.float32(0), 2**31), ValueError),
        (host.plan, PLAN, "prune_ratio", 1.0, ValueError),
        (host.plan, PLAN, "prune_ratio", "half", TypeError),
        (host.plan, PLAN, "threshold", np.nan, ValueError),
        (host.plan, PLAN, "threshold", 1e39, ValueError),
        (host.plan, PLAN, "threshold", "mean", TypeError),
        (host.plan, PLAN, "sampling", "poisson", ValueError),
        (host.plan, PLAN, "num_threads", 0, ValueError),
        (host.plan, PLAN, "seed", MAX_SEED + 1, ValueError),
        (host.plan, PLAN, "seed", 0.5, TypeError),
        (host.plan, PLAN, "epoch", MAX_EPOCH + 1, ValueError),
        (host.plan, PLAN, "epoch", True, TypeError),
        (host.keep, KEEP, "indices", [0, -1], IndexError),
        (host.keep, KEEP, "indices", range(-1, 3), IndexError),
        (host.keep, KEEP, "indices", range(0, 2**64, 2**62), IndexError),
        (host.keep, KEEP, "indices", [0.5], TypeError),
        (host.keep, KEEP, "indices", np.zeros(2, np.uint64), TypeError),
        (host.keep, KEEP, "indices", 5, ValueError),
        (host.keep, KEEP, "low", [True], ValueError),
        (host.keep, KEEP, "low", [0, 1], TypeError),
        (host.keep, KEEP, "epoch", -1, ValueError),
        (host.bijection, BIJECTION, "positions", [4], IndexError),
        (host.bijection, BIJECTION, "positions", [-1], IndexError),
        (host.bijection, BIJECTION, "n", 2**62 + 1, ValueError),
        (host.philox4x32, {"counter": [0] * 4, "key": [0, 0]}, "counter", [0] * 3, ValueError),
        (host.philox4x32, {"counter": [0] * 4, "key": [0, 0]}, "key", [0, 2**32], ValueError),
    ],
)
def test_edge_cases_03_07_08_10_a_wrong_argument_is_named(call, right, name, value, error):
    call(**right)  # control
    with pytest.raises(error, match=name):
        call(**{**right, name: value})


@pytest.mark.parametrize("wrong", [[4], [-1], range(5), range(-1, 2), range(2, 2**70, 2**69)])
def test_edge_case_03_a_position_out_of_range_is_refused(wrong):
    made = host.plan(np.zeros(4, np.float32), prune_ratio=0.5, seed=0, epoch=0)
    with pytest.raises(IndexError, match=r"positions must be in 0\.\.3, got"):
        made.order(wrong)


def test_an_infinite_score_is_refused_with_its_place_even_where_a_threshold_is_given():
    scores = np.zeros(200_000, np.float32)
    scores[[150_000, 170_000]] = np.inf
    with pytest.raises(ValueError, match="inf at index 150000"):
        host.plan(scores, prune_ratio=0.5, seed=0, epoch=0, threshold=1.0, num_threads=3)
