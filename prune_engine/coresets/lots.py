# SPDX-License-Identifier: Apache-2.0
"""Which classes are chosen from at a time."""

from __future__ import annotations

from collections.abc import Iterator

from prune_engine.coresets.pairs import few

TOGETHER = 2**30  # bytes of the matrices of a lot, float32


def lots(sizes: list[int], counts: list[int], most: int) -> Iterator[list[int]]:
    """Put the classes that give samples into lots, in their order.

    Args:
        sizes: samples of each class.
        counts: how many each is to give.
        most: of a lot; 0: as many as ``TOGETHER`` has room for, padded to the largest of them.

    Yields:
        The classes of a lot: one, or several whose matrices are kept (``pairs.few``).
    """
    lot: list[int] = []
    largest = 0
    for label in (each for each, count in enumerate(counts) if count):
        size = max(largest, sizes[label])
        room = len(lot) < most if most else 4 * size**2 * (len(lot) + 1) <= TOGETHER
        if lot and not (room and few(size)):
            yield lot
            lot, size = [], sizes[label]
        lot.append(label)
        largest = size
    if lot:
        yield lot
