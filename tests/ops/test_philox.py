# SPDX-License-Identifier: Apache-2.0
"""The generator against its published vectors, directly and through the public plan."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from _assertions import MAX_Z, assert_bitwise, chi_square_z
from _cases import MAX_EPOCH, MAX_SEED, int64, one_band, records_of
from _philox import PUBLISHED

import prune_engine as pe
from prune_engine.backends import reference


def draws_through_plan(count: int, seed: int, epoch: int, backend: str) -> list[int]:
    """Read the 16-bit draws out of the public plan by bisection: kept iff draw >= cut."""
    records = records_of([0.0] * count)
    out = []
    for i in range(count):
        low, high = 0, 65535
        while low < high:
            cut = (low + high + 1) // 2
            classes, _ = pe.ops.plan(
                records[: i + 1], one_band(cut), seed=seed, epoch=epoch, backend=backend
            )
            low, high = (cut, high) if classes[i] else (low, cut - 1)
        out.append(low)
    return out


@pytest.mark.parametrize(("counter", "key", "want"), PUBLISHED)
def test_oracle_reproduces_the_published_vectors(counter, key, want):
    assert oracle.philox(counter, key) == want


@pytest.mark.parametrize(("counter", "key", "want"), PUBLISHED)
def test_reference_reproduces_the_published_vectors(counter, key, want):
    words = reference.philox4x32(*(int64([word]) for word in (*counter, *key)))
    assert [int(word) for word in words] == want


def test_published_vector_comes_out_of_every_plan(backend):
    words = PUBLISHED[0][2]  # counter 0, key 0 is group 0, stream 0, epoch 0, seed 0
    want = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    assert_bitwise(draws_through_plan(8, 0, 0, backend), want, "draws of samples 0..7")


@pytest.mark.parametrize(
    ("seed", "epoch"), [(1, 0), (2**32, 0), (0, 1), (MAX_SEED, MAX_EPOCH), (2**32 - 1, 77)]
)
def test_seed_and_epoch_words_reach_every_plan(backend, seed, epoch):
    want = oracle.draws(17, seed, epoch)
    assert_bitwise(draws_through_plan(17, seed, epoch, backend), want, "draws")
    assert want != oracle.draws(17, seed ^ (1 << 33), epoch), "the high seed word must matter"


def test_draws_are_uniform_and_a_short_generator_is_not():
    drawn = np.array(oracle.draws(64_000, 3, 5))
    for shift in (0, 4, 8, 12):
        counts = np.bincount((drawn >> shift) & 15, minlength=16)
        assert abs(chi_square_z(counts, [4000.0] * 16, 15)) < MAX_Z
    broken = np.bincount((drawn | 1) & 15, minlength=16)  # a stuck low bit
    assert chi_square_z(broken, [4000.0] * 16, 15) > MAX_Z
