# SPDX-License-Identifier: Apache-2.0
"""The sampler: the engine's order as a restartable stream of ints, a rank's share at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

from torch.utils.data.distributed import DistributedSampler

from prune_engine.distributed import Shard, resolve_shard
from prune_engine.plan import CHUNK, EpochPlan
from prune_engine.readback import Pending, Reader, reader_for
from prune_engine.types import PruneEngineError


class Feed(Protocol):
    """What a sampler asks of its engine."""

    num_samples: int
    epoch: int
    process_group: Any

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan."""
        ...

    @property
    def constant_length(self) -> bool:
        """Whether pruning epochs flow through epochs of a constant length."""
        ...

    @property
    def cursor(self) -> int:
        """Positions of this epoch consumed so far over all ranks."""
        ...

    def drawing_plan(self) -> tuple[EpochPlan, int]:
        """Return the plan to draw from and the position to start at."""
        ...

    def next_plan(self, plan: EpochPlan) -> EpochPlan:
        """Return the plan after another one."""
        ...

    def drew(self, align: int, shards: int) -> None:
        """Note how this sampler cuts the epochs' tails."""
        ...

    def now(self) -> float:
        """Return a clock for ``add_seconds``."""
        ...

    def add_seconds(self, began: float) -> float:
        """Count seconds since ``began`` as the engine's."""
        ...

    def seek(self, cursor: int) -> None:
        """Continue the epoch at a consumed cursor."""
        ...


def serve_count(num_kept: int, align: int, size: int, start: int = 0) -> int:
    """Return how many positions of an epoch are served.

    The largest multiple of ``align``, so that every batch is full and ranks are equal; where not
    even one full batch is kept, the largest multiple of the world size. The tail of a random order
    is a random subset, so the expected gradient stays the same.

    Args:
        num_kept: positions of the epoch.
        align: at least 1.
        size: world size.
        start: positions consumed already, perhaps by another world size: the multiples count from
            here.

    Returns:
        The count, ``start`` and a multiple of ``size``.

    Example:
        >>> serve_count(1000, 256, 1), serve_count(100, 256, 1), serve_count(5, 2, 2)
        (768, 100, 4)
        >>> serve_count(100, 1, 2, start=33)
        99
    """
    unit = align if align % size == 0 else align * size
    if num_kept < unit:
        unit = size
    start = min(start, num_kept)
    return start + (num_kept - start) // unit * unit


class PruneSampler(DistributedSampler[int]):
    """Serve the engine's order: rank q of W takes positions q, q + W, ...

    A ``DistributedSampler`` by type, because frameworks leave that type alone and call its
    ``set_epoch``; rank and world are found when it is iterated, not when it is made. Iterating has
    no side effect on the plan and may be repeated; it starts where a restored state says.

    Args:
        engine: the engine.
        shard: ``"auto"``, ``"none"`` or (rank, world size).
        align: serve a multiple of this many positions (over all ranks).

    Raises:
        ValueError: align is not at least 1, or the shard is not valid.

    Example:
        >>> import prune_engine as pe
        >>> sampler = pe.PruneEngine(5, pe.KeepAll(), num_epochs=1).sampler()
        >>> len(sampler), sorted(sampler)
        (5, [0, 1, 2, 3, 4])
    """

    # DistributedSampler.__init__ fixes sizes and demands a process group: neither fits, so it is
    # not called; its public attributes are properties here.
    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self, engine: Feed, *, shard: Shard = "auto", align: int = 1
    ) -> None:
        if align < 1:
            raise ValueError(f"align must be at least 1, got {align}")
        resolve_shard(shard, engine.process_group)
        self.engine = engine
        self.shard: Shard = shard
        self.align = align
        self.shuffle = True
        self.drop_last = True
        self.reader: Reader | None = None  # of the plan's device, from the first iteration on

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The share that is served."""
        return resolve_shard(self.shard, self.engine.process_group)[0]

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """The number of shares."""
        return resolve_shard(self.shard, self.engine.process_group)[1]

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Positions served in this epoch over all ranks."""
        if self.engine.constant_length:
            return serve_count(self.engine.num_samples, self.align, self.num_replicas)
        plan, start = self.engine.drawing_plan()
        return serve_count(plan.num_kept, self.align, self.num_replicas, start)

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Positions served in this epoch by this rank."""
        return self.total_size // self.num_replicas

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The engine's epoch."""
        return self.engine.epoch

    def set_epoch(self, epoch: int) -> None:
        """Check a framework's epoch against the engine's. Idempotent; plans nothing.

        Args:
            epoch: the framework's.

        Raises:
            PruneEngineError: it is ahead: ``end_epoch`` was not called (edge case 11).
        """
        if not self.engine.constant_length and epoch > self.engine.epoch:
            raise PruneEngineError(
                f"set_epoch got {epoch}, but the engine is in epoch {self.engine.epoch}: call "
                "engine.end_epoch() on every rank after each epoch"
            )

    def __len__(self) -> int:
        """Return how many indices iterating now would yield."""
        if self.engine.constant_length:
            return self.num_samples
        _, start = self.engine.drawing_plan()
        return max(0, self.total_size - start) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's samples in the order of the epoch, as ints."""
        # Lists of a chunk each, chained in C: two thirds of the time of a generator of ints.
        return chain.from_iterable(self._chunks())

    def spans(self) -> Iterator[tuple[EpochPlan, range]]:
        """Return which positions iterating now serves, and of which plans.

        Returns:
            (plan, positions of this rank), in order; one pair, but where ``mode="steps"`` flows
            from one plan into the next: that one is made when it is asked for.

        Raises:
            PruneEngineError: an epoch keeps too few samples to go on with (``mode="steps"``).
        """
        rank, size = resolve_shard(self.shard, self.engine.process_group)
        self.engine.drew(self.align, size)
        plan, start = self.engine.drawing_plan()
        if not self.engine.constant_length:
            served = serve_count(plan.num_kept, self.align, size, start)
            yield plan, range(start + rank, served, size)
            return
        wanted = self.total_size
        while wanted > 0:
            served = serve_count(plan.num_kept, self.align, size, start)
            if served == 0:
                raise PruneEngineError(
                    f"epoch {plan.epoch} keeps {plan.num_kept} samples, too few to go on with"
                )
            stop = min(served, start + wanted)
            yield plan, range(start + rank, stop, size)
            wanted -= stop - start
            start = stop
            if start == served and wanted > 0:
                plan, start = self.engine.next_plan(plan), 0

    def _chunks(self) -> Iterator[list[int]]:
        for plan, positions in self.spans():
            began = self.engine.now()
            if self.reader is None:
                self.reader = reader_for(plan.kept.device)
            reader = self.reader
            reader.begin(plan)
            self.engine.add_seconds(began)
            ahead: deque[Pending] = deque()
            for at in range(0, len(positions), CHUNK):
                began = self.engine.now()
                chunk = positions[at : at + CHUNK]
                ahead.append(reader.start(plan, chunk))
                ready = ahead.popleft().ints() if len(ahead) > reader.ahead else None
                self.engine.add_seconds(began)
                if ready is not None:
                    yield ready
            while ahead:
                began = self.engine.now()
                ready = ahead.popleft().ints()
                self.engine.add_seconds(began)
                yield ready

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the consumed cursor: what was trained, not what was drawn."""
        return {"epoch": self.engine.epoch, "cursor": self.engine.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved cursor; the engine's own state must be restored first.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            ValueError: it is of another epoch than the engine.
        """
        if int(state["epoch"]) != self.engine.epoch:
            raise ValueError(
                f"state must be of the engine's epoch {self.engine.epoch}, got {state['epoch']}: "
                "restore the engine first"
            )
        self.engine.seek(int(state["cursor"]))
