# SPDX-License-Identifier: Apache-2.0
"""compact: the kept indices in ascending order."""

from __future__ import annotations

import random

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import float32, int64, salts, sizes, threads, uint8
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native


def compact(classes: list[int], backend: str) -> torch.Tensor:
    offsets = oracle.block_offsets(classes)
    return pe.ops.compact(uint8(classes), int64(offsets), offsets[-1], backend=backend)


@given(
    num_samples=sizes,
    density=st.sampled_from([0.0, 0.001, 0.5, 0.999, 1.0]),
    salt=salts,
    thread_count=threads,
)
def test_compact_equals_oracle(backend, num_threads, num_samples, density, salt, thread_count):
    rng = random.Random(salt)
    classes = [rng.randrange(1, 256) * (rng.random() < density) for _ in range(num_samples)]
    with num_threads(thread_count):
        kept = compact(classes, backend)
    assert_bitwise(kept, torch.tensor(oracle.compact(classes), dtype=torch.int32), "kept")


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 8191, 8192, 9999])
def test_a_single_kept_sample_is_found_wherever_it_is(backend, at):
    classes = [0] * 10_000
    classes[at] = 7
    assert_bitwise(compact(classes, backend), [at], "kept")


@pytest.mark.parametrize("value", [1, 2, 127, 128, 255])
def test_every_non_zero_byte_is_kept(backend, value):
    assert_bitwise(compact([0, value] * 40, backend), list(range(1, 80, 2)), "kept")


def test_a_large_set_is_the_same_at_any_thread_count(num_threads):
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 3, (1_000_003,), generator=generator).to(torch.uint8)
    counts = torch.nn.functional.pad(classes.ne(0), (0, -len(classes) % 4096)).view(-1, 4096)
    offsets = torch.cat([int64([0]), counts.sum(1).cumsum(0)])
    want = classes.nonzero()[:, 0].int()
    for count in (1, 2, 4):
        with num_threads(count):
            got = pe.ops.compact(classes, offsets, int(offsets[-1]), backend="cpu")
        assert_bitwise(got, want, f"kept with {count} threads")


def test_edge_case_01_no_samples(backend):
    kept = compact([], backend)
    assert (kept.dtype, kept.shape) == (torch.int32, (0,))


def test_edge_case_05_nothing_kept(backend):
    kept = compact([0] * 5000, backend)
    assert (kept.dtype, kept.shape) == (torch.int32, (0,))


@pytest.mark.parametrize("num_kept", [-1, 0, 1, 3, 2**31])
def test_a_wrong_num_kept_is_refused(backend, num_kept):
    with pytest.raises((ValueError, RuntimeError), match="num_kept"):
        pe.ops.compact(uint8([1, 0, 1]), int64([0, 2]), num_kept, backend=backend)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("weight_class", int64([1, 0, 1])),
        ("weight_class", uint8([1, 0, 1])[None]),
        ("weight_class", [1, 0, 1]),
        ("block_offsets", float32([0, 2])),
        ("block_offsets", int64([0, 1, 2])),
        ("block_offsets", int64([])),
        ("block_offsets", [0, 2]),
    ],
)
def test_edge_case_07_wrong_argument_is_named(backend, argument, value):
    given = {"weight_class": uint8([1, 0, 1]), "block_offsets": int64([0, 2])}
    with pytest.raises((TypeError, ValueError), match=argument):
        pe.ops.compact(**(given | {argument: value}), num_kept=2, backend=backend)


def test_edge_case_07_non_contiguous_arguments_are_converted(backend):
    classes, offsets = uint8([1, 0, 0, 9, 2, 0])[::2], int64([0, 9, 2, 9])[::2]
    assert_bitwise(pe.ops.compact(classes, offsets, 2, backend=backend), [0, 2], "kept")
    assert not classes.is_contiguous()


@pytest.mark.parametrize("classes", [[], [0, 0], [1, 0, 2] * 3000])
def test_opcheck(classes):
    offsets = oracle.block_offsets(classes)
    op = native.compact
    torch.library.opcheck(op, (uint8(classes), int64(offsets), offsets[-1]))
    assert len(op(uint8(classes), int64(offsets), offsets[-1])) == offsets[-1]
