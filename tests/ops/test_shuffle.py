# SPDX-License-Identifier: Apache-2.0
"""shuffle: the keyed bijection and its inverse without a list, past 2^31 and 2^32."""

from __future__ import annotations

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import MAX_EPOCH, MAX_SEED, float32, int64, threads
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import native

HUGE = [10**9, 2**31 - 1, 2**31, 2**32 + 1, 10**10, 2**40 + 4097, 2**62]
SMALL = [1, 2, 5, 4096, 65536, 65537]
KEY = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1}


@given(
    n=st.sampled_from([*SMALL, *HUGE]) | st.integers(1, 2**62),
    share=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    seed=st.integers(0, MAX_SEED),
    epoch=st.integers(0, MAX_EPOCH),
)
def test_shuffle_is_the_oracles_and_unshuffle_its_inverse(backend, n, share, seed, epoch):
    positions = [min(n - 1, int(part * n)) for part in (*share, 0, 1)]
    key = {"seed": seed, "epoch": epoch, "backend": backend}
    ranks = pe.ops.shuffle(int64(positions), n, **key)
    pi = oracle.Bijection(n, seed, epoch)
    assert_bitwise(ranks, [pi(p) for p in positions], "ranks")
    assert_bitwise(pe.ops.unshuffle(ranks, n, **key), positions, "positions")


@settings(max_examples=25)
@given(n=st.integers(1, 3000) | st.sampled_from([65_537, 70_001]), thread_count=threads)
def test_the_whole_shuffle_is_the_order_of_the_list(num_threads, n, thread_count):
    kept = torch.arange(n, dtype=torch.int32) * 3
    with num_threads(thread_count):
        ranks = pe.ops.shuffle(torch.arange(n), n, seed=n, epoch=2)
        back = pe.ops.unshuffle(ranks, n, seed=n, epoch=2)
    assert_bitwise(kept[ranks], pe.ops.order(kept, range(n), seed=n, epoch=2), "order")
    assert_bitwise(back, torch.arange(n), "positions")
    if n > 9:
        other = pe.ops.shuffle(torch.arange(n), n, seed=n, epoch=3)
        assert not torch.equal(other, ranks), "control: another epoch"


def places(n: int) -> torch.Tensor:
    """Return the first, the last and some places between, in no order."""
    some = [*range(min(n, 700)), n - 1, n // 2, n // 3]
    return int64(some[::-1])


@pytest.mark.parametrize("n", [*SMALL, *HUGE])
@pytest.mark.parametrize("inverse", [False, True])
def test_the_emulated_kernel_has_the_bits_of_the_reference(emulated, n, inverse):
    want = backends.load("reference").shuffle(places(n), n, inverse, *KEY.values())
    assert_bitwise(emulated.shuffle(places(n), n, inverse, *KEY.values()), want, "places")


def test_the_emulated_kernel_marks_what_is_outside(emulated):
    found = emulated.shuffle(int64([-1, 5, 2**62, -(2**63), 0]), 5, True, 3, 1)
    assert found.tolist()[:4] == [-1] * 4
    assert 0 <= found[4] < 5


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpu_has_the_bits_of_the_cpu(name):
    if not torch.cuda.is_available():
        pytest.fail("these tests need a GPU, and torch finds none")
    kernels, cpu = backends.load(name), backends.load("cpu")
    for n in (*SMALL, *HUGE):
        for inverse in (False, True):
            got = kernels.shuffle(places(n).cuda(), n, inverse, *KEY.values())
            assert_bitwise(got.cpu(), cpu.shuffle(places(n), n, inverse, *KEY.values()), f"{n}")


@pytest.mark.parametrize("outside", [[1000], [-1], [0, 2**40]])
def test_edge_case_03_a_place_out_of_range(backend, outside):
    for work in (pe.ops.shuffle, pe.ops.unshuffle):
        with pytest.raises(IndexError, match=r"1000|999"):
            work(int64(outside), 1000, **KEY, backend=backend)


def test_edge_case_01_no_places(backend):
    for n in (0, 7):
        assert_bitwise(pe.ops.shuffle(int64([]), n, **KEY, backend=backend), int64([]), "none")
    with pytest.raises(IndexError):
        pe.ops.shuffle(int64([0]), 0, **KEY, backend=backend)


def test_edge_case_07_and_10_a_wrong_argument_is_named(backend):
    for given_, match in (
        ({"positions": float32([0]), "n": 4}, "positions"),
        ({"positions": int64([[0]]), "n": 4}, "positions"),
        ({"positions": int64([0]), "n": 2**62 + 1}, r"n must be in 0\.\.2\^62"),
        ({"positions": int64([0]), "n": 4, "seed": -1}, "seed"),
        ({"positions": int64([0]), "n": 4, "epoch": -1}, "epoch"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            pe.ops.shuffle(**{**KEY, **given_}, backend=backend)


@pytest.mark.parametrize("inverse", [False, True])
def test_opcheck(inverse):
    torch.library.opcheck(native.shuffle, (torch.arange(9), 10**10, inverse, 9, 4))
    assert native.shuffle(torch.arange(9), 10**10, inverse, 9, 4).dtype == torch.int64
