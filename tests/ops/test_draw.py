# SPDX-License-Identifier: Apache-2.0
"""draw: 32 keyed bits for each index of a stream, the same on every backend, past 2^32."""

from __future__ import annotations

import oracle
import pytest
import torch
from _assertions import assert_bitwise, chi_square_z, correlation_z
from _cases import MAX_EPOCH, MAX_SEED, float32, int64, threads
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import native

FAR = [0, 1, 2, 3, 4, 2**32 - 1, 2**34 - 1, 2**34, 2**40 + 7, 2**62]
KEY = {"seed": MAX_SEED - 7, "epoch": MAX_EPOCH - 1}
LAST = 2**28 - 1


def drawn(index: int, seed: int, epoch: int, stream: int) -> int:
    """Return what the semantics say: word i mod 4 of the call for i div 4."""
    group = index // 4
    counter = [group % 2**32, group // 2**32, 16 * stream + 15, epoch]
    return oracle.philox(counter, oracle.halves(seed))[index % 4]


@given(
    indices=st.lists(st.sampled_from(FAR) | st.integers(0, 2**62), max_size=6),
    seed=st.integers(0, MAX_SEED),
    epoch=st.integers(0, MAX_EPOCH),
    stream=st.integers(0, LAST),
)
def test_a_draw_is_the_oracles(backend, indices, seed, epoch, stream):
    got = pe.ops.draw(int64(indices), seed=seed, epoch=epoch, stream=stream, backend=backend)
    assert_bitwise(got, [drawn(i, seed, epoch, stream) for i in indices], "draws")


@settings(max_examples=10)
@given(thread_count=threads)
def test_any_number_of_threads_draws_the_same(num_threads, thread_count):
    everyone = torch.arange(70_001)
    with num_threads(thread_count):
        got = pe.ops.draw(everyone, **KEY, stream=5, backend="cpu")
    assert_bitwise(got, pe.ops.draw(everyone, **KEY, stream=5, backend="reference"), "draws")
    assert_bitwise(got.flip(0), pe.ops.draw(everyone.flip(0), **KEY, stream=5), "in any order")


def test_draws_are_uniform_and_streams_epochs_and_seeds_independent():
    everyone = torch.arange(65_536)
    first = pe.ops.draw(everyone, seed=7, epoch=3, stream=0)
    counts = torch.bincount(first >> 24, minlength=256).tolist()
    assert abs(chi_square_z(counts, [256.0] * 256, 255)) < 4
    for other in ({"stream": 1}, {"epoch": 4}, {"seed": 8}):
        given_ = {"seed": 7, "epoch": 3, "stream": 0, **other}
        second = pe.ops.draw(everyone, **given_)
        assert abs(correlation_z(first.double().numpy(), second.double().numpy())) < 4
        assert not torch.equal(first, second)
    shifted = chi_square_z(
        torch.bincount((first >> 25), minlength=256).tolist(), [256.0] * 256, 255
    )
    assert shifted > 4, "control: draws that leave half of the range out are seen"


def test_no_stream_has_the_words_of_a_keep_draw_or_a_pick():
    """Counter word 2 of a draw is 15 modulo 16: 0 to 8 are the order's and the pick's, 0 keeps."""
    words = {16 * stream + 15 for stream in (0, 1, 2, 2**27, LAST)}
    taken = {0, *range(1, 9), *(16 * site + call for site in range(1, 99) for call in range(9))}
    assert not words & taken
    assert max(words) < 2**32


def test_the_emulated_kernel_has_the_bits_of_the_reference(emulated):
    want = backends.load("reference").draw(int64(FAR), *KEY.values(), LAST)
    assert_bitwise(emulated.draw(int64(FAR), *KEY.values(), LAST), want, "draws")
    outside = emulated.draw(int64([-1, 2**62 + 1, -(2**63), 0]), 3, 1, 0).tolist()
    assert outside[:3] == [-1] * 3
    assert outside[3] == drawn(0, 3, 1, 0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpu_has_the_bits_of_the_cpu(name):
    if not torch.cuda.is_available():
        pytest.fail("these tests need a GPU, and torch finds none")
    want = backends.load("cpu").draw(int64(FAR), *KEY.values(), LAST)
    got = backends.load(name).draw(int64(FAR).cuda(), *KEY.values(), LAST)
    assert_bitwise(got.cpu(), want, "draws")


@pytest.mark.parametrize("outside", [-1, 2**62 + 1])
def test_edge_case_03_an_index_out_of_range(backend, outside):
    with pytest.raises(IndexError, match="indices must be in"):
        pe.ops.draw(int64([0, outside]), **KEY, backend=backend)


def test_edge_case_01_nothing(backend):
    assert_bitwise(pe.ops.draw(int64([]), **KEY, backend=backend), int64([]), "none")


def test_edge_case_07_and_10_a_wrong_argument_is_named(backend):
    for given_, match in (
        ({"indices": float32([0])}, "indices"),
        ({"indices": int64([[0]])}, "indices"),
        ({"stream": LAST + 1}, "stream must be in"),
        ({"stream": True}, "stream"),
        ({"seed": -1}, "seed"),
        ({"epoch": MAX_EPOCH + 1}, "epoch"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            pe.ops.draw(**{"indices": int64([0]), **KEY, **given_}, backend=backend)


def test_opcheck():
    torch.library.opcheck(native.draw, (torch.arange(9), 9, 4, 3))


def test_it_compiles_whole():
    def step(indices):
        return pe.ops.draw(indices, seed=1, epoch=2) >> 16

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert_bitwise(compiled(torch.arange(9)), step(torch.arange(9)), "draws")
