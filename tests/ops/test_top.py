# SPDX-License-Identifier: Apache-2.0
"""The k largest, ties to the smaller index: one exact mask on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise, num_threads
from _cases import float32, int64, sizes, uint8
from hypothesis import given
from hypothesis import strategies as st
from test_select import LARGE, as_records, shapes

import prune_engine as pe
from prune_engine.backends import native


def expected(scores: np.ndarray, k: int) -> np.ndarray:
    """Rank with NumPy's stable sort."""
    seen = np.flatnonzero(~np.isnan(scores))
    falling = seen[np.argsort(-(scores[seen].astype(np.float64)), kind="stable")]
    mask = np.zeros(len(scores), np.uint8)
    mask[falling[:k]] = 1
    return mask


@given(
    n=sizes,
    kind=st.sampled_from(sorted(shapes(1))),
    share=st.floats(0, 1.2),
    backend=st.sampled_from(["reference", "cpu"]),
)
def test_top_equals_a_stable_sort(n, kind, share, backend):
    scores, k = shapes(n)[kind], round(share * n)
    want = expected(scores, k)
    for values in (torch.from_numpy(scores), as_records(scores)):
        assert_bitwise(pe.ops.top(values, k, backend=backend), want, f"{kind} {values.dtype}")


@pytest.mark.parametrize("kind", sorted(shapes(1)))
@pytest.mark.parametrize("threads", [1, 2])
def test_top_of_many(kind, threads):
    scores = shapes(LARGE)[kind]
    with num_threads(threads):
        for k in (1, 4096, LARGE // 3, LARGE - 1, LARGE):
            got = pe.ops.top(torch.from_numpy(scores), k, backend="cpu")
            assert_bitwise(got, expected(scores, k), f"{kind} {k}")


def test_ties_go_to_the_smaller_index(backend):
    values = float32([1, 2, 2, math.nan, 2, 0])
    masks = [pe.ops.top(values, k, backend=backend).tolist() for k in range(7)]
    assert masks[:5] == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 0],
    ]
    assert masks[5] == masks[6] == [1, 1, 1, 0, 1, 1], "what was never seen is never among them"


def test_zeros_of_both_signs_tie(backend):
    assert_bitwise(pe.ops.top(float32([-0.0, 0.0]), 1, backend=backend), uint8([1, 0]), "mask")


def test_infinities_rank_first_and_last(backend):
    values = float32([-math.inf, 3e38, math.inf])
    assert_bitwise(pe.ops.top(values, 2, backend=backend), uint8([0, 1, 1]), "mask")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((float32([1]), -1), ValueError, "k must be in"),
        ((float32([1]), 0.5), TypeError, "k must be an int"),
        ((uint8([1]), 1), TypeError, "values must be"),
    ],
)
def test_edge_case_07_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pe.ops.top(*arguments)


@pytest.mark.parametrize("values", [float32([2, 1, 3]), int64([0, 2**32 + 2**31])])
def test_opcheck(values):
    torch.library.opcheck(native.top, (values, 1))
    assert native.top(values, 1).dtype == torch.uint8
