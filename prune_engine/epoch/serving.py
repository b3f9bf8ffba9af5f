# SPDX-License-Identifier: Apache-2.0
"""What was served and what was trained: the bookkeeping of one pass, and of a batch seen again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any

from torch import Tensor


class Serving:
    """One pass over an epoch, begun by whoever iterates a sampler: a training, or only a look.

    Args:
        epoch: in which it began.
        start: position of the epoch at which it began.
        align: it serves a multiple of this many positions.
        shards: ranks that share them.
        world: ranks that train.
        mark: what its run had counted on this rank when it began.

    Example:
        >>> serving = Serving(0, 0, 1, 2, 2, 0)
        >>> serving.hand_out(iter([7, 9]), 2)
        >>> next(serving.chunk), serving.drawn
        (7, 2)
    """

    def __init__(
        self, epoch: int, start: int, align: int, shards: int, world: int, mark: int
    ) -> None:
        self.epoch, self.start = epoch, start
        self.align, self.shards, self.world = align, shards, world
        self.mark = mark
        self.replayed = False  # it begins with placeholders, and nothing was observed of it yet
        self.out = 0  # positions over all shards that left in chunks
        self.chunk: Iterator[int] = iter(())  # the last one, of which some may be left
        self.owner: Callable[[], object] | None = None  # a weak reference to the iterator

    def hand_out(self, chunk: Iterator[int], size: int) -> None:
        """Note that a rank's next chunk of so many positions leaves.

        Args:
            chunk: its iterator, which says how many of them are left.
            size: of the chunk.
        """
        self.out += size * self.shards
        self.chunk = chunk

    @property
    def drawn(self) -> int:
        """Positions over all shards that were drawn: at least those that were trained."""
        return self.out - length_hint(self.chunk) * self.shards

    @property
    def limit(self) -> int:
        """What its run can have counted on this rank at most."""
        return self.mark + self.drawn // self.world

    @property
    def closed(self) -> bool:
        """Whether its iterator is gone, so that nothing more can come of it."""
        return self.owner is not None and self.owner() is None


class LastBatch:
    """Tells a batch that is observed again, whole or in pieces, from the next one.

    By the tensor of its indices, never by what is in it, which would make the host wait: the same
    tensor, or a view of the same one, is the same batch, unless it was written to since. A second
    tensor with the same indices is another batch.

    Example:
        >>> import torch
        >>> last, indices = LastBatch(), torch.arange(4)
        >>> last.fresh(indices, 4), last.fresh(indices, 4), last.fresh(indices[2:], 2)
        (4, 0, 0)
        >>> last.fresh(torch.arange(4), 4), last.fresh(indices[:3], 3), last.fresh(indices, 4)
        (4, 3, 1)
    """

    def __init__(self) -> None:
        self.base: Tensor | None = None  # held, so that no other tensor is taken for it
        self.version = 0
        self.whole = 0  # of the base, what was observed at once and is not yet noted below
        self.size = 0  # of what was observed last
        self._first = self._stop = 0  # of the base, what was observed
        self._gapped: set[tuple[int, int, int]] = set()  # pieces with gaps in them
        self._in_gapped = 0

    def fresh(self, indices: Tensor, size: int) -> int:
        """Return how many of a batch's samples are observed for the first time, and note it.

        Args:
            indices: [B], as the loop passed them.
            size: B.
        """
        base: Any = indices._base
        if base is None:
            base = indices
        if base is not self.base or self._written(base):
            self._begin(base)
        elif self.whole:
            self._first, self._stop, self.whole = 0, self.whole, 0
            self._gapped.clear()
            self._in_gapped = 0
        fresh = self._piece(indices, size)
        self.size = fresh or self.size
        return fresh

    def _begin(self, base: Any) -> None:
        self.base, self.whole = base, 0
        self.version = 0 if base.is_inference() else base._version
        self._first = self._stop = self._in_gapped = 0
        self._gapped.clear()

    def _written(self, base: Any) -> bool:
        """Say whether the tensor observed last was written to since."""
        return not base.is_inference() and base._version != self.version

    def again(self, indices: Tensor) -> bool:
        """Say whether nothing of a batch is new: all of it was observed, last.

        A tensor may serve many batches, each a view of it, so to be of the same one is not enough.
        """
        base: Any = indices._base
        if base is None:
            base = indices
        if base is not self.base or indices.dim() != 1 or self._written(base):
            return False
        first, step, size = int(indices.storage_offset()), indices.stride(0), indices.shape[0]
        seen = (0, self.whole) if self.whole else (self._first, self._stop)
        if not self.whole and (first, step, size) in self._gapped:
            return True
        return seen[0] <= first and first + step * max(0, size - 1) + 1 <= seen[1]

    def _piece(self, indices: Tensor, size: int) -> int:
        """Count what of a piece of the last tensor was not observed before."""
        first, step = int(indices.storage_offset()), indices.stride(0)
        if step != 1 and size > 1:
            return self._gapped_piece((first, step, size))
        stop, seen = first + size, self._stop - self._first
        if not seen or first > self._stop or stop < self._first:
            self._first, self._stop = first, stop  # of a tensor that serves many batches
            return size
        self._first, self._stop = min(first, self._first), max(stop, self._stop)
        return self._stop - self._first - seen

    def _gapped_piece(self, piece: tuple[int, int, int]) -> int:
        if piece in self._gapped or self.base is None:
            return 0
        self._gapped.add(piece)
        counted = self._stop - self._first + self._in_gapped
        added = max(0, min(piece[2], self.base.numel() - counted))
        self._in_gapped += added
        return added
