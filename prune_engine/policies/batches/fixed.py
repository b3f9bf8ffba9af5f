# SPDX-License-Identifier: Apache-2.0
"""Fixed batches: the same samples stand together in every epoch; whole batches come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import MAX_EPOCH

MEMBERS = MAX_EPOCH  # the order's epoch word of the membership: no run gets as far
CHUNK = 1 << 20  # samples at a time: what is made on the way stays small


@dataclass(frozen=True)
class FixedBatches:
    """N samples dealt once into batches: batch b holds positions b B .. b B + B - 1 of an order.

    The order is that of ``ops.order`` under an epoch word that no run reaches, so membership is a
    pure function of (seed, N): nothing is stored to resume, and no world size changes it.

    Args:
        num_samples: N, in 0..2^31-1.
        batch_size: B, over all ranks; at least 1.
        drop_last: leave the samples of an incomplete last batch out of the run.
        seed: in 0..2^63-1.
        device: where ``batch_of`` lives.
        backend: which kernels.

    Raises:
        ValueError: not even one batch.

    Example:
        >>> batches = FixedBatches(7, 3, False, 0, torch.device("cpu"), "auto")
        >>> batches.num_batches, [batches.size_of(b) for b in range(3)]
        (3, [3, 3, 1])
        >>> sorted(batches.members(torch.arange(3)).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """

    num_samples: int
    batch_size: int
    drop_last: bool
    seed: int
    device: torch.device
    backend: str
    batch_of: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_batches == 0 and self.num_samples > 0:
            raise ValueError(
                f"batch_size must be at most the {self.num_samples} samples with drop_last=True, "
                f"got {self.batch_size}"
            )
        # int32 [N]: the batch of each sample; one past the last for samples left out.
        batch_of = torch.empty(self.num_samples, dtype=torch.int32, device=self.device)
        at = 0
        for members in self._chunks(torch.arange(self._all_batches, device=self.device)):
            position = torch.arange(at, at + members.shape[0], device=self.device)
            slot = (position // self.batch_size).clamp_(max=self.num_batches)
            batch_of[members.to(torch.int64)] = slot.to(torch.int32)
            at += members.shape[0]
        object.__setattr__(self, "batch_of", batch_of)

    @property
    def num_batches(self) -> int:
        """How many batches the run starts with."""
        return self.num_samples // self.batch_size if self.drop_last else self._all_batches

    @property
    def whole_batches(self) -> int:
        """How many of them are full."""
        return self.num_samples // self.batch_size

    @property
    def dealt(self) -> int:
        """How many samples are in a batch: all, or all but those of an incomplete one."""
        return min(self.num_samples, self.num_batches * self.batch_size)

    @property
    def _all_batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def size_of(self, batch: int) -> int:
        """Return the number of samples of a batch.

        Args:
            batch: in 0..num_batches-1.
        """
        return min(self.batch_size, self.num_samples - batch * self.batch_size)

    def sizes(self) -> Tensor:
        """Return the number of samples of every batch, int64 [num_batches]."""
        sizes = torch.full((self.num_batches,), self.batch_size, device=self.device)
        if self.num_batches > self.whole_batches:
            sizes[-1] = self.size_of(self.num_batches - 1)
        return sizes

    def members(self, batches: Tensor) -> Tensor:
        """List the samples of some batches.

        Args:
            batches: int64 [M], each in 0..num_batches-1; an incomplete one last.

        Returns:
            int32, batch by batch, B each.
        """
        parts = list(self._chunks(batches))
        empty = torch.empty(0, dtype=torch.int32, device=self.device)
        return torch.cat(parts) if parts else empty

    def _chunks(self, batches: Tensor) -> Iterator[Tensor]:
        everyone = torch.arange(self.num_samples, dtype=torch.int32, device=self.device)
        within = torch.arange(self.batch_size, device=self.device)
        step = max(1, CHUNK // self.batch_size)
        for at in range(0, batches.shape[0], step):
            part = batches[at : at + step]
            positions = (part[:, None] * self.batch_size + within).reshape(-1)
            # Only the last batch reaches beyond the end, and it stands last.
            positions = positions[: positions.shape[0] - self._beyond(part)]
            yield ops.order(
                everyone, positions, seed=self.seed, epoch=MEMBERS, backend=self.backend
            )

    def _beyond(self, part: Tensor) -> int:
        return max(0, (int(part[-1].item()) + 1) * self.batch_size - self.num_samples)

    def keep(self, alive: Tensor, shuffle: bool) -> KeptBatches:
        """Return the batches that an epoch serves.

        Args:
            alive: bool [num_batches].
            shuffle: serve them in another order every epoch.

        Returns:
            The kept batches; this reads their number from the device.
        """
        listed = alive.nonzero()[:, 0]  # ascending: an incomplete batch stands last
        whole = listed.shape[0]
        if self.num_batches > self.whole_batches and whole:
            whole -= int(int(listed[-1].item()) == self.num_batches - 1)
        return KeptBatches(self, listed, whole, shuffle)

    def classes(self, alive: Tensor) -> Tensor:
        """Return the weight class of every sample: 1 in a living batch, else 0.

        Args:
            alive: bool [num_batches].

        Returns:
            uint8 [N].
        """
        table = torch.zeros(self.num_batches + 1, dtype=torch.uint8, device=self.device)
        table[: self.num_batches] = alive
        return table.index_select(0, self.batch_of)


@dataclass(frozen=True)
class KeptBatches:
    """The batches of one epoch and their order.

    Args:
        batches: all of them.
        listed: int64, the kept ones, ascending.
        whole: how many of ``listed`` are full.
        shuffle: whether the order changes from epoch to epoch.

    Example:
        >>> fixed = FixedBatches(7, 3, False, 0, torch.device("cpu"), "auto")
        >>> kept = fixed.keep(torch.tensor([True, False, True]), shuffle=True)
        >>> kept.samples().tolist() == fixed.members(torch.tensor([0, 2])).tolist()
        True
    """

    batches: FixedBatches
    listed: Tensor
    whole: int
    shuffle: bool

    @property
    def num_batches(self) -> int:
        """How many batches are kept."""
        return self.listed.shape[0]

    def samples(self) -> Tensor:
        """List the samples, int32, batch by batch in ascending order of the batches."""
        return self.batches.members(self.listed)

    def order(self, kept: Tensor, positions: Tensor | range, epoch: int) -> Tensor:
        """Return the samples at some positions of an epoch.

        Position j is sample ``j mod B`` of the ``(j div B)``-th batch. The full batches stand in a
        keyed bijection of (seed, epoch), or in ascending order; an incomplete one is served last,
        so that a plain batch sampler cuts the stream exactly into the fixed batches.

        Args:
            kept: what ``samples()`` returned.
            positions: int64 [M], or a range; each in 0..len(kept)-1.
            epoch: in 0..2^31-3.

        Returns:
            int32 [M], in the order of ``positions``.

        Raises:
            IndexError: a position is out of range (on the cpu).
        """
        fixed = self.batches
        if isinstance(positions, range):
            ends = (positions[0], positions[-1]) if positions else ()
            outside = [end for end in ends if not 0 <= end < kept.shape[0]]
            positions = torch.arange(
                positions.start, positions.stop, positions.step, device=kept.device
            )
        elif positions.is_cpu:
            wrong = (positions < 0) | (positions >= kept.shape[0])
            outside = [int(positions[wrong][0].item())] if bool(wrong.any()) else []
        else:  # reading them would make the host wait within the epoch
            outside = []
            positions = positions.clamp(0, max(0, kept.shape[0] - 1))
        if outside:
            raise IndexError(f"positions must be in 0..{kept.shape[0] - 1}, got {outside[0]}")
        turn = positions // fixed.batch_size
        row = turn
        if self.shuffle and self.whole:
            rows = torch.arange(self.whole, dtype=torch.int32, device=kept.device)
            # The incomplete batch stays last: it is looked up as another and put back.
            last = turn >= self.whole
            shuffled = ops.order(
                rows,
                turn.clamp(max=self.whole - 1),
                seed=fixed.seed,
                epoch=epoch,
                backend=fixed.backend,
            )
            row = torch.where(last, turn, shuffled.to(torch.int64))
        return kept[row * fixed.batch_size + positions % fixed.batch_size]
