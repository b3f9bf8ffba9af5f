# SPDX-License-Identifier: Apache-2.0
"""cells: how many samples each cell of scores has."""

from __future__ import annotations

import random

import _levels
import pytest
import torch
from _assertions import assert_bitwise
from _cases import floats, int64, salts, sizes, threads
from hypothesis import given

import prune_engine as pe
from prune_engine.backends import native


def counted(scores: list[float | None]) -> torch.Tensor:
    """Count by the oracle."""
    counts = torch.zeros(4096, dtype=torch.int64)
    for place, number in _levels.counts_of(scores).items():
        counts[place] = number
    return counts


@given(num_samples=sizes, salt=salts, thread_count=threads)
def test_cells_equal_the_oracles(backend, num_threads, num_samples, salt, thread_count):
    rng = random.Random(salt)
    scores = [None if rng.random() < 0.2 else x for x in floats(rng, min(num_samples, 600))]
    repeats = -(-num_samples // len(scores)) if scores else 0  # the oracle is slow
    records = int64((_levels.records_of(scores, 3) * repeats)[:num_samples])
    with num_threads(thread_count):
        got = pe.ops.cells(records, backend=backend)
    assert_bitwise(got, counted((scores * repeats)[:num_samples]), "counts")
    assert int(got.sum()) == num_samples


def test_cells_are_sixteenths_of_octaves(backend):
    edges = [2.0**e * (1 + j / 16) for e in (-126, 0, 127) for j in range(16)]
    below = [torch.nextafter(torch.tensor(x), torch.tensor(0.0)).item() for x in edges]
    places = [
        pe.ops.cells(int64(_levels.records_of([x])), backend=backend).argmax().item()
        for x in (*edges, *below)
    ]
    firsts = [16 * (e + 126) + j for e in (-126, 0, 127) for j in range(16)]
    assert places == [*firsts, *(max(0, place - 1) for place in firsts)]


def test_shards_add_up(backend):
    rng = random.Random(1)
    records = int64(_levels.records_of(_levels.random_scores(rng, 9001)))
    parts = [pe.ops.cells(part, backend=backend) for part in (records[:4096], records[4096:])]
    assert_bitwise(sum(parts), pe.ops.cells(records, backend=backend), "counts")


def test_threads_do_not_show(num_threads):
    rng = random.Random(2)
    records = int64(_levels.records_of(_levels.random_scores(rng, 5000)) * 60)
    want = pe.ops.cells(records, backend="reference")
    for count in (1, 2, 3):
        with num_threads(count):
            assert_bitwise(pe.ops.cells(records, backend="cpu"), want, f"{count} threads")


def test_edge_case_07_what_does_not_fit(backend):
    with pytest.raises(TypeError, match=r"records must be int64, got torch\.float32"):
        pe.ops.cells(torch.zeros(3), backend=backend)
    with pytest.raises(ValueError, match="records must be a vector"):
        pe.ops.cells(torch.zeros(3, 2, dtype=torch.int64), backend=backend)
    strided = int64(_levels.records_of([1.0, 2.0, 3.0, 4.0]))[::2]
    assert pe.ops.cells(strided, backend=backend).nonzero().flatten().tolist() == [2016, 2040]


def test_opcheck_and_compile():
    records = int64(_levels.records_of([1.0, None, -2.0]))
    torch.library.opcheck(native.cells, (records,))
    compiled = torch.compile(lambda x: pe.ops.cells(x), fullgraph=True, backend="eager")
    assert_bitwise(compiled(records), pe.ops.cells(records), "counts")
