# SPDX-License-Identifier: Apache-2.0
"""What policies over fixed batches share: the rule, and the memory of which batches are alive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import weight_table
from prune_engine.epoch.fits import int_problems, tensor_problems
from prune_engine.epoch.policy import Policy, PolicyMemory, Progress, RunFacts
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import StateMismatchError
from prune_engine.ops.rule import Selection
from prune_engine.policies.batches.fixed import MEMBERS, FixedBatches, KeptBatches

RANKS = MEMBERS - 1  # the order's epoch word of the random control's ranking


class BatchPolicy(Policy):
    """A policy that keeps or drops whole fixed batches."""

    batch_size: int
    shuffle_batches: bool
    drop_last: bool

    @property
    def fixed_batch(self) -> int:
        """B, over all ranks."""
        return self.batch_size

    def deal(self, buffer: ScoreBuffer, seed: int) -> FixedBatches:
        """Deal the samples into batches, once for a run.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: the run's.

        Returns:
            The batches.
        """
        return FixedBatches(
            buffer.num_samples,
            self.batch_size,
            self.drop_last,
            seed,
            buffer.device,
            buffer.backend,
        )

    def memory(self, buffer: ScoreBuffer, seed: int) -> BatchMemory:
        """Return fresh memory for one run.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: the run's.

        Returns:
            The fixed batches, all alive.
        """
        return BatchMemory(self, self.deal(buffer, seed))

    @abstractmethod
    def decide(self, memory: BatchMemory, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Decide who is alive in an epoch, from what is remembered of those before it.

        Args:
            memory: the run's; not changed.
            epoch: the epoch to decide.

        Returns:
            bool [num_batches], and what the report calls the threshold, or None.
        """

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Selection:
        """Return what the memory decided when the last epoch ended.

        Args:
            buffer: not used.
            progress: not used.
            memory: the run's.

        Returns:
            The decision.

        Raises:
            TypeError: the memory is not that of fixed batches.
        """
        return BatchMemory.of(memory).select()


def check_batches(batch_size: object, min_batches: object, **flags: object) -> None:
    """Refuse what no policy over fixed batches can mean (edge case 10).

    Args:
        batch_size: must be an int of at least 1.
        min_batches: must be an int of at least 0.
        flags: must be bools.

    Raises:
        TypeError: of another type.
        ValueError: out of range.

    Example:
        >>> check_batches(128, 0, drop_last=True)
    """
    for name, value, least in (("batch_size", batch_size, 1), ("min_batches", min_batches, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int of at least {least}, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {value!r}")


class BatchMemory(PolicyMemory):
    """The fixed batches of a run and which of them are alive.

    Args:
        policy: decides, once per epoch, who is alive.
        batches: all of them.

    Example:
        >>> from prune_engine import RandomBatches
        >>> fixed = FixedBatches(7, 3, False, 0, torch.device("cpu"), "auto")
        >>> BatchMemory(RandomBatches(3), fixed).arrangement().num_batches
        3
    """

    def __init__(self, policy: BatchPolicy, batches: FixedBatches) -> None:
        self.policy = policy
        self.batches = batches
        self.total: int | None = None  # epochs of the run
        self.process_group: Any = None
        self.alive = torch.ones(batches.num_batches, dtype=torch.bool, device=batches.device)
        self.delta: Tensor | None = None  # what the report calls the threshold
        self.counts: list[int] = []  # batches kept in each epoch, the current one's last
        self._kept: KeptBatches | None = None  # of ``alive``, listed when first asked for

    def begin_run(self, run: RunFacts) -> None:
        """Take note of the run, and decide its first epoch.

        Args:
            run: its length and its process group.
        """
        self.total, self.process_group = run.total, run.process_group
        self._settle(0)

    def drawn(self, count: int) -> Tensor:
        """Return the first so many batches of a random ranking, the same one in every epoch.

        Args:
            count: in 0..num_batches.

        Returns:
            bool [num_batches].
        """
        fixed = self.batches
        ranking = ops.order(
            torch.arange(fixed.num_batches, dtype=torch.int32, device=fixed.device),
            range(fixed.num_batches),
            seed=fixed.seed,
            epoch=RANKS,
            backend=fixed.backend,
        )
        chosen = torch.zeros_like(self.alive)
        chosen[ranking[:count].to(torch.int64)] = True
        return chosen

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Decide the next epoch.

        Args:
            buffer: not used.
            epoch: the epoch that ended.
        """
        if len(self.counts) != epoch + 1:  # only a state that was edited has other numbers
            raise StateMismatchError(
                f"memory.counts: expected {epoch + 1} numbers at the end of epoch {epoch}, got "
                f"{len(self.counts)}: the state that was loaded is of another epoch"
            )
        self._settle(epoch + 1)

    def _settle(self, epoch: int) -> None:
        """Make the policy's decision of an epoch the current one, and count its batches."""
        self.alive, self.delta = self.policy.decide(self, epoch)
        self._kept = None
        self.counts = [*self.counts[:epoch], self.arrangement().num_batches]

    def arrangement(self) -> KeptBatches:
        """Return the batches of the current epoch; this reads their number from the device."""
        if self._kept is None:
            self._kept = self.batches.keep(self.alive, self.policy.shuffle_batches)
        return self._kept

    def nominal(self) -> int:
        """Return how many samples are in a batch at all."""
        return self.batches.dealt

    @property
    def exhausted(self) -> bool:
        """Whether every batch has been dropped for ever."""
        return self.batches.num_batches > 0 and self.arrangement().num_batches == 0

    def select(self) -> Selection:
        """Return the decision of the current epoch: weight 1 for the samples of living batches."""
        delta = self.delta
        thresholds = torch.empty(0) if delta is None else delta.to(torch.float32).reshape(1)
        return Selection(
            self.batches.classes(self.alive),
            weight_table(),
            thresholds,
            arrangement=self.arrangement(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu and lists."""
        return {"alive": self.alive.to("cpu", copy=True), "counts": list(self.counts)}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {"alive": self.alive})
        counts, every = state.get("counts"), self.batches.num_batches
        if not isinstance(counts, list):
            problems.append(f"counts: expected list, got {type(counts).__name__}")
            return problems
        listed = dict(enumerate(cast("list[Any]", counts)))
        problems += [
            f"counts.{wrong}" for wrong in int_problems(listed, dict.fromkeys(listed, every))
        ]
        if not problems and listed.get(len(listed) - 1) != int(state["alive"].sum()):
            problems.append("counts: expected the number of alive batches last, got another")
        return problems

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        self.alive = state["alive"].to(self.alive.device, copy=True)
        self._kept = None
        self.counts = list(state["counts"])
