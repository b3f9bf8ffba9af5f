# SPDX-License-Identifier: Apache-2.0
"""Items of all types that data sets return: the index is in them, and they are what they were."""

from __future__ import annotations

import pickle
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import default_collate

import prune_engine as pe

Pair = namedtuple("Pair", "x y")


class Sample(NamedTuple):
    """A named tuple with a method and a default."""

    x: torch.Tensor
    y: int = 0

    def doubled(self) -> Any:
        return 2 * self.x


class Encoding(UserDict):
    """What a tokenizer returns: a mapping with ``to``."""

    def to(self, device: str) -> Encoding:
        return Encoding({name: value.to(device) for name, value in self.data.items()})


class Row(list):
    """A list of its own type."""


class Point(tuple):
    """A tuple of its own type."""

    __slots__ = ()


@dataclass
class Record:
    """No container: it stays whole."""

    x: int


def item_of(value: Any) -> Any:
    return pe.data.IndexedDataset([value, value])[1]


def test_a_named_tuple_stays_one_and_has_a_field_more():
    item = item_of(Sample(torch.tensor(3.0), 4))
    assert isinstance(item, Sample)
    assert (item.x.item(), item.y, item.sample_index) == (3.0, 4, 1)
    assert item._fields == ("x", "y", "sample_index") and len(item) == 3
    assert item.doubled().item() == 6.0
    assert item._replace(y=5) == (torch.tensor(3.0), 5, 1)
    assert item._asdict()["sample_index"] == 1
    assert repr(item) == "Sample(x=tensor(3.), y=4, sample_index=1)"
    assert type(item_of(Pair(1, 2))) is type(item_of(Pair(3, 4))), "one class for all"
    x, y, index = item_of(Pair(1, 2))
    assert (x, y, index) == (1, 2, 1)


def test_a_named_tuple_travels_between_processes():
    item = pickle.loads(pickle.dumps(item_of(Sample(torch.tensor(3.0), 4))))
    assert isinstance(item, Sample) and (item.y, item.sample_index) == (4, 1)


class Named(torch.utils.data.Dataset):
    """Twelve named tuples."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.tensor(float(index)), index % 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_named_tuples_are_named_tuples(workers):
    engine = pe.PruneEngine(12, pe.KeepAll(), num_epochs=1)
    seen = []
    for batch in engine.loader(Named(), 4, num_workers=workers):
        assert isinstance(batch, Sample)
        assert batch.x.tolist() == batch.sample_index.tolist()
        engine.observe(batch.x, batch.sample_index)
        seen += batch.sample_index.tolist()
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(
    "mapping",
    [OrderedDict(x=1), Encoding(x=torch.ones(1)), defaultdict(int, x=1), {"x": 1}],
    ids=lambda mapping: type(mapping).__name__,
)
def test_a_mapping_keeps_its_type(mapping):
    item = item_of(mapping)
    assert type(item) is type(mapping)
    assert item["sample_index"] == 1 and item["x"] == 1
    assert "sample_index" not in mapping, "the data set's own item is not changed"


def test_an_encoding_moves_and_an_immutable_mapping_stays_one():
    encoding = item_of(Encoding(x=torch.ones(1)))
    encoding["sample_index"] = torch.tensor(1)
    assert encoding.to("cpu")["sample_index"].item() == 1
    assert type(item_of(MappingProxyType({"x": 1}))) is MappingProxyType


def test_lists_and_tuples_keep_their_types():
    row, point = item_of(Row([1, 2])), item_of(Point((1, 2)))
    assert (type(row), row) == (Row, [1, 2, 1])
    assert (type(point), point) == (Point, (1, 2, 1))
    assert item_of((1, 2)) == (1, 2, 1) and type(item_of((1, 2))) is tuple
    assert item_of(Record(3)) == (Record(3), 1), "control: what is no container is paired"
    assert item_of(torch.return_types.max((torch.ones(1), torch.ones(1)))) is not None


class Gaps(torch.utils.data.Dataset):
    """Every third item cannot be read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return None if index % 3 == 0 else (torch.tensor(float(index)), index)


def without_none(items: list[Any]) -> Any:
    return default_collate([item for item in items if item is not None])


def test_none_reaches_a_collate_function_that_leaves_it_out():
    engine = pe.PruneEngine(12, pe.KeepAll(), num_epochs=1, coverage="ignore")
    seen = []
    for x, y, indices in engine.loader(Gaps(), 6, collate_fn=without_none):
        assert x.tolist() == y.tolist() == indices.tolist()
        engine.observe(x, indices)
        seen += indices.tolist()
    assert sorted(seen) == [i for i in range(12) if i % 3]
    assert engine.end_epoch().missing == 4
    assert pe.data.IndexedDataset(Gaps()).__getitems__([0, 1])[0] is None
    strict = pe.PruneEngine(12, pe.KeepAll(), num_epochs=1)
    for x, _, indices in strict.loader(Gaps(), 6, collate_fn=without_none):
        strict.observe(x, indices)
    with pytest.raises(pe.CoverageError):  # control: samples that are left out are not unnoticed
        strict.end_epoch()


@pytest.mark.parametrize("item", [{"sample_index": 1}, namedtuple("Taken", "sample_index")(1)])
def test_a_name_that_is_taken_is_refused(item):
    with pytest.raises(ValueError, match="must not have the key 'sample_index'"):
        item_of(item)


class Sharing(MutableMapping[str, Any]):
    """A mapping whose shallow copy holds the same dictionary."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values_of = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self.values_of[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.values_of[key] = value

    def __delitem__(self, key: str) -> None:
        del self.values_of[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)


def test_an_item_whose_copy_shares_its_values_is_not_changed():
    item = Sharing({"x": 1})
    dataset = pe.PruneEngine(1, pe.KeepAll(), num_epochs=1).dataset([item])
    for _ in range(2):  # the item is kept in memory, and served in every epoch
        served = dataset[0]
        assert type(served) is Sharing
        assert dict(served) == {"x": 1, "sample_index": 0}
        assert dict(item) == {"x": 1}
