# SPDX-License-Identifier: Apache-2.0
"""What a policy is: a frozen value that turns scores into one epoch's rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from prune_engine.bands import decimal_fraction
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Rule, Selection


@dataclass(frozen=True)
class Progress:
    """How far a run is when an epoch is planned, as exact numbers.

    Args:
        epoch: the epoch being planned, 0-based.
        done: nominal work done before it: epochs, or steps.
        total: nominal work of the run, or None where it is not known.
        seed: the run's, for policies that draw themselves.

    Example:
        >>> Progress(epoch=3, done=3, total=10).total
        10
    """

    epoch: int
    done: int
    total: int | None
    seed: int = 0


class PolicyMemory(Protocol):
    """What a policy remembers of earlier epochs, where the last score is not enough.

    The run owns it: it calls ``end_epoch`` once per epoch, saves and restores it with the engine's
    state, and hands it to ``rule``. On several ranks it must be a function of the merged records.

    Example:
        >>> class Ended:
        ...     count = 0
        ...     def end_epoch(self, buffer, epoch): self.count += 1
        ...     def state_dict(self): return {"count": self.count}
        ...     def state_problems(self, state): return [] if "count" in state else ["no count"]
        ...     def load_state_dict(self, state): self.count = state["count"]
        >>> memory: PolicyMemory = Ended()
        >>> memory.state_problems({})
        ['no count']
    """

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Take in an epoch that ended: merged and audited, before the next rule.

        Args:
            buffer: the scores and the weight classes of the epoch; not changed.
            epoch: the epoch.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu, numbers, strings and lists."""
        ...

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state, before anything is loaded.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        ...


class Policy(ABC):
    """A policy sees the score buffer and the progress, and returns a rule; never a kernel."""

    @property
    def needs_total(self) -> bool:
        """Whether the length of the run must be known."""
        return False

    @property
    def fixed_batch(self) -> int | None:
        """The size, over all ranks, of batches whose samples stay together; None: no batches."""
        return None

    @property
    def divisible(self) -> bool:
        """Whether ranks may divide the scores: it decides by sums, and each sample by itself."""
        return False

    def memory(self, buffer: ScoreBuffer, seed: int) -> PolicyMemory | None:
        """Return fresh memory for one run, or None where the last scores are all it needs.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: the run's.

        Returns:
            What the run keeps, and passes to ``rule``.
        """
        return None

    @abstractmethod
    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Rule | Selection:
        """Return the rule of one epoch, or the decision itself.

        Args:
            buffer: the scores; not changed.
            progress: where the run is.
            memory: what ``memory`` returned; not passed where that was None.

        Returns:
            The rule; nothing in it makes the host wait.
        """

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters as plain data (a state is checked against it)."""
        # Concrete policies are dataclasses; this base is not one, so that it has no fields.
        return {"policy": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


def annealing(delta: float, progress: Progress) -> bool:
    """Say whether an epoch keeps everything: done >= delta * total, compared exactly.

    InfoBatch (ICLR 2024, section 3.3) trains the last part of a run on all the data. delta is read
    as the decimal it prints as, so delta = 0.875 of 90 epochs anneals from epoch 79 on.

    Args:
        delta: in (0, 1].
        progress: where the run is.

    Returns:
        Whether the epoch anneals; never where the total is not known.

    Example:
        >>> [annealing(0.875, Progress(t, t, 90)) for t in (78, 79)]
        [False, True]
    """
    return progress.total is not None and progress.done >= decimal_fraction(delta) * progress.total
