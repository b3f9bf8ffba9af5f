# SPDX-License-Identifier: Apache-2.0
"""One pass over an epoch's order: which positions are served, a rank's share at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import length_hint
from typing import Any, Protocol

from prune_engine.data.prefetch import Pending, Reader
from prune_engine.epoch.plan import CHUNK, EpochPlan, serve_count
from prune_engine.errors import PruneEngineError


class Feed(Protocol):
    """What a sampler asks of its engine."""

    num_samples: int
    epoch: int
    process_group: Any

    @property
    def constant_length(self) -> bool:
        """Whether pruning epochs flow through epochs of a constant length."""
        ...

    @property
    def fixed_batch(self) -> int | None:
        """The size of batches whose samples stay together, or None."""
        ...

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan."""
        ...

    @property
    def cursor(self) -> int:
        """Positions of this epoch consumed so far over all ranks."""
        ...

    @property
    def pass_start(self) -> int:
        """The position at which the latest pass over the epoch began."""
        ...

    def begin_pass(self, align: int, shards: int) -> tuple[EpochPlan, int]:
        """Begin to serve what is left; return the plan and the position to start at."""
        ...

    def next_plan(self, plan: EpochPlan) -> EpochPlan:
        """Return the plan after another one."""
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


def check_position(state: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuse a state of a sampler or its pass that does not say where that was.

    Args:
        state: what came.
        names: numbers that it must have.

    Raises:
        ValueError: one is missing, or no int of at least 0.

    Example:
        >>> check_position({"epoch": 0, "cursor": 3}, ("epoch", "cursor"))
    """
    for name in names:
        value = state.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"state: {name}: expected an int of at least 0, got {value!r}")


class Walk:
    """The chunks of one rank's pass, in which a position can be found and set.

    Args:
        engine: makes the plans.
        align: serve a multiple of this many positions of a plan.
        plan: to draw from first.
        start: position of the epoch to start at.
        rank: the share.
        size: number of shares.
        left: positions to serve over all ranks.
    """

    def __init__(
        self,
        engine: Feed,
        align: int,
        plan: EpochPlan,
        start: int,
        rank: int,
        size: int,
        left: int,
    ) -> None:
        self.engine, self.align, self.rank, self.size = engine, align, rank, size
        self.plan, self.start, self.left = plan, start, left
        self.chunk: Iterator[int] = iter(())
        self.begun = False

    def spans(self) -> Iterator[tuple[EpochPlan, range]]:
        """Yield (plan, positions of this rank), from where the walk is."""
        self.begun = True
        plan, start, left = self.plan, self.start, self.left
        while left > 0:
            stop = min(serve_count(plan.num_kept, self.align, self.size, start), start + left)
            if stop > start:
                yield plan, range(start + self.rank, stop, self.size)
            left -= stop - start
            if left > 0:
                plan, start = self.engine.next_plan(plan), 0
                if not serve_count(plan.num_kept, self.align, self.size):
                    raise PruneEngineError(
                        f"epoch {plan.epoch} keeps {plan.num_kept} samples, too few to go on with"
                    )

    def chunks(self, reader: Reader) -> Iterator[Iterator[int]]:
        """Yield the pass in lists of ints, and note how far it is.

        Args:
            reader: brings them to the host.
        """
        for plan, positions in self.spans():
            self.plan, self.start = plan, positions.start - self.rank
            for samples in self._lists(reader, plan, positions):
                self.start += len(samples) * self.size
                self.left -= len(samples) * self.size
                self.chunk = iter(samples)
                yield self.chunk

    def _lists(self, reader: Reader, plan: EpochPlan, positions: range) -> Iterator[list[int]]:
        began = self.engine.now()
        reader.begin(plan)
        self.engine.add_seconds(began)
        ahead: deque[Pending] = deque()
        for at in range(0, len(positions), CHUNK):
            began = self.engine.now()
            ahead.append(reader.start(plan, positions[at : at + CHUNK]))
            ready = ahead.popleft().ints() if len(ahead) > reader.ahead else None
            self.engine.add_seconds(began)
            if ready is not None:
                yield ready
        while ahead:
            began = self.engine.now()
            ready = ahead.popleft().ints()
            self.engine.add_seconds(began)
            yield ready

    def state(self) -> dict[str, int]:
        """Return where the pass is: what was drawn, over all ranks."""
        waiting = length_hint(self.chunk) * self.size
        return {
            "epoch": self.plan.epoch,
            "position": self.start - waiting,
            "left": self.left + waiting,
        }

    def seek(self, state: Mapping[str, Any]) -> None:
        """Start where another pass was.

        1. That pass was over: so is this one. 2. It was of an epoch that the engine has ended: what
        the engine has left is right. (With a constant length it is not: a loader that snapshots
        every few steps throws the batches since then away, and they are of that epoch.)

        Args:
            state: of its walk.

        Raises:
            PruneEngineError: this pass has begun.
            ValueError: it is no such state, or of another epoch.
        """
        if self.begun:
            raise PruneEngineError("a pass that has begun cannot be moved: make a new one")
        check_position(state, ("epoch", "position", "left"))
        epoch, left = state["epoch"], state["left"]
        if left == 0:
            self.left = 0
        elif epoch == self.plan.epoch:
            self.start, self.left = state["position"], left
        elif epoch > self.plan.epoch or self.engine.constant_length:
            raise ValueError(
                f"the pass must be of the engine's epoch {self.plan.epoch}, got {epoch}: restore "
                "the engine first, and take a snapshot at every step"
            )


class Pass(chain[int]):
    """A sampler's iterator: ints chained in C, two thirds of the time of a generator of ints.

    It has a state, what was drawn, as torchdata's ``StatefulDataLoader`` likes it: that one saves
    it with each batch and resumes without drawing anything again.

    Example:
        >>> import prune_engine as pe
        >>> sampler = pe.PruneEngine(5, pe.KeepAll(), num_epochs=1).sampler()
        >>> half, rest = iter(sampler), iter(sampler)
        >>> drawn = [next(half), next(half)]
        >>> rest.load_state_dict(half.state_dict())
        >>> drawn + list(rest) == list(sampler)
        True
    """

    walk: Walk

    @classmethod
    def over(cls, walk: Walk, reader: Reader) -> Pass:
        """Return the pass over a walk's chunks.

        Args:
            walk: not begun.
            reader: brings them to the host.

        Returns:
            An iterator of ints.
        """
        stream = cls.from_iterable(walk.chunks(reader))
        assert isinstance(stream, Pass)
        stream.walk = walk
        return stream

    def __reduce__(self) -> Any:
        """Refuse: a copy would draw from the same chunk, and each would miss what the other had."""
        raise TypeError(
            "a pass over a sampler cannot be copied or pickled: load its state_dict() into another"
        )

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the position drawn to over all ranks, and how many are left."""
        return self.walk.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start where another pass was; this one must not have begun.

        Args:
            state: what ``state_dict`` returned, on any rank.

        Raises:
            PruneEngineError: it has begun.
            ValueError: the state is of another epoch than the engine.
        """
        self.walk.seek(state)
