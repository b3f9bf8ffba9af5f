# SPDX-License-Identifier: Apache-2.0
"""The sampler: the engine's order as a restartable stream of ints, a rank's share at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data.distributed import DistributedSampler

from prune_engine.data.prefetch import Reader, reader_for
from prune_engine.data.stream import Feed, Pass, Walk, check_position
from prune_engine.epoch.plan import EpochPlan, serve_count
from prune_engine.epoch.ranks import Shard, resolve_shard
from prune_engine.errors import PruneEngineError
from prune_engine.plain import plain


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
    ``set_epoch``; rank and world are found when it is iterated, not when it is made. A pass serves
    what of the epoch has not been observed when it begins: an epoch that was broken off, or
    restored from a state, goes on where training stopped. Until something is observed, iterating
    may be repeated and gives the same.

    Args:
        engine: the engine.
        shard: ``"auto"``, ``"none"`` or (rank, world size).
        align: serve a multiple of this many positions (over all ranks).

    Raises:
        TypeError: align is no int.
        ValueError: align is not at least 1 or would cut a fixed batch, the shard is not valid, or
            its ranks cannot share a fixed batch equally.

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
        shard, align = plain(shard), plain(align)
        if isinstance(align, bool) or not isinstance(align, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"align must be an int of at least 1, got {align!r}")
        if align < 1:
            raise ValueError(f"align must be at least 1, got {align}")
        _, size = resolve_shard(shard, engine.process_group)
        if engine.fixed_batch is not None:
            check_fixed(engine.fixed_batch, align, size)
        self.engine = engine
        self.shard: Shard = shard
        self.align = align
        self.shuffle = True
        self.drop_last = True
        self.reader: Reader | None = None  # of the plan's device, from the first iteration on

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
        start = self.engine.pass_start
        return serve_count(self.engine.plan.num_kept, self.align, self.num_replicas, start)

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
        return max(0, self.total_size - self.engine.pass_start) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's share of what is left of the epoch, in its order, as ints.

        Raises:
            PruneEngineError: nothing is left, for ``end_epoch`` was not called.
        """
        if self.reader is None:
            self.reader = reader_for(self.engine.plan.kept.device)
        return Pass.over(self._walk(), self.reader)

    def spans(self) -> Iterator[tuple[EpochPlan, range]]:
        """Return which positions iterating now serves, and of which plans.

        Returns:
            (plan, positions of this rank), in order; one pair, but where ``mode="steps"`` flows
            from one plan into the next: that one is made when it is asked for.

        Raises:
            PruneEngineError: nothing is left, for ``end_epoch`` was not called; or an epoch keeps
                too few samples to go on with (``mode="steps"``).
        """
        return self._walk().spans()

    def _walk(self) -> Walk:
        rank, size = resolve_shard(self.shard, self.engine.process_group)
        if self.engine.fixed_batch is not None:  # the ranks may have come after the sampler
            check_fixed(self.engine.fixed_batch, self.align, size)
        plan, start = self.engine.begin_pass(self.align, size)
        if self.engine.constant_length:
            left = self.total_size
        else:
            left = serve_count(plan.num_kept, self.align, size, start) - start
        return Walk(self.engine, self.align, plan, start, rank, size, left)

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
