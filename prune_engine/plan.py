# SPDX-License-Identifier: Apache-2.0
"""One epoch's decision: which samples, with which weights, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.buffer import ScoreBuffer
from prune_engine.checks import check_vector
from prune_engine.types import NUM_CLASSES, PLAN_BLOCK, Rule, Selection, host_ints
from prune_engine.weights import decode_weights

PLAN_TENSORS = ("weight_class", "weight_table", "threshold")  # what a plan made ahead is saved as


@dataclass(frozen=True)
class EpochPlan:
    """The samples of one epoch, their weights and their order.

    ``weight_class`` is the buffer's own storage: it is this epoch's until the next plan is made.

    Args:
        epoch: the epoch it is for.
        seed: the engine's seed.
        weight_class: uint8 [N]; 0 = dropped.
        weight_table: float32 [8].
        kept: int32 [num_kept], ascending.
        threshold: float32 [T], the rule's thresholds.
        backend: which kernels.

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

    def __len__(self) -> int:
        """Return the number of kept samples."""
        return self.num_kept

    @property
    def num_kept(self) -> int:
        """How many samples are kept."""
        return self.kept.shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.weight_class.shape[0]

    def order(self, positions: Tensor | range) -> Tensor:
        """Return the samples at some positions of the epoch: ``kept[pi(position)]``.

        Args:
            positions: int64 [M] or a range, each in 0..num_kept-1.

        Returns:
            int32 [M], in the order of ``positions`` (``ops.order``).

        Raises:
            IndexError: a position is out of range.
        """
        return ops.order(
            self.kept, positions, seed=self.seed, epoch=self.epoch, backend=self.backend
        )

    @property
    def indices(self) -> Tensor:
        """The whole training order, int32 [num_kept], made when asked for."""
        return self.order(range(self.num_kept))

    @property
    def weights(self) -> Tensor:
        """The weight of every sample, float32 [N], 0 where dropped; made when asked for."""
        return decode_weights(self.weight_class, self.weight_table)


def make_plan(
    buffer: ScoreBuffer, rule: Rule | Selection, *, seed: int, epoch: int, ahead: bool = False
) -> EpochPlan:
    """Decide an epoch and list what is kept.

    Reads one number from the device, the count, because the list is allocated to size: an epoch's
    end is the one place where the host waits.

    Args:
        buffer: the scores; unless ``ahead``, its weight classes and current epoch change.
        rule: thresholds and bands, or a decision made already, which is copied.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        ahead: decide into fresh storage, for an epoch that has not begun (1 byte per sample more).

    Returns:
        The plan.

    Raises:
        ValueError: a selection is not for these samples, or has a class above 7.

    Example:
        >>> len(make_plan(ScoreBuffer(2), Rule.keep_all(torch.device("cpu")), seed=0, epoch=3))
        2
    """
    table = torch.tensor(rule.weight_table, dtype=torch.float32, device=buffer.device)
    if isinstance(rule, Selection):
        block_offsets, num_kept = _count_selection(rule, buffer)
        chosen = rule.weight_class
        weight_class = chosen.clone() if ahead else buffer.weight_class.copy_(chosen)
    else:
        weight_class, block_offsets = ops.plan(
            buffer.records,
            rule,
            seed=seed,
            epoch=epoch,
            out=None if ahead else buffer.weight_class,
            backend=buffer.backend,
        )
        num_kept = int(block_offsets[-1].item())
    if not ahead:
        buffer.activate(weight_class, table, epoch)
    kept = ops.compact(weight_class, block_offsets, num_kept, backend=buffer.backend)
    thresholds = rule.thresholds.to(buffer.device)
    return EpochPlan(epoch, seed, weight_class, table, kept, thresholds, buffer.backend)


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
    # A batch looks its weight up by the class, so a wild one must not get there; the largest is
    # read along with the count, which the host waits for anyway.
    largest = classes.max() if classes.numel() else block_offsets[0]
    num_kept, most = host_ints(torch.stack([block_offsets[-1], largest.to(torch.int64)]))
    if most >= NUM_CLASSES:
        raise ValueError(f"weight_class must be in 0..{NUM_CLASSES - 1}, got {most}")
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


def restore_plan(buffer: ScoreBuffer, thresholds: Tensor, *, seed: int, epoch: int) -> EpochPlan:
    """List what the buffer's weight classes keep: the plan of a restored state.

    Args:
        buffer: restored already.
        thresholds: float32 [T], as saved.
        seed: the engine's.
        epoch: the epoch that the weight classes are for.

    Returns:
        The plan, bit for bit the saved one.

    Example:
        >>> restore_plan(ScoreBuffer(3), torch.empty(0), seed=0, epoch=0).kept.tolist()
        [0, 1, 2]
    """
    classes, table = buffer.weight_class, buffer.weight_table.clone()
    kept = list_kept(classes, buffer.backend)
    return EpochPlan(epoch, seed, classes, table, kept, thresholds, buffer.backend)


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
    return EpochPlan(int(state["epoch"]), seed, classes, table, kept, thresholds, buffer.backend)
