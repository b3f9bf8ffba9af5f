# SPDX-License-Identifier: Apache-2.0
"""A run whose scores are divided among the ranks: its plans, its exchanges and its states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from prune_engine.epoch import ranks, state
from prune_engine.epoch.plan import EpochPlan, list_kept
from prune_engine.epoch.policy import Policy
from prune_engine.epoch.report import EpochReport
from prune_engine.epoch.run import EpochRun
from prune_engine.epoch.score_buffer import Audit
from prune_engine.epoch.serving import Serving
from prune_engine.errors import PruneEngineError, StateMismatchError
from prune_engine.lasting import lasting
from prune_engine.ops.rule import AnyRule, Selection, TopRule
from prune_engine.ops.to_host import host_floats
from prune_engine.sharding.buffer import ShardedBuffer
from prune_engine.sharding.exchange import audit_shards, make_share, return_records
from prune_engine.sharding.local_samples import Share
from prune_engine.sharding.parts import PART_TENSORS, assemble


@dataclass(frozen=True)
class ShardedPlan(EpochPlan):
    """One epoch's decision as one of several ranks knows it.

    ``weight_class`` and ``weights`` are of the samples that this rank owns, ``kept`` (int64) of
    those that it trains; ``num_kept`` counts all ranks', and ``order`` and ``batches`` answer for
    this rank's positions alone, with what a run of undivided scores has there. Experimental.

    Args:
        share: what this rank trains in the epoch.
        samples_in_all: N.

    Example:
        >>> import prune_engine as pe
        >>> plan = pe.PruneEngine(5, pe.KeepAll(), num_epochs=1, shard_scores=True).plan
        >>> isinstance(plan, pe.sharding.ShardedPlan), plan.num_kept, sorted(plan.indices.tolist())
        (True, 5, [0, 1, 2, 3, 4])
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

    @cached_property
    def largest_weight(self) -> float:
        """The largest weight of the table, which is the same on every rank.

        A rank's own samples may have none as large: rates that are divided by it must not differ.
        """
        return float(self.weight_table.max().item())

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
            f"Proportional, RandomSubset with independent draws, KeepAll), got {policy}"
        )
    if mode != "epoch":
        raise ValueError(f"mode must be 'epoch' where the scores are divided, got {mode!r}")


class ShardedRun(EpochRun):
    """A run through the epochs on ranks that each own a part of the scores.

    Making it, ending an epoch, saving and restoring are collectives.
    """

    def begin_pass(self, align: int, shards: int) -> Serving:
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

    @lasting
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
            shard = {"first": self.buffer.first, **own}
            buffer["shards"] = {f"{rank}-of-{size}": shard}
        return state.save(self, buffer, host_floats(self.plan.threshold), [])

    def resize(self, num_samples: int) -> None:
        """Refuse: where the scores are divided, other samples are other ranks'."""
        raise PruneEngineError(
            f"resize() cannot divide the scores anew, got {num_samples}: make an engine without "
            "shard_scores, or a new one"
        )

    @lasting
    def load_state_dict(self, saved: state.Saved) -> None:
        """Restore a state from its parts; all ranks or none."""
        problem: StateMismatchError | None = None
        whole: Mapping[str, Any] = {}
        try:
            whole = assemble([saved] if isinstance(saved, Mapping) else saved, self._own)
            whole = state.check(self, whole)
        except StateMismatchError as error:
            problem = error
        ranks.fail_together(
            problem,
            lambda rank: StateMismatchError(f"rank {rank} was given a state that does not fit"),
            self.buffer.device,
            self.process_group,
        )
        self._restore(whole)

    @property
    def _one_table(self) -> bool:
        """False: this rank holds the records of its own samples."""
        return False

    def _restored_plan(self, thresholds: Tensor) -> EpochPlan:
        kept = list_kept(self.buffer.weight_class, self.buffer.backend)
        table = self.buffer.weight_table.clone()
        bound = float(table.max().item())
        return self._planned(kept, table, thresholds, self.epoch, self.cursor, bound)

    @property
    def _own(self) -> ShardedBuffer:
        """The buffer, as the one of a shard that it is."""
        assert isinstance(self.buffer, ShardedBuffer)
        return self.buffer

    def _ranks(self) -> tuple[int, int]:
        """Return (rank, world size); raise where they are not those who divided the scores."""
        shard, now = self._own.shard, ranks.world(self.process_group)
        if shard != now:
            raise PruneEngineError(
                f"the scores were divided as (rank, world size) = {shard}, but this is {now}: make "
                "the engine after init_process_group, and a new one where the ranks change"
            )
        return shard

    def _decide(self, rule: AnyRule, epoch: int, ahead: bool = False) -> EpochPlan:
        if isinstance(rule, Selection | TopRule):
            raise ValueError(
                "policy must return a Rule or a LevelRule where the scores are divided, got a "
                f"{type(rule).__name__} of {self.policy}"
            )
        own = super()._decide(rule, epoch, ahead)  # of the samples that this rank owns
        bound = own.weight_bound
        return self._planned(own.kept, own.weight_table, own.threshold, epoch, 0, bound)

    def _cells(self) -> Tensor:
        return ranks.gather(self.buffer.cells(), self.process_group).sum(dim=0)

    def _planned(
        self,
        kept: Tensor,
        table: Tensor,
        thresholds: Tensor,
        epoch: int,
        start: int,
        bound: float,
    ) -> EpochPlan:
        buffer, group = self._own, self.process_group
        self._ranks()
        buffer.share = None  # the old one goes before the new one comes
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
            weight_bound=bound,
            share=share,
            samples_in_all=buffer.num_samples,
        )

    def _exchange(self, counters: Tensor, facts: dict[str, int]) -> Tensor:
        self._ranks()
        return return_records(
            self._own, counters, epoch=self.epoch, facts=facts, group=self.process_group
        )

    def _report(self, merged: Tensor, *, partial: bool = False) -> EpochReport:
        counters = self.buffer.read_counters(merged)
        if counters.out_of_range:
            raise IndexError(
                "indices must be samples that the rank was served in the epoch: "
                f"{counters.out_of_range} were not in epoch {self.epoch}"
            )
        return super()._report(merged, partial=partial)

    def _audit(self) -> Audit:
        return audit_shards(self._own, epoch=self.epoch, group=self.process_group)
