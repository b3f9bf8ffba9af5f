# SPDX-License-Identifier: Apache-2.0
"""Static subsets: exact, ties by index; the file says what it is and is whole or not there."""

from __future__ import annotations

import json
import math
import random
import statistics

import numpy as np
import pytest
import torch
from _cases import floats, salts
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

KEEP = ("hard", "easy", "moderate")


@given(count=st.integers(0, 60), share=st.floats(0, 1), salt=salts, keep=st.sampled_from(KEEP))
def test_a_subset_is_the_sorted_one_of_python(count, share, salt, keep):
    values = floats(random.Random(salt), count)
    k = int(share * count)
    middle = statistics.median(values) if values else 0.0
    order = {
        "hard": lambda i: (-values[i], i),
        "easy": lambda i: (values[i], i),
        "moderate": lambda i: (abs(values[i] - middle), i),
    }[keep]
    want = sorted(sorted(range(count), key=order)[:k])
    got = pe.data.select_subset(torch.tensor(values, dtype=torch.float32), k, keep)
    assert got.dtype == torch.int64
    assert got.tolist() == want


def test_ties_go_to_the_smaller_index_and_hard_is_not_easy():
    scores = torch.tensor([1.0, 2.0, 2.0, 1.0, 2.0])
    assert pe.data.select_subset(scores, 2, "hard").tolist() == [1, 2]
    assert pe.data.select_subset(scores, 1, "easy").tolist() == [0]
    assert pe.data.select_subset(torch.ones(9), 4, "moderate").tolist() == [0, 1, 2, 3]


def test_infinite_scores_have_their_place():
    scores = torch.tensor([math.inf, 0.0, math.inf, math.inf])
    assert pe.data.select_subset(scores, 2, "hard").tolist() == [0, 2]
    assert pe.data.select_subset(scores, 1, "easy").tolist() == [1]
    assert pe.data.select_subset(scores, 2, "moderate").tolist() == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((torch.ones(3), 4), ValueError, r"k must be in 0\.\.3, got 4"),
        ((torch.ones(3), -1), ValueError, "k must be"),
        ((torch.ones(3), 1, "best"), ValueError, "'best'"),
        ((torch.ones(3, 1), 1), ValueError, "vector"),
        ((torch.ones(3, dtype=torch.int64), 1), TypeError, "floating"),
        ((torch.tensor([1.0, math.nan]), 1), ValueError, "got 1 of them"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        pe.data.select_subset(*arguments)


def test_a_file_goes_to_any_loader(tmp_path):
    path = pe.data.save_subset(tmp_path / "a.npy", torch.tensor([0, 2]), 4, about={"score": "el2n"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "a.npy.json"]
    assert np.load(path, allow_pickle=False).tolist() == [0, 2]
    note = json.loads((tmp_path / "a.npy.json").read_text())
    assert (note["num_samples"], note["count"], note["about"]) == (4, 2, {"score": "el2n"})
    data = torch.utils.data.TensorDataset(torch.arange(4.0))
    subset = torch.utils.data.Subset(data, pe.data.load_subset(path, num_samples=4))
    loader = torch.utils.data.DataLoader(subset, batch_size=2, generator=torch.Generator())
    (batch,) = next(iter(loader))
    assert batch.tolist() == [0.0, 2.0]
    with pytest.raises(ValueError, match="expected one of 5"):
        pe.data.load_subset(path, num_samples=5)


def test_a_file_that_was_changed_or_lost_its_note_is_refused(tmp_path):
    path = pe.data.save_subset(tmp_path / "a.npy", torch.tensor([0, 2]), 4)
    note = tmp_path / "a.npy.json"
    kept = note.read_text()
    note.write_text(kept.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="format"):
        pe.data.load_subset(path)
    note.write_text(kept)
    np.save(path, np.array([0, 3]))
    with pytest.raises(ValueError, match="not the array"):
        pe.data.load_subset(path)
    note.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.npy\.json"):
        pe.data.load_subset(path)


@pytest.mark.parametrize("indices", [[2, 1], [1, 1], [-1, 1], [3, 4]])
def test_indices_that_are_no_subset_leave_no_file(tmp_path, indices):
    with pytest.raises(ValueError, match="indices"):
        pe.data.save_subset(tmp_path / "a.npy", torch.tensor(indices), 4)
    with pytest.raises(ValueError, match=r"\.npy"):
        pe.data.save_subset(tmp_path / "a.txt", torch.tensor([0]), 4)
    assert list(tmp_path.iterdir()) == []
