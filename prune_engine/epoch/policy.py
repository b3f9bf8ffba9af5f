# SPDX-License-Identifier: Apache-2.0
"""What a policy is: a frozen value that turns scores into one epoch's rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from prune_engine.bands import decimal_fraction
from prune_engine.epoch.per_sample import PerSample
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Arrangement
from prune_engine.plain import plain

if TYPE_CHECKING:
    from typing_extensions import Self

LATE = {"late": True}  # of a field of a policy: not described where it has its default


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


class Monitor(Protocol):
    """What measures activations: ``ActivationMonitor``, or a user's own."""

    def take(self) -> Tensor:
        """Return float64 [L, 3] = (count, mean, M2) of the last forward pass, and forget it."""
        ...


@dataclass(frozen=True)
class RunFacts:
    """What a policy's memory is told of its run before the first rule is asked for.

    Args:
        total: nominal work of the run (epochs, or steps), or None where it is not known.
        process_group: the data-parallel group, as ``torch.distributed`` takes it; None: all ranks.

    Example:
        >>> RunFacts(total=10).process_group is None
        True
    """

    total: int | None
    process_group: Any = None


class Extras(NamedTuple):
    """What the engine saw of a batch besides losses and scores: None where it did not see it.

    Args:
        logits: [B, C], detached, what ``cross_entropy_observe`` was given.
        targets: [B], likewise.

    Example:
        >>> Extras().logits is None
        True
    """

    logits: Tensor | None = None
    targets: Tensor | None = None


NO_EXTRAS = Extras()


class PolicyMemory(ABC):
    """What a policy remembers in a run, and what it is told: the socket of a policy.

    The run owns it: it calls the hooks below, saves and restores it with the engine's state, and
    hands it to ``rule``, which changes nothing. A hook that is not needed is left out. On several
    ranks what ``rule`` reads must be the same on each: a function of the merged records, or merged
    by ``end_epoch`` over the process group that ``begin_run`` was told of.

    Example:
        >>> class Ended(PolicyMemory):
        ...     count = 0
        ...     def end_epoch(self, buffer, epoch): self.count += 1
        ...     def state_dict(self): return {"count": self.count}
        ...     def state_problems(self, state): return [] if "count" in state else ["no count"]
        ...     def load_state_dict(self, state): self.count = state["count"]
        >>> memory = Ended()
        >>> memory.state_problems({}), memory.arrangement()
        (['no count'], None)
    """

    @classmethod
    def of(cls, memory: object) -> Self:
        """Return the run's memory as what this policy made it.

        Args:
            memory: what the run passed to ``rule``.

        Returns:
            The same object.

        Raises:
            TypeError: another, or none: the rule is not a function of scores alone.
        """
        if not isinstance(memory, cls):
            raise TypeError(f"memory must be a {cls.__name__}, got {type(memory).__name__}")
        return memory

    # Once per run -----------------------------------------------------------------------------

    def begin_run(self, run: RunFacts) -> None:  # noqa: B027 - a hook may be left out
        """Take note of the run; called once, before the first ``rule``.

        Args:
            run: its length and its process group.
        """

    def attach(self, monitor: Monitor) -> bool:
        """Take a monitor of activations (``PruneEngine.attach``).

        Args:
            monitor: for ``before_record`` to take from.

        Returns:
            Whether this memory looks at activations; where it does not, attaching is refused.
        """
        return False

    def resize(self, num_samples: int) -> None:
        """Follow a data set that grows or shrinks at its end (``PruneEngine.resize``).

        Args:
            num_samples: N from the current epoch on.

        Raises:
            ValueError: this memory cannot.
        """
        raise ValueError(
            f"a {type(self).__name__} cannot follow a data set that changes, got {num_samples} "
            "samples: make a new engine"
        )

    # Once per batch ---------------------------------------------------------------------------

    def before_record(self, indices: Tensor) -> None:  # noqa: B027
        """See a batch before its scores are recorded; to raise here leaves nothing recorded.

        Args:
            indices: [B] int64 | int32, as they came: one out of range is refused afterwards.
        """

    def after_record(  # noqa: B027
        self, indices: Tensor, losses: Tensor, score: Tensor, extras: Extras
    ) -> None:
        """See a batch whose scores are recorded; nothing in it may make the host wait.

        Args:
            indices: [B] int64 | int32; on a device some may be out of range, which the epoch's end
                refuses.
            losses: [B], detached: one loss per sample, not weighed yet. In
                ``cross_entropy_observe`` the weighed loss over its weight, which rounds once more.
            score: [B], detached: what was recorded.
            extras: what else was seen.
        """

    # Once per epoch ---------------------------------------------------------------------------

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:  # noqa: B027
        """Take in an epoch that ended, merged and audited, and decide what the next rule says.

        Args:
            buffer: the scores and the weight classes of the epoch; not changed.
            epoch: the epoch.
        """

    def arrangement(self) -> Arrangement | None:
        """Return how the current epoch's samples stand together, where ``rule`` arranges them.

        A restored run asks here, so it must be that of the last ``Selection``, also after
        ``load_state_dict``.

        Returns:
            The arrangement, or None: each sample on its own.
        """
        return None

    def nominal(self) -> int | None:
        """Return how many samples an epoch has that keeps everything; None: the data set."""
        return None

    @property
    def exhausted(self) -> bool:
        """Whether every sample has been dropped for ever: ``PruneEngine.epochs`` ends then."""
        return False

    # The state --------------------------------------------------------------------------------

    # Without a default: a memory that were not saved would resume as another run, in silence.

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu, numbers, strings and lists.

        With several ranks a collective may be called, and the result is the same on each.
        """

    @abstractmethod
    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state, before anything is loaded.

        The state may have been edited: look at every number that the memory relies on.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Give attributes new values and write over none: where the rest of a state does not fit, the
        run puts the attributes back.

        Args:
            state: what ``state_dict`` returned.
        """


def begin_memory(
    policy: Policy, buffer: ScoreBuffer, seed: int, run: RunFacts
) -> PolicyMemory | None:
    """Return a policy's fresh memory that has been told of its run; refuse what is no memory."""
    memory = policy.memory(buffer, seed)
    if memory is None:
        return None
    if not isinstance(memory, PolicyMemory):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"memory() of {type(policy).__name__} must return a PolicyMemory or None, got "
            f"{type(memory).__name__}"
        )
    memory.begin_run(run)
    return memory


def watcher_of(memory: PolicyMemory | None) -> PolicyMemory | None:
    """Return a memory that sees batches, so that a step calls no hook that was left out."""
    for name in ("before_record", "after_record"):
        hook = getattr(memory, name, None)
        if hook is not None and getattr(hook, "__func__", hook) is not getattr(PolicyMemory, name):
            return memory
    return None


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
    ) -> AnyRule:
        """Return the rule of one epoch, or the decision itself.

        Args:
            buffer: the scores; not changed.
            progress: where the run is.
            memory: what ``memory`` returned; not passed where that was None.

        Returns:
            The rule. Nothing in it makes the host wait, and it changes nothing, the memory
            included: asked again about the same epoch it says the same.
        """

    def describe(self) -> dict[str, Any]:
        """Return the name and the parameters as plain data (a state is checked against it).

        A class outside this package is named with its module, such as ``mymodule:MyPolicy``.
        """
        # Concrete policies are dataclasses; this base is not one, so that it has no fields.
        parameters = asdict(self)  # type: ignore[call-overload]
        for each in fields(self):  # type: ignore[arg-type]
            # A parameter that came later is told where it says something, so that what was saved
            # before it came still fits.
            if "late" in each.metadata and parameters[each.name] == each.default:
                del parameters[each.name]
        told = {
            name: value.describe() if isinstance(value, PerSample) else value
            for name, value in parameters.items()
        }
        return {"policy": name_of(self), **plain(told)}


def name_of(policy: Policy) -> str:
    """Return what a state calls a policy: its class, with its module where that is another's.

    A class of another package may have the name of one of ours.

    Args:
        policy: the policy.

    Returns:
        Such as ``"InfoBatch"`` or ``"mymodule:MyPolicy"``.
    """
    kind = type(policy)
    if kind.__module__.startswith("prune_engine."):
        return kind.__name__
    return f"{kind.__module__}:{kind.__qualname__}"


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
