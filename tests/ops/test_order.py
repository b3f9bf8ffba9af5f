# SPDX-License-Identifier: Apache-2.0
"""order: a keyed bijection that equals the oracle's and shuffles well, small sets included."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import numpy as np
import oracle
import pytest
import torch
from _assertions import MAX_Z, assert_bitwise, chi_square_z, correlation_z
from _cases import MAX_EPOCH, MAX_SEED, epochs, float32, int64, salts, seeds, threads
from hypothesis import example, given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native


def arange(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


def order(count: int, backend: str, *, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    """Return the whole permutation of range(count)."""
    return pe.ops.order(arange(count), range(count), seed=seed, epoch=epoch, backend=backend)


@given(
    count=st.integers(1, 70) | st.sampled_from([255, 256, 257, 4095, 4096, 4097]),
    seed=seeds,
    epoch=epochs,
    salt=salts,
    thread_count=threads,
)
def test_order_equals_oracle(backend, num_threads, count, seed, epoch, salt, thread_count):
    rng = random.Random(salt)
    kept = sorted(rng.sample(range(2**31 - 1), count))
    positions = [rng.randrange(count) for _ in range(rng.randrange(400))]
    want = oracle.order(kept, positions, seed, epoch)
    tensor = torch.tensor(kept, dtype=torch.int32)
    with num_threads(thread_count):
        got = pe.ops.order(tensor, int64(positions), seed=seed, epoch=epoch, backend=backend)
    assert_bitwise(got, torch.tensor(want, dtype=torch.int32), "order")


@given(
    count=st.sampled_from([65535, 65536, 65537, 10**6 - 1, 2**20, 2**20 + 1, 3_000_001]),
    seed=seeds,
    epoch=epochs,
)
def test_large_orders_equal_oracle_at_sampled_positions(backend, count, seed, epoch):
    positions = [0, 1, count - 1, *random.Random(seed).choices(range(count), k=40)]
    got = pe.ops.order(arange(count), int64(positions), seed=seed, epoch=epoch, backend=backend)
    assert_bitwise(got, oracle.order(range(count), positions, seed, epoch), "order")


@given(count=st.integers(65_537, 300_000), seed=seeds, epoch=epochs, thread_count=threads)
@settings(max_examples=25)
@example(count=2**18, seed=0, epoch=0, thread_count=2)  # a full grid: no walk
@example(count=2**18 + 1, seed=0, epoch=0, thread_count=2)  # one sample in the last column
@example(count=66_049, seed=0, epoch=0, thread_count=1)
def test_the_whole_order_is_the_order_of_each_position(
    num_threads, count, seed, epoch, thread_count
):
    """All positions at once are made by rotating the list, one position by the network."""
    kept = arange(count) * 7 + 3
    with num_threads(thread_count):
        whole = pe.ops.order(kept, range(count), seed=seed, epoch=epoch, backend="cpu")
        each = pe.ops.order(kept, torch.arange(count), seed=seed, epoch=epoch, backend="cpu")
    assert_bitwise(whole, each, f"the whole order of {count}")


@given(
    count=st.integers(1, 300),
    start=st.integers(0, 299),
    step=st.integers(1, 40),
    stop=st.integers(0, 300),
    seed=seeds,
)
def test_a_range_is_its_list_of_positions(backend, count, start, step, stop, seed):
    share = range(min(start, count - 1), min(stop, count), step)
    whole = order(count, backend, seed=seed)
    got = pe.ops.order(arange(count), share, seed=seed, epoch=0, backend=backend)
    assert_bitwise(got, whole[list(share)], "a strided share")
    back = pe.ops.order(arange(count), share[::-1], seed=seed, epoch=0, backend=backend)
    assert_bitwise(back, whole[list(share[::-1])], "the share backwards")


@pytest.mark.parametrize("count", [*range(1, 201), 1023, 1025, 65535, 65536, 65537, 300_000])
def test_order_is_a_bijection(count, num_threads):
    for seed, epoch in ((0, 0), (MAX_SEED, MAX_EPOCH)):
        with num_threads(1 + count % 2):
            got = order(count, "cpu", seed=seed, epoch=epoch)
        assert_bitwise(got.sort().values, arange(count), f"sorted order of {count}")


@pytest.mark.parametrize("count", [*range(1, 41), 4097, 70_001])
def test_reference_and_cpu_give_the_same_permutation(count):
    got, want = (order(count, name, seed=count, epoch=7) for name in ("cpu", "reference"))
    assert_bitwise(got, want, f"order of {count}")


def permutation_z(shuffle: Callable[[int], list[int]], count: int, trials: int) -> float:
    """Return how far the permutations drawn by a shuffle are from uniform."""
    seen = Counter(tuple(shuffle(trial)) for trial in range(trials))
    cells = [seen[p] for p in permutations(range(count))]
    assert sum(cells) == trials, "not a permutation"
    return chi_square_z(cells, [trials / len(cells)] * len(cells), len(cells) - 1)


@pytest.mark.parametrize(("count", "trials"), [(2, 4000), (3, 6000), (4, 6000), (5, 9000)])
@pytest.mark.parametrize("what", ["seed", "epoch"])
def test_small_orders_are_uniform_over_all_permutations(count, trials, what):
    kept = arange(count)

    def shuffle(trial: int) -> list[int]:
        key = {"seed": 5, "epoch": 5} | {what: trial}
        return pe.ops.order(kept, range(count), **key, backend="cpu").tolist()

    z = permutation_z(shuffle, count, trials)
    assert abs(z) < MAX_Z, f"{z:.1f} deviations from uniform"


def test_orders_of_six_are_uniform_over_all_720_permutations():
    kept = arange(6)
    z = permutation_z(
        lambda seed: pe.ops.order(kept, range(6), seed=seed, epoch=0, backend="cpu").tolist(),
        6,
        15_000,
    )
    assert abs(z) < MAX_Z


@pytest.mark.parametrize("count", [4, 5])
def test_a_rotation_and_an_lcg_fail_the_same_check(count):
    rng = random.Random(0)
    units = [a for a in range(1, count) if math.gcd(a, count) == 1]

    def rotation(_: int) -> list[int]:
        offset = rng.randrange(count)
        return [(j + offset) % count for j in range(count)]

    def lcg(_: int) -> list[int]:
        offset, factor = rng.randrange(count), rng.choice(units)
        return [(factor * j + offset) % count for j in range(count)]

    assert permutation_z(rotation, count, 6000) > MAX_Z
    assert permutation_z(lcg, count, 6000) > MAX_Z


def test_eight_rounds_of_the_same_network_fail_the_same_check_at_five():
    def few_rounds(seed: int) -> list[int]:
        pi = oracle.Bijection(5, seed, 0)
        pi.keys = pi.keys[:8]
        return [pi(j) for j in range(5)]

    assert permutation_z(few_rounds, 5, 6000) > MAX_Z


@pytest.mark.parametrize("count", [1000, 65537, 100_000])
def test_a_large_order_shows_no_serial_correlation(count):
    got = order(count, "cpu", seed=9, epoch=1).numpy()
    again = order(count, "cpu", seed=9, epoch=2).numpy()
    assert abs(correlation_z(got, np.arange(count))) < MAX_Z
    assert abs(correlation_z(got, again)) < MAX_Z
    for lag in (1, 2, 16, 256):
        assert abs(correlation_z(got[:-lag], got[lag:])) < MAX_Z
    rotation = (np.arange(count) + count // 3) % count  # control
    assert correlation_z(rotation[:-1], rotation[1:]) > MAX_Z


def test_fixed_points_are_as_rare_as_in_a_random_permutation():
    # The number of fixed points of a random permutation is Poisson with mean 1.
    trials = 2000
    fixed = sum(int((order(50, "cpu", seed=seed) == arange(50)).sum()) for seed in range(trials))
    assert abs(fixed - trials) < MAX_Z * math.sqrt(trials)


def test_edge_case_01_no_positions_and_an_empty_set(backend):
    for kept, positions in (
        (arange(5), range(0)),
        (arange(5), int64([])),
        (arange(0), range(0)),
        (arange(0), int64([])),
    ):
        got = pe.ops.order(kept, positions, seed=0, epoch=0, backend=backend)
        assert (got.dtype, got.shape) == (torch.int32, (0,))


@pytest.mark.parametrize("positions", [[5], [-1], [0, 2**40], range(6), range(-1, 3), range(9, 4)])
def test_edge_case_03_position_out_of_range(backend, positions):
    wanted = positions if isinstance(positions, range) else int64(positions)
    if len(positions) == 0:
        assert len(pe.ops.order(arange(5), wanted, seed=0, epoch=0, backend=backend)) == 0
        return
    with pytest.raises(IndexError, match="position"):
        pe.ops.order(arange(5), wanted, seed=0, epoch=0, backend=backend)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("kept", int64([0, 1])),
        ("kept", arange(4).view(2, 2)),
        ("kept", [0, 1]),
        ("positions", float32([0])),
        ("positions", int64([[0]])),
        ("positions", "01"),
    ],
)
def test_edge_case_07_wrong_argument_is_named(backend, argument, value):
    given = {"kept": arange(2), "positions": range(2)} | {argument: value}
    with pytest.raises((TypeError, ValueError), match=argument):
        pe.ops.order(**given, seed=0, epoch=0, backend=backend)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", MAX_SEED + 1), ("epoch", -1), ("epoch", MAX_EPOCH + 1)],
)
def test_edge_case_10_seed_and_epoch_out_of_range(backend, name, value):
    key = {"seed": 0, "epoch": 0} | {name: value}
    with pytest.raises(ValueError, match=name):
        pe.ops.order(arange(2), range(2), **key, backend=backend)


@pytest.mark.parametrize("positions", [None, [], [3, 0, 3]])
def test_opcheck(positions):
    op = native.order
    wanted = None if positions is None else int64(positions)
    torch.library.opcheck(op, (arange(5), wanted, 1, 2, 2, 9, 4))
    assert len(op(arange(5), wanted, 1, 2, 2, 9, 4)) == (2 if positions is None else len(positions))
