# SPDX-License-Identifier: Apache-2.0
"""A run whose scores are divided among the ranks: its plans, its exchanges and its states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.epoch import ranks, state
from prune_engine.epoch.plan import EpochPlan, list_kept
from prune_engine.epoch.report import EpochReport, History
from prune_engine.epoch.run import EpochRun
from prune_engine.epoch.score_buffer import Audit, ScoreBuffer
from prune_engine.errors import PruneEngineError, StateMismatchError
from prune_engine.ops.rule import Rule, Selection
from prune_engine.ops.to_host import host_floats
from prune_engine.policies import Policy
from prune_engine.sharding.exchange import audit_shards, make_share, return_records
from prune_engine.sharding.local_samples import Share

PART_TENSORS = ("records", "weight_class")  # of a state: those of the samples that a rank owns


@dataclass(frozen=True)
class ShardedPlan(EpochPlan):
    """One epoch's decision as one of several ranks knows it.

    ``weight_class`` and ``weights`` are of the samples that this rank owns, ``kept`` (int64) of
    those that it trains; ``num_kept`` counts all ranks', and ``order`` and ``batches`` answer for
    this rank's positions alone, with what a run of undivided scores has there.
    """

    share: Share | None = None
    samples_in_all: int = 0

    @property
    def num_samples(self) -> int:
        """N."""
        return self.samples_in_all

    @property
    def num_kept(self) -> int:
        """How many samples are kept over all ranks."""
        return self._share().num_kept

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What ``order`` reads on the device."""
        return (self.kept, self._share().place)

    def order(self, positions: Tensor | range) -> Tensor:
        """Return the samples at some positions of this rank, int64 (``Share.order``)."""
        return self._share().order(positions)

    @property
    def indices(self) -> Tensor:
        """The training order of this rank, int64."""
        return self.order(self._share().positions)

    def _share(self) -> Share:
        assert self.share is not None
        return self.share


def check_divisible(policy: Policy, mode: str) -> None:
    """Refuse what a rank cannot decide from its own scores and a few sums.

    Args:
        policy: must be ``divisible``.
        mode: must be ``"epoch"``.

    Raises:
        ValueError: one is not.

    Example:
        >>> from prune_engine.policies import InfoBatch
        >>> check_divisible(InfoBatch(), "epoch")
    """
    if not policy.divisible:
        raise ValueError(
            "policy must decide each sample by itself where the scores are divided (InfoBatch, "
            f"RandomSubset with independent draws, KeepAll), got {policy}"
        )
    if mode != "epoch":
        raise ValueError(f"mode must be 'epoch' where the scores are divided, got {mode!r}")


class ShardedRun(EpochRun):
    """A run through the epochs on ranks that each own a part of the scores.

    Making it, ending an epoch, saving and restoring are collectives.
    """

    def begin_pass(self, align: int, shards: int) -> tuple[EpochPlan, int]:
        """Begin to serve what of the epoch has not been trained yet (``EpochRun.begin_pass``).

        Raises:
            PruneEngineError: the pass is not shared among all ranks: a rank knows its own samples.
        """
        _, size = self._ranks()
        if shards != size:
            raise PruneEngineError(
                f"where {size} ranks divide the scores each must serve its own share, got a "
                f"sampler of {shards}: a framework that deals out the batches cannot be used"
            )
        return super().begin_pass(align, shards)

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's part of the state (``PruneEngine.state_dict``); alone, all of it."""
        counters = self._meet("state_dict", self.cursor)
        buffer = self.buffer.state_dict()
        buffer["counters"] = counters.to("cpu", copy=True)
        rank, size = self._ranks()
        if size > 1:
            # Under a name of the rank's own: what has one name on all ranks is taken for the same
            # by torch.distributed.checkpoint, which then saves one of them.
            own = {name: buffer.pop(name) for name in PART_TENSORS}
            shard = {"first": self.buffer.owned.start, **own}
            buffer["shards"] = {f"{rank}-of-{size}": shard}
        return state.save(self, buffer, host_floats(self.plan.threshold), [])

    def load_state_dict(self, saved: state.Saved) -> None:
        """Restore a state from its parts; all ranks or none."""
        problem: StateMismatchError | None = None
        whole: Mapping[str, Any] = {}
        try:
            whole = assemble([saved] if isinstance(saved, Mapping) else saved, self.buffer)
            state.check(self, whole)
        except StateMismatchError as error:
            problem = error
        ranks.fail_together(
            problem,
            lambda rank: StateMismatchError(f"rank {rank} was given a state that does not fit"),
            self.buffer.device,
            self.process_group,
        )
        self.buffer.load_state_dict(whole["buffer"])
        if self._ranks()[0] > 0:  # the counters are of all ranks together
            self.buffer.reset_counters()
        self.history = History.from_state(whole["history"])
        counters = self.buffer.counters.clone()
        self._begin_epoch(int(whole["epoch"]))
        self.buffer.counters.copy_(counters)
        self._steps = int(whole["steps"])
        thresholds = torch.tensor(whole["threshold"], dtype=torch.float32)
        self.seek(int(whole["cursor"]))
        kept = list_kept(self.buffer.weight_class, self.buffer.backend)
        table = self.buffer.weight_table.clone()
        self._plan = self._planned(kept, table, thresholds, self.epoch, self.cursor)

    def _ranks(self) -> tuple[int, int]:
        """Return (rank, world size); raise where they are not those who divided the scores."""
        shard, now = self.buffer.shard, ranks.world(self.process_group)
        if shard is None or shard != now:
            raise PruneEngineError(
                f"the scores were divided as (rank, world size) = {shard}, but this is {now}: make "
                "the engine after init_process_group, and a new one where the ranks change"
            )
        return shard

    def _decide(self, rule: Rule | Selection, epoch: int, ahead: bool = False) -> EpochPlan:
        assert isinstance(rule, Rule) and not ahead
        buffer = self.buffer
        classes, block_offsets = ops.plan(
            buffer.records,
            rule,
            seed=self.seed,
            epoch=epoch,
            out=buffer.weight_class,
            first=buffer.owned.start,
            backend=buffer.backend,
        )
        table = torch.tensor(rule.weight_table, dtype=torch.float32, device=buffer.device)
        buffer.activate(classes, table, epoch)
        num_kept = int(block_offsets[-1].item())
        kept = ops.compact(classes, block_offsets, num_kept, backend=buffer.backend)
        buffer.share = None  # the old one goes before the new one comes
        return self._planned(kept, table, rule.thresholds, epoch, 0)

    def _planned(
        self, kept: Tensor, table: Tensor, thresholds: Tensor, epoch: int, start: int
    ) -> EpochPlan:
        buffer, group = self.buffer, self.process_group
        self._ranks()
        share = make_share(buffer, kept, start=start, seed=self.seed, epoch=epoch, group=group)
        buffer.share = share
        return ShardedPlan(
            epoch,
            self.seed,
            buffer.weight_class,
            table,
            share.samples,
            thresholds.to(buffer.device),
            buffer.backend,
            share=share,
            samples_in_all=buffer.num_samples,
        )

    def _exchange(self, facts: dict[str, int]) -> Tensor:
        self._ranks()
        return return_records(self.buffer, epoch=self.epoch, facts=facts, group=self.process_group)

    def _report(self, merged: Tensor) -> EpochReport:
        counters = self.buffer.read_counters(merged)
        if counters.out_of_range:
            raise IndexError(
                "indices must be samples that the rank was served in the epoch: "
                f"{counters.out_of_range} were not in epoch {self.epoch}"
            )
        return super()._report(merged)

    def _audit(self) -> Audit:
        return audit_shards(self.buffer, epoch=self.epoch, group=self.process_group)


def assemble(parts: Sequence[Mapping[str, Any]], buffer: ScoreBuffer) -> dict[str, Any]:
    """Put together what one rank needs of a state, from the parts that some ranks saved.

    Args:
        parts: what ``state_dict`` returned on the ranks, in any order; those of the samples that
            this rank owns are enough. A state of undivided scores is one part.
        buffer: says which samples this rank owns.

    Returns:
        A state whose records and weight classes are those of the rank.

    Raises:
        StateMismatchError: samples are missing, twice there, or of another moment of the run.
    """
    own = buffer.owned
    whole: dict[str, Any] = dict(parts[0]) if parts else {}
    facts = ("version", "num_samples", "policy", "seed", "epoch", "cursor", "steps")
    found = 0
    mine = {name: torch.zeros_like(getattr(buffer, name), device="cpu") for name in PART_TENSORS}
    for number, part in enumerate(parts):
        differ = [name for name in facts if part.get(name) != whole.get(name)]
        if differ:
            raise StateMismatchError(
                f"the parts of a state must be of one moment, but part {number} differs from part "
                f"0 in {', '.join(differ)}"
            )
        for first, tensors in _shards(part, number):
            overlap = range(max(first, own.start), min(first + len(tensors[0]), own.stop))
            found += len(overlap)
            if overlap:
                here = slice(overlap.start - own.start, overlap.stop - own.start)
                there = slice(overlap.start - first, overlap.stop - first)
                for name, tensor in zip(PART_TENSORS, tensors, strict=True):
                    mine[name][here] = tensor[there]
    if found != len(own):
        raise StateMismatchError(
            f"the parts must hold each of the samples {own} once, got {found} of {len(own)}: pass "
            "the parts that all ranks saved"
        )
    if whole:
        whole["buffer"] = {**whole["buffer"], **mine}
        whole["buffer"].pop("shards", None)
    return whole


def _shards(part: Mapping[str, Any], number: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the first sample and the tensors of each shard that a part of a state has."""
    saved = part.get("buffer")
    held = cast("Mapping[str, Any]", saved if isinstance(saved, Mapping) else {})
    for shard in held.get("shards", {"all": held}).values():
        tensors = [shard.get(name) for name in PART_TENSORS]
        if not all(isinstance(tensor, Tensor) for tensor in tensors) or (
            len({tensor.shape for tensor in tensors}) > 1
        ):
            raise StateMismatchError(f"part {number} of the state holds no records and classes")
        yield int(shard.get("first", 0)), tensors
