# SPDX-License-Identifier: Apache-2.0
"""IndexedDataset: every item carries its own position, whatever the data set looks like."""

from __future__ import annotations

import copy
import pickle
from types import MappingProxyType

import pytest
import torch
from _runs import Numbers, Records
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

import prune_engine as pe


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (("a", 1), ("a", 1, 2)),
        (["a", 1], ["a", 1, 2]),
        ({"x": "a"}, {"x": "a", "sample_index": 2}),
        (MappingProxyType({"x": "a"}), {"x": "a", "sample_index": 2}),
        ("a", ("a", 2)),
        (7, (7, 2)),
        (None, None),
        ((), (2,)),
    ],
)
def test_items_of_every_kind(item, expected):
    wrapped = pe.data.IndexedDataset([None, None, item])
    assert wrapped[2] == expected
    assert wrapped.__getitems__([2, 2]) == [expected, expected]


def test_items_are_not_changed():
    items = [{"x": 1}, [2]]
    before = copy.deepcopy(items)
    wrapped = pe.data.IndexedDataset(items)
    assert wrapped[0] is not items[0]
    assert wrapped[1] == [2, 1]
    assert items == before


def test_a_key_of_that_name_is_refused():
    wrapped = pe.data.IndexedDataset([{"sample_index": 3}])
    with pytest.raises(ValueError, match=r"'sample_index'.*index 0"):
        wrapped[0]


class Fetched(Numbers):
    """Counts how it is read."""

    def __init__(self, surplus: int = 0) -> None:
        super().__init__(10)
        self.calls = []
        self.surplus = surplus

    def __getitems__(self, indices):
        self.calls.append(list(indices))
        return [self[i] for i in indices] + [(0, 0)] * self.surplus


def test_getitems_is_forwarded_once_per_batch():
    inner = Fetched()
    wrapped = pe.data.IndexedDataset(inner)
    assert wrapped.__getitems__([4, 1]) == [(40, 1, 4), (10, 1, 1)]
    assert inner.calls == [[4, 1]]


def test_a_getitems_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="must return 2 items, got 3"):
        pe.data.IndexedDataset(Fetched(surplus=1)).__getitems__([4, 1])


def test_tensor_data_sets_and_subsets_and_concatenations():
    tensors = TensorDataset(torch.arange(6) * 10, torch.arange(6))
    assert [int(v) for v in pe.data.IndexedDataset(tensors)[5]] == [50, 5, 5]
    subset = Subset(Numbers(), [30, 20, 10])
    assert pe.data.IndexedDataset(subset)[1] == (200, 2, 1), "the position in what was wrapped"
    assert pe.data.IndexedDataset(subset).__getitems__([2, 0]) == [(100, 1, 2), (300, 0, 0)]
    both = pe.data.IndexedDataset(ConcatDataset([Numbers(3), Numbers(4)]))
    assert [both[i] for i in (2, 3)] == [(20, 2, 2), (0, 0, 3)]
    outside = Subset(pe.data.IndexedDataset(Numbers()), [30, 20, 10])
    assert outside[1] == (200, 2, 20), "wrapped first, the original position"


@pytest.mark.parametrize("kind", [Numbers, Records])
def test_pickles_and_copies(kind):
    wrapped = pe.data.IndexedDataset(kind(5))
    for twin in (pickle.loads(pickle.dumps(wrapped)), copy.deepcopy(wrapped), copy.copy(wrapped)):
        assert len(twin) == 5
        assert twin[3] == wrapped[3]


def test_public_attributes_are_forwarded_and_private_ones_are_not():
    wrapped = pe.data.IndexedDataset(Numbers())
    assert wrapped.classes == ("zero", "one", "two")
    for name in ("missing", "_hidden", "__array__", "dataset_of"):
        with pytest.raises(AttributeError, match=name):
            getattr(wrapped, name)
    with pytest.raises(AttributeError):
        getattr(
            pe.data.IndexedDataset.__new__(pe.data.IndexedDataset), name
        )  # before __init__, as pickle


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), r"IterableDataset.*\(item, index\)"),
        (iter([1]), "map-style"),
        ({1, 2}, "map-style.*set"),
    ],
)
def test_what_has_no_positions_is_refused(dataset, message):
    with pytest.raises(TypeError, match=message):
        pe.data.IndexedDataset(dataset)


def test_the_engine_wraps_once_and_checks_the_length():
    engine = pe.PruneEngine(Numbers(), pe.KeepAll())
    wrapped = engine.dataset(Numbers())
    assert engine.dataset(wrapped) is wrapped
    with pytest.raises(ValueError, match="dataset must have 100 items, got 7"):
        engine.dataset(Numbers(7))
