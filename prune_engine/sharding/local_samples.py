# SPDX-License-Identifier: Apache-2.0
"""What one rank trains in an epoch, where the scores are divided: its samples, and what it saw."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.bands import SUM_WORDS
from prune_engine.errors import PruneEngineError
from prune_engine.lasting import stay
from prune_engine.ops.checks import INDEX_DTYPES, ObserveState, check_vector
from prune_engine.ops.to_host import host_ints
from prune_engine.sharding.layout import shared


class Share:
    """The samples that a rank trains in one epoch, their weight classes, and their pending records.

    A batch is recorded here, whoever owns its samples, so that a step needs no word from another
    rank; the records go to the owners when the epoch ends. 21 bytes a sample.

    Args:
        samples: int64 [m], ascending: numbers in the data set.
        classes: uint8 [m], this epoch's decision for each.
        place: int32 [m]: the k-th position of this rank is ``samples[place[k]]``.
        num_kept: positions of the epoch over all ranks.
        start: those before it were trained before.
        shard: (rank, world size).

    Attributes:
        positions: of the epoch that this rank trains.
        largest: how many samples the largest share has.
        records: int64 [m], changed by ``observe``; 0 = not seen in this epoch.
        score_sum: int64 [10], changed along with them; nobody reads it.

    Example:
        >>> share = Share(torch.tensor([4, 9]), torch.tensor([1, 2], dtype=torch.uint8),
        ...               torch.tensor([1, 0], dtype=torch.int32), 4, 0, (0, 2))
        >>> share.find(torch.tensor([9, 5])).tolist(), share.order(range(2, 4, 2)).tolist()
        ([1, -1], [4])
    """

    def __init__(
        self,
        samples: Tensor,
        classes: Tensor,
        place: Tensor,
        num_kept: int,
        start: int,
        shard: tuple[int, int],
    ) -> None:
        self.samples = samples
        self.classes = classes
        self.place = place
        self.num_kept = num_kept
        self.positions = shared(num_kept, start, *shard)
        self.largest = len(shared(num_kept, start, 0, shard[1]))
        self.records = torch.zeros_like(samples)
        self.score_sum = samples.new_zeros(SUM_WORDS)
        # As a buffer's own (``places`` looks the samples up); the next epoch's are captured anew.
        stay(self.records, self.score_sum, self.classes, self.samples)

    def find(self, indices: Tensor) -> Tensor:
        """Say where samples are in this share, without waiting for the device.

        Args:
            indices: [B] int64 | int32.

        Returns:
            int64 [B], -1 where a sample is not this rank's.
        """
        size = self.samples.shape[0]
        wanted = indices.to(torch.int64)
        if size == 0:
            return torch.full_like(wanted, -1)
        at = torch.searchsorted(self.samples, wanted).clamp_(max=size - 1)
        return torch.where(self.samples[at] == wanted, at, -1)

    def arguments(self, own: ObserveState) -> ObserveState:
        """Return what a batch is recorded in, in place of the rank's own records and classes."""
        _, _, counters, step, _, weight_table, epoch = own
        return (self.records, self.score_sum, counters, step, self.classes, weight_table, epoch)

    def places(self, indices: Tensor) -> Tensor:
        """Say where a batch is recorded.

        Args:
            indices: [B] int64 | int32, samples of this share; on a device others are counted as
                out of range, with the index -1.

        Returns:
            int64 [B], the batch's places.

        Raises:
            IndexError: a sample is not this rank's (on the cpu).
        """
        check_vector("indices", indices, INDEX_DTYPES, device=self.records.device)
        places = self.find(indices)
        if places.is_cpu and not torch.compiler.is_compiling() and bool((places < 0).any()):
            first = int(indices[places < 0][0])
            raise IndexError(
                f"indices must be samples that this rank was served in the epoch, got {first}"
            )
        return places

    def order(self, positions: Tensor | range) -> Tensor:
        """Return the samples at some positions of this rank.

        Args:
            positions: int64 [M] or a range, each one of this rank's.

        Returns:
            int64 [M], in the order of ``positions``.

        Raises:
            PruneEngineError: a position is another rank's, whose samples are not known here.
        """
        mine = self.positions
        if isinstance(positions, range) and positions.step > 0:
            step = positions.step if len(positions) > 1 else mine.step
            if not positions:
                return self.samples[:0]
            if positions[0] in mine and positions[-1] in mine and step % mine.step == 0:
                first, last = mine.index(positions[0]), mine.index(positions[-1])
                return self.samples[self.place[first : last + 1 : step // mine.step]]
            raise self._foreign(positions)
        if isinstance(positions, range):
            positions = torch.tensor([*positions], dtype=torch.int64, device=self.samples.device)
        at = torch.div(positions - mine.start, mine.step, rounding_mode="floor")
        inside = (at >= 0) & (at < len(mine)) & (mine.start + at * mine.step == positions)
        if not bool(inside.all()):
            raise self._foreign(host_ints(positions[~inside][:3]))
        return self.samples[self.place[at]]

    def _foreign(self, came: object) -> PruneEngineError:
        return PruneEngineError(
            f"where the scores are divided a rank knows its own positions, {self.positions}, of "
            f"the epoch's {self.num_kept}, got {came}"
        )
