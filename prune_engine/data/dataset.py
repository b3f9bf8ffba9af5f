# SPDX-License-Identifier: Apache-2.0
"""A data set whose items carry their own position: the index travels inside the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch.utils.data import Dataset, IterableDataset

INDEX_KEY = "sample_index"


class IndexedDataset(Dataset[Any]):
    """Append each item's dataset position to it.

    Tuples and lists get the index appended, dicts get ``sample_index``, anything else becomes
    ``(item, index)``. Whatever looks ahead (workers, prefetchers, gradient accumulation) then
    cannot credit a loss to the wrong sample.

    Args:
        dataset: a map-style data set.

    Raises:
        TypeError: it is an ``IterableDataset`` or has no length: its items have no position.
        ValueError: its dict items already have the key ``sample_index``.

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
        return getattr(self.dataset, name)


def attach_index(item: Any, index: int) -> Any:
    """Put an index into one item.

    Args:
        item: a tuple, list, mapping or anything else.
        index: its dataset position.

    Returns:
        A new item; the old one is not changed.

    Raises:
        ValueError: a mapping already has the key.

    Example:
        >>> attach_index({"x": 1}, 7)
        {'x': 1, 'sample_index': 7}
    """
    if isinstance(item, Mapping):
        if INDEX_KEY in item:
            raise ValueError(
                f"dataset items must not have the key {INDEX_KEY!r}, got one at index {index}: "
                "rename it"
            )
        return {**cast(Mapping[Any, Any], item), INDEX_KEY: index}
    if isinstance(item, tuple):
        return (*cast(tuple[Any, ...], item), index)
    if isinstance(item, list):
        return [*cast(list[Any], item), index]
    return item, index
