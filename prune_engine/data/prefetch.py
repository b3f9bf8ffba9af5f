# SPDX-License-Identifier: Apache-2.0
"""How the order of an epoch reaches the host: at once on a cpu, ahead of need on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from prune_engine.epoch.plan import CHUNK, EpochPlan
from prune_engine.ops.to_host import host_ints


class Pending(Protocol):
    """A chunk of the order on its way to the host."""

    def ints(self) -> list[int]:
        """Return it; waits where it has not arrived."""
        ...


class Reader(Protocol):
    """What turns positions into host ints; ``ahead`` chunks are started before they are needed."""

    ahead: int

    def begin(self, plan: EpochPlan) -> None:
        """Prepare to read from a plan that was made on the current stream."""
        ...

    def start(self, plan: EpochPlan, positions: range) -> Pending:
        """Ask for the samples at some positions."""
        ...


class _Here:
    def __init__(self, samples: Tensor) -> None:
        self._samples = samples

    def ints(self) -> list[int]:
        return host_ints(self._samples)


class DirectReader:
    """Read from where the host can read: nothing to be gained by asking early.

    Example:
        >>> import prune_engine as pe
        >>> plan = pe.PruneEngine(3, pe.KeepAll(), num_epochs=1).plan
        >>> sorted(DirectReader().start(plan, range(3)).ints())
        [0, 1, 2]
    """

    ahead = 0

    def begin(self, plan: EpochPlan) -> None:
        """Nothing to prepare."""

    def start(self, plan: EpochPlan, positions: range) -> Pending:
        """Compute the samples now."""
        return _Here(plan.order(positions))


class Mark(Protocol):
    """A point in a device's work, such as ``torch.cuda.Event``."""

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed it."""
        ...


class Lane(Protocol):
    """A queue of device work beside the training's own."""

    def begin(self, source: Tensor) -> None:
        """Come after what the current stream has queued so far, and keep ``source`` alive."""
        ...

    def fetch(self, make: Callable[[], Tensor]) -> tuple[Tensor, Mark]:
        """Queue a computation and the copy of its result to the host; return both at once."""
        ...


class SideStream:
    """A lane on a CUDA device: a stream of its own and pinned memory.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        # A small kernel of high priority gets the first blocks that a large one sets free.
        self._stream = torch.cuda.Stream(device, priority=-1)

    def begin(self, source: Tensor) -> None:
        """Come after what the current stream has queued so far, and keep ``source`` alive."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        # Its memory may go back to torch's allocator while this stream still reads it.
        source.record_stream(self._stream)

    def fetch(self, make: Callable[[], Tensor]) -> tuple[Tensor, Mark]:
        """Queue a computation and the copy of its result into pinned memory."""
        with torch.cuda.stream(self._stream):
            made = make()
            # To pin memory anew may stop the device. torch keeps pinned blocks that were set free
            # by their size, so with one size for all, the first two serve for ever.
            size = max(CHUNK, made.shape[0])
            room = torch.empty(size, dtype=made.dtype, device="cpu", pin_memory=True)
            pinned = room[: made.shape[0]]
            pinned.copy_(made, non_blocking=True)
            return pinned, self._stream.record_event()


class _Arriving:
    def __init__(self, reader: PinnedReader, samples: Tensor, mark: Mark) -> None:
        self._reader, self._samples, self._mark = reader, samples, mark

    def ints(self) -> list[int]:
        if not self._mark.query():
            self._reader.waits += 1
            self._mark.synchronize()
        return host_ints(self._samples)


class PinnedReader:
    """Read a chunk that was asked for a chunk earlier, so that the host need not wait for it.

    The chunks travel on a lane of their own: they do not queue behind the training's kernels. Two
    are in flight at most, 64 KiB each, whatever N is; a pinned copy of the whole order would take 4
    bytes per kept sample and make the first batch wait for all of it. The first chunk after
    ``begin`` is needed as soon as it is asked for: that is the one wait that remains, of one
    kernel and one copy, at the start of an iteration.

    Args:
        lane: where the work is queued.

    Attributes:
        waits: how often a chunk had not arrived when it was needed.
    """

    ahead = 1

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.waits = 0

    def begin(self, plan: EpochPlan) -> None:
        """Let the lane come after the work that makes the plan."""
        for source in plan.sources:
            self._lane.begin(source)

    def start(self, plan: EpochPlan, positions: range) -> Pending:
        """Queue the order of some positions and their copy to the host."""
        return _Arriving(self, *self._lane.fetch(lambda: plan.order(positions)))


def reader_for(device: torch.device) -> Reader:
    """Choose how a device's orders are read.

    Args:
        device: where the plan lives.

    Returns:
        A reader for one sampler.

    Example:
        >>> reader_for(torch.device("cpu")).ahead
        0
    """
    return PinnedReader(SideStream(device)) if device.type == "cuda" else DirectReader()
