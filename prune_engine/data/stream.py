# SPDX-License-Identifier: Apache-2.0
"""One pass over an epoch's order: which positions are served, a rank's share at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sized
from itertools import chain, repeat
from operator import length_hint
from typing import Any, Literal, Protocol

from prune_engine.data.prefetch import Pending, Reader
from prune_engine.epoch.plan import CHUNK, EpochPlan, serve_count
from prune_engine.epoch.serving import Serving
from prune_engine.errors import PruneEngineError
from prune_engine.ops.to_host import host_ints


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
    def served(self) -> int:
        """Positions of this epoch that are served over all ranks."""
        ...

    @property
    def pass_start(self) -> int:
        """The position at which the latest pass began, or a pass would begin now."""
        ...

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        ...

    def flowed(self, length: int) -> int:
        """Return how much of a constant length was trained before the run was restored."""
        ...

    def watch(self, dataset: Sized) -> None:
        """Look at a data set's length whenever a pass begins."""
        ...

    def begin_pass(self, align: int, shards: int) -> Serving:
        """Begin to serve what is left of the epoch."""
        ...

    def replays(self, serving: Serving) -> None:
        """Take note that a pass begins with placeholders, which the loop must skip."""
        ...

    def next_plan(self, plan: EpochPlan) -> EpochPlan | None:
        """Return the plan after another one; None after the last."""
        ...

    def now(self) -> float:
        """Return a clock for ``add_seconds``."""
        ...

    def add_seconds(self, began: float, part: Literal["order"]) -> float:
        """Count seconds since ``began`` as the engine's, spent on the order of samples."""
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
        serving: the pass.
        rank: the share.
        left: positions to serve over all ranks.
        replay: of positions that were trained before, this many are drawn once more, for a
            framework to throw away; over all ranks.
    """

    def __init__(
        self, engine: Feed, serving: Serving, rank: int, left: int, replay: int = 0
    ) -> None:
        self.engine, self.serving, self.rank = engine, serving, rank
        self.align, self.size = serving.align, serving.shards
        self.plan, self.start, self.left = engine.plan, serving.start, left
        self.replay = replay
        if replay:
            engine.replays(serving)
        self.begun = False

    def spans(self) -> Iterator[tuple[EpochPlan, range]]:
        """Yield (plan, positions of this rank), from where the walk is."""
        self.begun = True
        plan, start, left = self.plan, self.start, self.left
        while left > 0:
            stop = min(serve_count(plan.num_kept, self.align, self.size, start), start + left)
            if stop == 0:
                raise PruneEngineError(
                    f"epoch {plan.epoch} keeps {plan.num_kept} samples, too few to go on with"
                )
            if stop > start:
                yield plan, range(start + self.rank, stop, self.size)
            left -= stop - start
            if left > 0:
                following, start = self.engine.next_plan(plan), 0
                if following is None:
                    return
                plan = following

    def chunks(self, reader: Reader) -> Iterator[Iterator[int]]:
        """Yield the pass in lists of ints, and note how far it is.

        Args:
            reader: brings them to the host.
        """
        if self.replay:
            yield from self._replayed()
        for plan, positions in self.spans():
            self.plan, self.start = plan, positions.start - self.rank
            for samples in self._lists(reader, plan, positions):
                self.start += len(samples) * self.size
                self.left -= len(samples) * self.size
                chunk = iter(samples)
                self.serving.hand_out(chunk, len(samples))
                yield chunk

    def _replayed(self) -> Iterator[Iterator[int]]:
        """Yield places for what was trained before: some sample of the pass, again and again."""
        count, self.replay = self.replay // self.size, 0
        mine = self.start - self.size + self.rank  # the last position that this rank trained
        if count and mine >= 0:
            sample = host_ints(self.plan.order(range(mine, mine + 1)))[0]
            yield repeat(sample, count)

    def _lists(self, reader: Reader, plan: EpochPlan, positions: range) -> Iterator[list[int]]:
        began = self.engine.now()
        reader.begin(plan)
        self.engine.add_seconds(began, "order")
        ahead: deque[Pending] = deque()
        for at in range(0, len(positions), CHUNK):
            began = self.engine.now()
            ahead.append(reader.start(plan, positions[at : at + CHUNK]))
            ready = ahead.popleft().ints() if len(ahead) > reader.ahead else None
            self.engine.add_seconds(began, "order")
            if ready is not None:
                yield ready
        while ahead:
            began = self.engine.now()
            ready = ahead.popleft().ints()
            self.engine.add_seconds(began, "order")
            yield ready

    def state(self) -> dict[str, int]:
        """Return where the pass is: what was drawn, over all ranks."""
        waiting = length_hint(self.serving.chunk) * self.size
        return {
            "epoch": self.plan.epoch,
            "position": self.start - waiting,
            "left": self.left + waiting,
        }

    def seek(self, state: Mapping[str, Any]) -> None:
        """Start where another pass was.

        1. That pass was over and its epoch is not: so is this one. 2. It was of an epoch that the
        engine has ended: what the engine has left is right. (With a constant length it is not: a
        loader that snapshots every few steps throws the batches since then away, and they are of
        that epoch.)

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
        if left == 0 and (epoch >= self.plan.epoch or self.engine.constant_length):
            self.left = 0
        elif epoch == self.plan.epoch:
            # What is in flight was drawn before, and will be trained as if it had been drawn here.
            self.serving.out += max(0, state["position"] - self.start)
            self.start, self.left = state["position"], left
            self.replay = 0
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
