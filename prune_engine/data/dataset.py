# SPDX-License-Identifier: Apache-2.0
"""A data set whose items carry their own position: the index travels inside the batch."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Container, Mapping, MutableMapping, Sequence
from copy import copy
from functools import cache
from typing import Any, cast

from torch.utils.data import Dataset, IterableDataset

INDEX_KEY = "sample_index"
# What a data set of Hugging Face's or torchdata's kind has, and returns another one by.
ANOTHER_DATA_SET = frozenset(
    (
        "map",
        "filter",
        "select",
        "shuffle",
        "sort",
        "take",
        "skip",
        "shard",
        "train_test_split",
        "flatten_indices",
        "batch",
        "repeat",
        "to_iterable_dataset",
        "with_format",
        "with_transform",
        "remove_columns",
        "rename_column",
        "rename_columns",
        "select_columns",
        "add_column",
        "add_item",
        "cast",
        "cast_column",
    )
)


class IndexedDataset(Dataset[Any]):
    """Append each item's dataset position to it.

    Tuples and lists get the index appended, mappings and named tuples get ``sample_index``, all in
    their own types; anything else becomes ``(item, index)``. None stays None: a collate function
    that leaves such items out works, and the engine, which does not see these samples, must be made
    with ``coverage="ignore"`` or ``"warn"``. Whatever looks ahead (workers, prefetchers, gradient
    accumulation) then cannot credit a loss to the wrong sample.

    Args:
        dataset: a map-style data set.

    Raises:
        TypeError: it is an ``IterableDataset`` or has no length: its items have no position.
        ValueError: its items already have the key or field ``sample_index``.

    Example:
        >>> IndexedDataset([("a", 0), ("b", 1)])[1]
        ('b', 1, 1)
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                "dataset must be map-style (__getitem__ and __len__), got an IterableDataset, "
                "whose samples have no stable index: yield (item, index) from it yourself and "
                "filter with prune_engine.host.keep in its workers"
            )
        if isinstance(dataset, type):
            raise TypeError(f"dataset must be a data set, got the class {dataset.__name__}")
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset must be map-style (__getitem__ and __len__), got {type(dataset).__name__}"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the length of the data set."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return one item with its position."""
        return attach_index(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return a batch of items with their positions, fetched at once where possible."""
        # Read from the data set itself, never through __getattr__: a Subset maps positions there.
        fetch = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[i] for i in indices] if fetch is None else fetch(indices)
        if len(items) != len(indices):
            raise ValueError(
                f"dataset.__getitems__ must return {len(indices)} items, got {len(items)}"
            )
        return [attach_index(item, i) for item, i in zip(items, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        """Forward public attributes (``classes``, ``targets``, ...) to the data set."""
        # Private names and names asked for before __init__ ran (unpickling) must not recurse.
        if name.startswith("_") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in ANOTHER_DATA_SET:
            raise AttributeError(
                f"{name} of an indexed data set would return one without its positions: wrap last, "
                f"engine.dataset(dataset.{name}(...))"
            )
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Forward attributes that the data set has (``transform``) to it, as reading does."""
        inner = self.__dict__.get("dataset")
        if name != "dataset" and not name.startswith("_") and hasattr(inner, name):
            setattr(inner, name, value)
        else:
            super().__setattr__(name, value)


def attach_index(item: Any, index: int) -> Any:
    """Put an index into one item, which stays of its type.

    Args:
        item: a tuple, list, mapping, None or anything else.
        index: its dataset position.

    Returns:
        A new item; the old one is not changed. A named tuple gets a field more, ``sample_index``,
        and is still an instance of its class. None, which a dataset returns for what it cannot
        read, stays None for the collate function to leave out.

    Raises:
        ValueError: a mapping or named tuple already has the name.

    Example:
        >>> attach_index({"x": 1}, 7)
        {'x': 1, 'sample_index': 7}
    """
    if item is None:
        return None
    if isinstance(item, Mapping):
        return _into_mapping(cast("Mapping[Any, Any]", item), index)
    if isinstance(item, tuple):
        return _into_tuple(cast("tuple[Any, ...]", item), index)
    if isinstance(item, list):
        longer = copy(cast("list[Any]", item))
        longer.append(index)
        return longer
    return item, index


def _into_mapping(item: Mapping[Any, Any], index: int) -> Any:
    _refuse_taken(item, index)
    if isinstance(item, MutableMapping):
        longer = copy(item)
        longer[INDEX_KEY] = index
        if INDEX_KEY not in item:
            return longer
        del item[INDEX_KEY]  # the copy shares what it holds with the item, which must stay as it is
    made: Any = type(item)
    try:
        return made({**item, INDEX_KEY: index})
    except TypeError:  # it is made from something else than a mapping
        return {**item, INDEX_KEY: index}


def _into_tuple(item: tuple[Any, ...], index: int) -> Any:
    kind: Any = type(item)
    if kind is tuple:
        return (*item, index)
    if hasattr(kind, "_fields"):
        _refuse_taken(kind._fields, index)
        return _rebuild(kind, (*item, index))
    try:
        return kind((*item, index))
    except TypeError:  # it is made from something else than one sequence
        return (*item, index)


def _refuse_taken(names: Container[Any], index: int) -> None:
    if INDEX_KEY in names:
        raise ValueError(
            f"dataset items must not have the key {INDEX_KEY!r}, got one at index {index}: "
            "rename it"
        )


@cache
def _longer(kind: type) -> Any:
    """Return a named tuple's class with one field more; a subclass, so that it has its methods."""
    named: Any = kind
    fields: tuple[str, ...] = (*named._fields, INDEX_KEY)
    base: Any = namedtuple(kind.__name__, fields)  # pyright: ignore[reportUntypedNamedTuple]

    def reduce(self: Any) -> Any:  # a class made here has no name that another process could find
        return _rebuild, (kind, tuple(self))

    body = {"__slots__": (), "__reduce__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (base, kind), body)


def _rebuild(kind: type, values: tuple[Any, ...]) -> Any:
    return _longer(kind)(*values)
