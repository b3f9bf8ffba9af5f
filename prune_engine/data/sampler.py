# SPDX-License-Identifier: Apache-2.0
"""The sampler: the engine's order as a restartable stream of ints, a rank's share at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.data.distributed import DistributedSampler

from prune_engine.data.prefetch import Reader, reader_for
from prune_engine.data.stream import Feed, Pass, Walk, check_position
from prune_engine.epoch.plan import EpochPlan, serve_count
from prune_engine.epoch.ranks import Shard, resolve_shard
from prune_engine.epoch.ranks import world as world_of
from prune_engine.epoch.serving import Serving
from prune_engine.epoch.state import check_choice, check_count
from prune_engine.errors import PruneEngineError
from prune_engine.plain import plain


def own_order(options: dict[str, Any], seed: int) -> None:
    """Make a loader's options those of an engine, which decides the order of its samples.

    Args:
        options: for ``DataLoader``; ``generator``, which seeds its workers, becomes one of the
            engine's seed and the rank where none is given, and not the global one: workers of
            ranks that drew alike would augment alike.
        seed: the engine's.

    Raises:
        TypeError: an option decides the order.

    Example:
        >>> options = {"num_workers": 0}
        >>> own_order(options, 3)
        >>> options["generator"].initial_seed()
        3
    """
    for name in ("sampler", "batch_sampler", "shuffle"):
        if options.get(name) is not None:
            raise TypeError(f"{name} must not be given: the engine decides the order")
    options.setdefault("generator", torch.Generator().manual_seed(seed + world_of()[0]))


def check_fixed(batch: int, align: int, size: int) -> None:
    """Refuse what would tear fixed batches apart.

    Args:
        batch: samples of a batch, over all ranks.
        align: a multiple or a divisor of it.
        size: world size, a divisor of it.

    Raises:
        ValueError: one does not fit.

    Example:
        >>> check_fixed(128, 1, 2)
    """
    if align % batch and batch % align:
        raise ValueError(
            f"align must be a multiple or a divisor of the policy's batch_size {batch}, got {align}"
        )
    if batch % size:
        raise ValueError(f"batch_size must be a multiple of the {size} ranks, got {batch}")


RESUMES = ("rest", "replay", "length")
Resume = Literal["rest", "replay", "length"]


def choose_align(fixed: int | None, batch_size: int, size: int, align: int | None) -> int:
    """Return what a loader's epochs are a multiple of.

    Args:
        fixed: samples of a fixed batch, over all ranks, or None.
        batch_size: of the loader, per rank.
        size: world size.
        align: what the user wants; None: full batches, and with fixed batches all of them, for
            whether an incomplete one is served is the policy's choice.

    Returns:
        ``align``, at least 1.

    Raises:
        ValueError: the loader would tear fixed batches apart.

    Example:
        >>> choose_align(None, 8, 2, None), choose_align(64, 8, 2, None)
        (16, 2)
    """
    if fixed is not None and fixed % (batch_size * size):
        raise ValueError(
            f"batch_size must divide the policy's {fixed} over {size} ranks, got {batch_size}"
        )
    if align is not None:
        return align
    return batch_size * size if fixed is None else size


class PruneSampler(DistributedSampler[int]):
    """Serve the engine's order: rank q of W takes positions q, q + W, ...

    A ``DistributedSampler`` by type, because frameworks leave that type alone and call its
    ``set_epoch``; rank, world and what an epoch is a multiple of are found when it is iterated, not
    when it is made. A pass serves what of the epoch has not been observed when it begins: an epoch
    that was broken off, or restored from a state, goes on where training stopped. Until something
    is observed, iterating may be repeated and gives the same; later, a second pass is a look at
    what is left, and moves nothing.

    Args:
        engine: the engine.
        shard: ``"auto"``, ``"none"`` or (rank, world size).
        align: serve a multiple of this many positions (over all ranks); default 1, or
            ``batch_size * world size`` where that is given.
        batch_size: per rank, of the loader that draws.
        accumulate: batches of an optimizer step: an epoch is a multiple of so many.
        resume: what a pass over the rest of a restored epoch looks like. ``"rest"``: it is that
            much shorter. ``"replay"``: it is of full length, and begins with placeholders for what
            was trained, which the framework skips. ``"length"``: ``len`` is that of the full epoch,
            the rest is served: for a framework that goes on counting.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is not at least 1 or would cut a fixed batch, the shard is not valid,
            its ranks cannot share a fixed batch equally, or resume is another word.

    Example:
        >>> import prune_engine as pe
        >>> sampler = pe.PruneEngine(5, pe.KeepAll(), num_epochs=1).sampler()
        >>> len(sampler), sorted(sampler)
        (5, [0, 1, 2, 3, 4])
    """

    # DistributedSampler.__init__ fixes sizes and demands a process group: neither fits, so it is
    # not called; its public attributes are properties here.
    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self,
        engine: Feed,
        *,
        shard: Shard = "auto",
        align: int | None = None,
        batch_size: int | None = None,
        accumulate: int = 1,
        resume: Resume = "rest",
    ) -> None:
        shard, align, resume = plain(shard), plain(align), plain(resume)
        batch_size, accumulate = plain(batch_size), plain(accumulate)
        check_count("align", align)
        check_count("batch_size", batch_size)
        check_count("accumulate", accumulate, needed=True)
        check_choice("resume", resume, RESUMES)
        _ = resolve_shard(shard, engine.process_group)
        self.engine = engine
        self.shard: Shard = shard
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.resume: Resume = resume
        self.shuffle = True
        self.drop_last = True
        self.reader: Reader | None = None  # of the plan's device, from the first iteration on
        self._given_align = align
        self._serving: Serving | None = None  # the latest pass over this sampler
        self._check_fixed()

    @property
    def align(self) -> int:
        """What an epoch's length is a multiple of, over all ranks."""
        fixed = self.engine.fixed_batch
        # Where a framework deals out the batches of one share, they are still those of all ranks.
        world = max(self.num_replicas, world_of(self.engine.process_group)[1])
        if self.batch_size is None:
            align = 1 if self._given_align is None else self._given_align
        else:
            align = choose_align(fixed, self.batch_size, world, self._given_align)
        return align * self.accumulate

    def _check_fixed(self) -> None:
        if self.engine.fixed_batch is not None:
            check_fixed(self.engine.fixed_batch, self.align, self.num_replicas)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the reader, which is of one process."""
        return {**vars(self), "reader": None}

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
        return serve_count(self.engine.plan.num_kept, self.align, self.num_replicas, self._begins)

    @property
    def _begins(self) -> int:
        """The position at which the pass begins whose length is asked for."""
        serving = self._serving
        if serving is not None and serving.epoch == self.engine.epoch:
            return serving.start
        return self.engine.pass_start

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
        epoch = plain(epoch)
        if isinstance(epoch, bool) or not isinstance(epoch, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"epoch must be an int, got {epoch!r}")
        if not self.engine.constant_length and epoch > self.engine.epoch:
            raise PruneEngineError(
                f"set_epoch got {epoch}, but the engine is in epoch {self.engine.epoch}: call "
                "engine.end_epoch() on every rank after each epoch"
            )

    def __len__(self) -> int:
        """Return how many indices the pass yields; it stays the same while the pass lasts."""
        if self.engine.constant_length:
            return self.num_samples
        length = max(0, self.total_size - self._begins) // self.num_replicas
        if self.resume == "rest":
            return length
        return length + self._trained_before() // self.num_replicas

    def _trained_before(self) -> int:
        """Count the positions that were trained before the pass, by the run that was restored."""
        return self._begins

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's share of what is left of the epoch, in its order, as ints.

        Raises:
            PruneEngineError: nothing is left, for ``end_epoch`` was not called; or the run is over.
        """
        if self.reader is None:
            self.reader = reader_for(self.engine.plan.kept.device)
        walk = self._walk()
        stream = Pass.over(walk, self.reader)
        walk.serving.owner = weakref.ref(stream)
        return stream

    def spans(self) -> Iterator[tuple[EpochPlan, range]]:
        """Return which positions iterating now serves, and of which plans.

        Returns:
            (plan, positions of this rank), in order; one pair, but where ``mode="flow"`` flows
            from one plan into the next: that one is asked for when it is needed.

        Raises:
            PruneEngineError: nothing is left, for ``end_epoch`` was not called; or an epoch keeps
                too few samples to go on with (``mode="flow"``).
        """
        return self.walk().spans()

    def walk(self) -> Walk:
        """Begin a pass, and return what is served in it."""
        return self._walk()

    def _walk(self) -> Walk:
        rank, size = resolve_shard(self.shard, self.engine.process_group)
        self._check_fixed()  # the ranks may have come after the sampler
        align = self.align
        serving = self.engine.begin_pass(align, size)
        self._serving = serving
        if not self.engine.constant_length:
            left = serve_count(self.engine.plan.num_kept, align, size, serving.start)
            replay = serving.start if self.resume == "replay" else 0
            return Walk(self.engine, serving, rank, left - serving.start, replay)
        length = 0 if self.engine.done else self.total_size
        done = 0 if self.resume == "rest" else self.engine.flowed(length)
        replay = done if self.resume == "replay" else 0
        return Walk(self.engine, serving, rank, length - done, replay)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the consumed cursor: what was trained, not what was drawn."""
        return {"epoch": self.engine.epoch, "cursor": self.engine.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved cursor; the engine's own state must be restored first.

        A loader that runs ahead may have asked for its sampler's state some batches before those
        that the engine's state has: what the engine knows to be trained is not served again.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            ValueError: it is no such state, or of a later epoch than the engine.
        """
        check_position(state, ("epoch", "cursor"))
        at = (state["epoch"], state["cursor"])
        if at[0] > self.engine.epoch:
            raise ValueError(
                f"state must be of the engine's epoch {self.engine.epoch}, got {at[0]}: "
                "restore the engine first"
            )
        if at > (self.engine.epoch, self.engine.cursor):
            self.engine.seek(at[1])
