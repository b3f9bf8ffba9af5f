# SPDX-License-Identifier: Apache-2.0
"""What the batches of an epoch say of their samples, merged over ranks: memory of policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prune_engine.epoch import ranks
from prune_engine.epoch.fits import int_problems, tensor_problems
from prune_engine.epoch.policy import PolicyMemory, RunFacts
from prune_engine.epoch.score_buffer import ScoreBuffer

VALUE_BITS = 8
MAX_MARKED_EPOCH = 2**22
TENSORS = ("marks", "settled")


class Marks(PolicyMemory):
    """A number of 8 bits for each sample: what its last epoch's batches said, the largest.

    ``(epoch + 1) << 8 | number``, merged by maximum, so that neither the order of batches nor that
    of ranks shows. Rules read ``settled``, the marks as they were when an epoch last ended: the
    same on every rank, and whatever the running epoch adds.

    Args:
        buffer: says how many samples there are and where tensors live.
    """

    def __init__(self, buffer: ScoreBuffer) -> None:
        self._buffer = buffer
        self.marks = torch.zeros(buffer.num_samples, dtype=torch.int32, device=buffer.device)
        self.settled = self.marks.clone()
        self.epoch = 0
        self.group: Any = None

    def begin_run(self, run: RunFacts) -> None:
        """Take note of the ranks.

        Args:
            run: says which.
        """
        self.group = run.process_group

    def put(self, indices: Tensor, numbers: Tensor) -> None:
        """Mark the samples of a batch; an index out of range, which is refused later, marks none.

        In place, and of the epoch that the device knows: a batch costs no copy of all marks, and a
        captured graph that is replayed marks its batches too.

        Args:
            indices: [B] int64 | int32.
            numbers: [B], each in 0..255.
        """
        n = self.marks.shape[0]
        if n == 0:
            return
        inside = (indices >= 0) & (indices < n)
        places = torch.where(inside, indices, 0).to(torch.int64)
        fresh = (self._buffer.epoch + 1) << VALUE_BITS | numbers.to(torch.int64)
        fresh = torch.where(inside, fresh, 0).to(torch.int32)
        self.marks.scatter_reduce_(0, places, fresh, "amax")

    def said(self, epoch: int) -> Tensor:
        """Return whether an epoch's batches had a sample, bool [N], as of the last epoch's end.

        Args:
            epoch: that epoch.
        """
        return (self.settled >> VALUE_BITS) == epoch + 1

    @property
    def numbers(self) -> Tensor:
        """The last number of each sample, int32 [N], 0 where there is none."""
        return self.settled & ((1 << VALUE_BITS) - 1)

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Merge what the ranks have seen, in place: to merge once more changes nothing.

        Args:
            buffer: not used.
            epoch: the epoch that ended.
        """
        if not ranks.alone(self.group):
            self.marks.copy_(ranks.merge_max(self.marks, self.group))
        self.settled = self.marks.clone()
        self.epoch = epoch + 1

    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes: nothing has been said of a new sample.

        Args:
            num_samples: N from the current epoch on.
        """
        for name in TENSORS:
            setattr(self, name, resized(getattr(self, name), num_samples))

    def state_dict(self) -> dict[str, Any]:
        """Return the marks of all ranks together, and the epoch."""
        merged = ranks.merge_max(self.marks, self.group)
        return {"marks": merged.cpu(), "settled": self.settled.cpu(), "epoch": self.epoch}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {name: getattr(self, name) for name in TENSORS})
        problems += int_problems(state, {"epoch": MAX_MARKED_EPOCH})
        if problems:
            return problems
        for name in TENSORS:
            marks, last = state[name], state["epoch"] + (name == "marks")
            if not marks.numel():
                continue
            if int(marks.min()) < 0 or int(marks.max()) >> VALUE_BITS > last:
                problems.append(f"{name}: expected marks of epochs before {last}, got others")
        return problems

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        for name in TENSORS:
            setattr(self, name, state[name].to(self.marks.device, copy=True))
        self.epoch = int(state["epoch"])


def resized(have: Tensor, num_samples: int, fresh: float = 0) -> Tensor:
    """Return a vector of another length, of which the first entries are those of before."""
    made = have.new_full((num_samples,), fresh)
    both = min(num_samples, have.shape[0])
    made[:both] = have[:both]
    return made
