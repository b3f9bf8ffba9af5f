# SPDX-License-Identifier: Apache-2.0
"""The control of policies over fixed batches: drop batches for ever, at random."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from prune_engine.bands import check_fraction
from prune_engine.plain import store_plain
from prune_engine.policies.batches.base import BatchMemory, BatchPolicy, check_batches
from prune_engine.policies.batches.pacing import planned_count


@dataclass(frozen=True)
class RandomBatches(BatchPolicy):
    """Drop fixed batches for ever, at random: the control beside every claim of ``BPAS``.

    The batches that stay in an epoch stay in all before it, as under B-PAS; which ones is a keyed
    bijection of the seed. ``kept`` repeats the counts of a run of B-PAS: equal saving, epoch by
    epoch.

    Args:
        batch_size: B, over all ranks.
        target_dsi: the share of the data that the run saves, in [0, 1), unless ``kept`` is given.
        kept: batches in each epoch; the last number holds for those that follow.
        shuffle_batches: serve the batches in another order every epoch.
        drop_last: leave an incomplete last batch out of the run; else it is served last.
        min_batches: so many stay at least with ``target_dsi``.

    Raises:
        TypeError: a parameter is of the wrong type.
        ValueError: a parameter is out of range.

    Example:
        >>> RandomBatches(64, kept=(10, 10, 8)).needs_total
        False
    """

    batch_size: int = 128
    target_dsi: float = 0.4
    _: KW_ONLY
    kept: tuple[int, ...] = ()
    shuffle_batches: bool = False
    drop_last: bool = False
    min_batches: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "kept", tuple(self.kept))
        except TypeError as error:
            raise TypeError(f"kept must be ints, got {self.kept!r}") from error
        store_plain(self)
        check_batches(
            self.batch_size,
            self.min_batches,
            shuffle_batches=self.shuffle_batches,
            drop_last=self.drop_last,
        )
        check_fraction("target_dsi", self.target_dsi, zero=True, one=False)
        counts: tuple[Any, ...] = self.kept
        if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
            raise TypeError(f"kept must be ints, got {self.kept!r}")
        if any(after > before for before, after in zip(self.kept, self.kept[1:], strict=False)):
            raise ValueError(f"kept must not grow, for what is dropped stays so, got {self.kept}")
        if self.kept and self.kept[-1] < 0:
            raise ValueError(f"kept must be at least 0, got {self.kept[-1]}")

    @property
    def needs_total(self) -> bool:
        """True unless the counts are given."""
        return not self.kept

    def decide(self, memory: BatchMemory, epoch: int) -> tuple[Tensor, None]:
        """Keep the first so many batches of a random ranking.

        Args:
            memory: the run's; not changed.
            epoch: the epoch to decide.

        Returns:
            Who is alive; no threshold.
        """
        return memory.drawn(self._count(memory, epoch)), None

    def _count(self, memory: BatchMemory, epoch: int) -> int:
        everything = memory.batches.num_batches
        if self.kept:
            return min(everything, self.kept[min(epoch, len(self.kept) - 1)])
        if epoch < 2 or memory.total is None:
            return everything
        return planned_count(
            everything,
            epoch,
            sum(memory.counts),
            memory.counts[-1],
            memory.total,
            self.target_dsi,
            max(1, self.min_batches),  # a budget is spent to the last epoch
        )
