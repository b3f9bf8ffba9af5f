# SPDX-License-Identifier: Apache-2.0
"""One epoch's decision: which samples, with which weights, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import PLAN_BLOCK, weighed_classes
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.lasting import lasting
from prune_engine.ops.checks import check_vector
from prune_engine.ops.rule import AnyRule, Arrangement, LevelRule, Rule, Selection, TopRule
from prune_engine.ops.to_host import host_ints
from prune_engine.ops.weights import decode_weights, weights_on
from prune_engine.plain import plain

PLAN_TENSORS = ("weight_class", "weight_table", "threshold")  # what a plan made ahead is saved as
LARGEST_BITS = 0x7F7FFFFF  # of FLT_MAX
CHUNK = 16384  # positions turned into samples at a time: never the order of a whole epoch


@dataclass(frozen=True)
class EpochPlan:
    """The samples of one epoch, their weights and their order.

    ``weight_class`` is the buffer's own storage: it is this epoch's until the next plan is made.

    Args:
        epoch: the epoch it is for.
        seed: the engine's seed.
        weight_class: uint8 [N]; 0 = dropped.
        weight_table: float32 [256].
        kept: int32 [num_kept], ascending; with an arrangement in its order.
        threshold: float32 [T], the rule's thresholds; of levels [1], the score from which on all
            are kept.
        backend: which kernels.
        arrangement: lists and orders samples that stay together, in place of the keyed bijection.
        weight_bound: no sample weighs more; known without a look at the device.

    Example:
        >>> plan = make_plan(ScoreBuffer(4), Rule.keep_all(torch.device("cpu")), seed=0, epoch=0)
        >>> plan.num_kept, plan.kept.tolist(), sorted(plan.indices.tolist())
        (4, [0, 1, 2, 3], [0, 1, 2, 3])
    """

    epoch: int
    seed: int
    weight_class: Tensor
    weight_table: Tensor
    kept: Tensor
    threshold: Tensor
    backend: str
    arrangement: Arrangement | None = None
    weight_bound: float = 1.0

    def __len__(self) -> int:
        """Return the number of kept samples."""
        return self.num_kept

    @property
    def num_kept(self) -> int:
        """How many samples are kept."""
        return self.kept.shape[0]

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What ``order`` reads on the device."""
        return (self.kept,)

    @property
    def num_samples(self) -> int:
        """N."""
        return self.weight_class.shape[0]

    def order(self, positions: Tensor | range) -> Tensor:
        """Return the samples at some positions of the epoch: ``kept[pi(position)]``.

        With fixed batches, those of the batch that the position falls into.

        Args:
            positions: int64 [M] or a range, each in 0..num_kept-1.

        Returns:
            int32 [M], in the order of ``positions`` (``ops.order``).

        Raises:
            IndexError: a position is out of range.
        """
        if self.arrangement is not None:
            return self.arrangement.order(self.kept, positions, self.epoch)
        return ops.order(
            self.kept, positions, seed=self.seed, epoch=self.epoch, backend=self.backend
        )

    def batches(
        self,
        batch_size: int,
        positions: range | None = None,
        *,
        dtype: torch.dtype = torch.int32,
    ) -> PlanBatches:
        """Cut the epoch into batches of samples, on the device; the host never waits.

        Args:
            batch_size: at least 1; the last batch may be smaller.
            positions: which, in order; default all. Rank q of W takes ``range(q, num_kept, W)``.
            dtype: of the indices, int32 or int64.

        Returns:
            A sequence of tensors [B]: sized, iterable, and random access by number.

        Raises:
            ValueError: ``batch_size`` is out of range.

        Example:
            >>> rule = Rule.keep_all(torch.device("cpu"))
            >>> plan = make_plan(ScoreBuffer(5), rule, seed=0, epoch=0)
            >>> batches = plan.batches(2)
            >>> len(batches), [batch.shape[0] for batch in batches]
            (3, [2, 2, 1])
            >>> batches[2].tolist() == plan.indices[4:].tolist()
            True
        """
        everything = range(self.num_kept)
        return PlanBatches(
            self, plain(batch_size), everything if positions is None else positions, dtype
        )

    @property
    def indices(self) -> Tensor:
        """The whole training order, int32 [num_kept], made when asked for."""
        return self.order(range(self.num_kept))

    @cached_property
    def largest_weight(self) -> float:
        """The largest weight that a sample has; read from the device once, when asked for.

        Ask while the plan is current: the classes are the buffer's, and the next plan's after it.
        """
        present = torch.bincount(self.weight_class, minlength=self.weight_table.shape[0]) > 0
        return float(torch.where(present, self.weight_table, 0.0).max().item())

    @property
    def weights(self) -> Tensor:
        """The weight of every sample, float32 [N], 0 where dropped; made when asked for."""
        return decode_weights(self.weight_class, self.weight_table)


@dataclass(frozen=True)
class PlanBatches:
    """The batches of an epoch as tensors on the device (``EpochPlan.batches``).

    Args:
        plan: whose samples.
        batch_size: at least 1.
        positions: of the epoch, in order.
        dtype: of the indices.

    Raises:
        ValueError: ``batch_size`` is out of range.
    """

    plan: EpochPlan
    batch_size: int
    positions: range
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"batch_size must be an int of at least 1, got {self.batch_size!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"dtype must be torch.int32 or torch.int64, got {self.dtype}")

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.positions) // self.batch_size)

    def __getitem__(self, number: int) -> Tensor:
        """Return one batch, by one launch; a negative number counts from the end."""
        at = range(len(self))[number] * self.batch_size
        return self._order(self.positions[at : at + self.batch_size])

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every batch: views of a chunk, which is one launch for many batches."""
        chunk = max(1, CHUNK // self.batch_size) * self.batch_size
        for at in range(0, len(self.positions), chunk):
            samples = self._order(self.positions[at : at + chunk])
            for first in range(0, samples.shape[0], self.batch_size):
                size = min(self.batch_size, samples.shape[0] - first)
                yield samples.narrow(0, first, size)

    @lasting
    def _order(self, positions: range) -> Tensor:
        return self.plan.order(positions).to(self.dtype)


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


def make_plan(
    buffer: ScoreBuffer,
    rule: AnyRule,
    *,
    seed: int,
    epoch: int,
    ahead: bool = False,
    counts: Tensor | None = None,
) -> EpochPlan:
    """Decide an epoch and list what is kept.

    Reads one number from the device, the count, because the list is allocated to size: an epoch's
    end is the one place where the host waits.

    Args:
        buffer: the scores; unless ``ahead``, its weight classes and current epoch change.
        rule: thresholds and bands, levels, or a decision made already, which is copied.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        ahead: decide into fresh storage, for an epoch that has not begun (1 byte per sample more).
        counts: int64 [4096], the cells of all shards together, where a shard plans by levels;
            default the buffer's own.

    Returns:
        The plan.

    Raises:
        ValueError: a selection is not for these samples, or has a class without a weight.

    Example:
        >>> len(make_plan(ScoreBuffer(2), Rule.keep_all(torch.device("cpu")), seed=0, epoch=3))
        2
    """
    if isinstance(rule, Selection):
        made = _select(buffer, rule, ahead=ahead)
    elif isinstance(rule, Rule | TopRule):
        made = _draw_bands(buffer, rule, seed=seed, epoch=epoch, ahead=ahead)
    else:
        counts = buffer.cells() if counts is None else counts
        made = _draw_levels(buffer, rule, counts, seed=seed, epoch=epoch, ahead=ahead)
    if not ahead:
        buffer.activate(made.weight_class, made.table, epoch)
    arrangement = rule.arrangement if isinstance(rule, Selection) else None
    if arrangement is None:
        kept = ops.compact(
            made.weight_class, made.block_offsets, made.num_kept, backend=buffer.backend
        )
    else:
        kept = _list_arranged(arrangement, made.num_kept)
    return EpochPlan(
        epoch,
        seed,
        made.weight_class,
        made.table,
        kept,
        made.thresholds.to(buffer.device),
        buffer.backend,
        arrangement,
        made.weight_bound,
    )


class _Decision(NamedTuple):
    """What a rule of any kind comes to."""

    weight_class: Tensor
    block_offsets: Tensor
    num_kept: int
    table: Tensor
    thresholds: Tensor
    weight_bound: float


def _select(buffer: ScoreBuffer, rule: Selection, *, ahead: bool) -> _Decision:
    """Copy a decision made already."""
    table = weights_on(rule.weight_table, buffer.device)
    block_offsets, num_kept = _count_selection(rule, buffer)
    chosen = rule.weight_class
    weight_class = chosen.clone() if ahead else buffer.weight_class.copy_(chosen)
    bound = max(rule.weight_table)
    return _Decision(weight_class, block_offsets, num_kept, table, rule.thresholds, bound)


def _draw_bands(
    buffer: ScoreBuffer, rule: Rule | TopRule, *, seed: int, epoch: int, ahead: bool
) -> _Decision:
    """Draw each sample's fate by the band of its score."""
    weight_class, block_offsets = ops.plan(
        buffer.records,
        rule,
        seed=seed,
        epoch=epoch,
        out=None if ahead else buffer.weight_class,
        first=buffer.first,
        backend=buffer.backend,
    )
    table = weights_on(rule.weight_table, buffer.device)
    num_kept = int(block_offsets[-1].item())
    # Before the first epoch nobody has a score, and whoever has none is kept with weight 1.
    unseen = epoch == 0 and isinstance(rule, Rule) and rule.unseen_band < 0
    bound = 1.0 if unseen else max(rule.weight_table)
    return _Decision(weight_class, block_offsets, num_kept, table, rule.thresholds, bound)


def _draw_levels(
    buffer: ScoreBuffer, rule: LevelRule, counts: Tensor, *, seed: int, epoch: int, ahead: bool
) -> _Decision:
    """Draw each sample's fate by the level of its score."""
    levels = ops.solve_levels(
        counts, rule.target, least=rule.least, unseen=rule.unseen, backend=buffer.backend
    )
    weight_class, block_offsets = ops.plan_levels(
        buffer.records,
        levels.top,
        levels.cut,
        seed=seed,
        epoch=epoch,
        unseen=rule.unseen,
        out=None if ahead else buffer.weight_class,
        first=buffer.first,
        backend=buffer.backend,
    )
    # Beyond the floats, where hardly anything is kept, the largest of them.
    bits = levels.solution[:1].clamp(max=LARGEST_BITS).to(torch.int32)
    num_kept = int(block_offsets[-1].item())
    return _Decision(
        weight_class,
        block_offsets,
        num_kept,
        rule.capped(levels.weight_table),
        bits.view(torch.float32),
        # Nobody has a score before the first epoch.
        1.0 if epoch == 0 and rule.unseen is None else rule.weight_bound,
    )


def _list_arranged(arrangement: Arrangement, num_kept: int) -> Tensor:
    kept = arrangement.samples()
    if kept.shape[0] != num_kept:
        raise ValueError(
            f"arrangement must list the {num_kept} samples of a class above 0, got {kept.shape[0]}"
        )
    return kept


def _count_selection(selection: Selection, buffer: ScoreBuffer) -> tuple[Tensor, int]:
    """Count what a selection keeps, and refuse classes that no weight table has."""
    classes = check_vector(
        "weight_class",
        selection.weight_class,
        (torch.uint8,),
        size=buffer.num_samples,
        device=buffer.device,
    )
    block_offsets = count_kept(classes)
    # A class without a weight would silently weigh 0; the largest is read along with the count,
    # which the host waits for anyway.
    largest = classes.max() if classes.numel() else block_offsets[0]
    num_kept, most = host_ints(torch.stack([block_offsets[-1], largest.to(torch.int64)]))
    weighed = weighed_classes(selection.weight_table)
    if most >= weighed:
        raise ValueError(
            f"weight_class must be in 0..{weighed - 1}, the classes with a weight, got {most}"
        )
    if num_kept == 0 and buffer.num_samples and selection.arrangement is None:
        raise ValueError("weight_class must keep a sample, got 0 for all: an epoch without any")
    return block_offsets, num_kept


def count_kept(weight_class: Tensor) -> Tensor:
    """Count the kept samples by block, from weight classes made elsewhere.

    Args:
        weight_class: uint8 [N].

    Returns:
        int64 [ceil(N / 4096) + 1], exclusive prefix sums, as ``ops.plan`` returns them.

    Example:
        >>> count_kept(torch.tensor([1, 0, 2], dtype=torch.uint8)).tolist()
        [0, 2]
    """
    kept = weight_class != 0
    whole = kept.shape[0] // PLAN_BLOCK * PLAN_BLOCK
    counts = [torch.zeros(1, dtype=torch.int64, device=kept.device)]
    counts.append(kept[:whole].view(-1, PLAN_BLOCK).sum(dim=1))
    if whole < kept.shape[0]:
        counts.append(kept[whole:].sum(dim=0, keepdim=True))
    return torch.cat(counts).cumsum(0)


def list_kept(weight_class: Tensor, backend: str) -> Tensor:
    """List what restored weight classes keep.

    Args:
        weight_class: uint8 [N].
        backend: which kernels.

    Returns:
        int32 [num_kept], ascending.

    Example:
        >>> list_kept(torch.tensor([1, 0, 2], dtype=torch.uint8), "auto").tolist()
        [0, 2]
    """
    block_offsets = count_kept(weight_class)
    num_kept = int(block_offsets[-1].item())
    return ops.compact(weight_class, block_offsets, num_kept, backend=backend)


def restore_plan(
    buffer: ScoreBuffer,
    thresholds: Tensor,
    *,
    seed: int,
    epoch: int,
    arrangement: Arrangement | None = None,
) -> EpochPlan:
    """List what the buffer's weight classes keep: the plan of a restored state.

    Args:
        buffer: restored already.
        thresholds: float32 [T], as saved.
        seed: the engine's.
        epoch: the epoch that the weight classes are for.
        arrangement: that of the saved plan, where it had one.

    Returns:
        The plan, bit for bit the saved one.

    Raises:
        ValueError: the arrangement is not of the samples that the weight classes keep.

    Example:
        >>> restore_plan(ScoreBuffer(3), torch.empty(0), seed=0, epoch=0).kept.tolist()
        [0, 1, 2]
    """
    classes, table = buffer.weight_class, buffer.weight_table.clone()
    if arrangement is None:
        kept = list_kept(classes, buffer.backend)
    else:
        kept = _list_arranged(arrangement, int(torch.count_nonzero(classes).item()))
    bound = float(table.max().item())
    return EpochPlan(
        epoch, seed, classes, table, kept, thresholds, buffer.backend, arrangement, bound
    )


def dump_plan(plan: EpochPlan) -> dict[str, Any]:
    """Return a plan made ahead as plain data; the current one's classes are in the buffer.

    Args:
        plan: the plan.

    Returns:
        Copies on the cpu.

    Example:
        >>> plan = make_plan(ScoreBuffer(2), Rule.keep_all(torch.device("cpu")), seed=0, epoch=3)
        >>> dump_plan(plan)["epoch"]
        3
    """
    tensors = {name: getattr(plan, name).to("cpu", copy=True) for name in PLAN_TENSORS}
    return {"epoch": plan.epoch, **tensors}


def restore_ahead(buffer: ScoreBuffer, state: Mapping[str, Any], *, seed: int) -> EpochPlan:
    """Return the plan that ``dump_plan`` wrote.

    Args:
        buffer: says where tensors live.
        state: what ``dump_plan`` returned.
        seed: the engine's.

    Returns:
        The plan, bit for bit the saved one, with storage of its own.

    Example:
        >>> buffer = ScoreBuffer(2)
        >>> plan = make_plan(buffer, Rule.keep_all(torch.device("cpu")), seed=0, epoch=3)
        >>> restore_ahead(buffer, dump_plan(plan), seed=0).kept.tolist()
        [0, 1]
    """
    classes, table, thresholds = (state[name].to(buffer.device, copy=True) for name in PLAN_TENSORS)
    kept = list_kept(classes, buffer.backend)
    bound = float(state["weight_table"].max())
    return EpochPlan(
        int(state["epoch"]), seed, classes, table, kept, thresholds, buffer.backend, None, bound
    )
