# SPDX-License-Identifier: Apache-2.0
"""What a policy is: a frozen value that turns scores into one epoch's rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from prune_engine.bands import Band, Rule, Selection, decimal_fraction, weight_table
from prune_engine.plain import plain

if TYPE_CHECKING:  # they bring torch, and host.py uses the arithmetic below without torch
    from torch import Tensor

    from prune_engine.epoch.score_buffer import ScoreBuffer


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
        parameters = asdict(self)  # type: ignore[call-overload]
        return {"policy": type(self).__name__, **plain(parameters)}


def check_fraction(name: str, value: object, *, zero: bool, one: bool) -> None:
    """Refuse a number outside the unit interval; never clamp (edge case 10).

    Args:
        name: the argument's name.
        value: what came.
        zero: whether 0 is allowed.
        one: whether 1 is allowed.

    Raises:
        TypeError: not a real number.
        ValueError: outside.

    Example:
        >>> check_fraction("prune_ratio", 0.5, zero=True, one=False)
    """
    interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number in {interval}, got {value!r}")
    inside = (0 < value < 1) or (zero and value == 0) or (one and value == 1)
    if not inside:
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


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


def keep_share(prune_ratio: float) -> tuple[int, int]:
    """Return 1 - prune_ratio as a fraction whose parts fit 31 bits.

    Args:
        prune_ratio: in [0, 1), read as its decimal: exact to nine digits.

    Returns:
        Numerator and denominator.

    Example:
        >>> keep_share(0.9)
        (1, 10)
    """
    share = Fraction(1) - decimal_fraction(prune_ratio)
    share = share.limit_denominator(2**31 - 1)
    return share.numerator, share.denominator


def dropping_band(prune_ratio: float, weight_class: int) -> Band:
    """Return the band that drops a share of its samples.

    ``cut = min(65535, floor(r * 65536 + 0.5))`` (SEMANTICS 3.3).

    Args:
        prune_ratio: r, in [0, 1).
        weight_class: the class of the kept ones.

    Returns:
        A band for independent draws and for fixed counts alike.

    Example:
        >>> dropping_band(0.5, 2).cut
        32768
    """
    cut = min(65535, int(prune_ratio * 65536 + 0.5))
    return Band(cut, weight_class, *keep_share(prune_ratio))


def kept_weight(band: Band, *, fixed: bool) -> float:
    """Return the weight that makes a band's kept samples stand for all of them.

    Independent draws: ``65536 / (65536 - cut)``, exact for the ratio used. Fixed counts:
    ``1 / (1 - r)``, as in the published code; floor((1 - r) n) of n are kept, so it is unbiased to
    within 1 / ((1 - r) n).

    Args:
        band: the band.
        fixed: which of the two.

    Returns:
        The weight.

    Example:
        >>> kept_weight(dropping_band(0.5, 2), fixed=False)
        2.0
    """
    return band.keep_den / band.keep_num if fixed else 65536 / (65536 - band.cut)


def check_sampling(sampling: str) -> None:
    """Refuse an unknown way of drawing.

    Args:
        sampling: ``"bernoulli"`` or ``"fixed"``.

    Raises:
        ValueError: any other.

    Example:
        >>> check_sampling("fixed")
    """
    if sampling not in ("bernoulli", "fixed"):
        raise ValueError(f"sampling must be 'bernoulli' or 'fixed', got {sampling!r}")


def select_fixed(
    buffer: ScoreBuffer,
    pool: Tensor,
    count: int,
    size: int,
    *,
    seed: int,
    epoch: int,
    weight_class: int = 1,
) -> Tensor:
    """Keep a fixed number of a pool's samples, drawn at random, and all others with weight 1.

    Those with the largest keep draws of the epoch stay, ties to the smaller index (SEMANTICS 3.3).

    Args:
        buffer: says which kernels.
        pool: bool [N].
        count: in 0..size, how many of the pool stay.
        size: how many are in the pool.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        weight_class: in 1..7, of those that stay.

    Returns:
        uint8 [N]: 0 = dropped, 1 = not in the pool.

    Example:
        >>> import torch
        >>> from prune_engine import ScoreBuffer
        >>> pool = torch.tensor([True, True, False, True])
        >>> select_fixed(ScoreBuffer(4), pool, 1, 3, seed=0, epoch=0, weight_class=2).tolist()
        [2, 0, 1, 0]
    """
    from prune_engine import ops

    # To plan, the others are samples never seen, which stay; the pool is one band of equal scores.
    records = pool.to(buffer.records.dtype) * ((1 << 32) | (1 << 31))
    band = Band(0, weight_class, count, max(1, size))
    nothing = Rule.keep_all(buffer.device).thresholds
    rule = Rule(nothing, (band,), weight_table(), fixed=True)
    return ops.plan(records, rule, seed=seed, epoch=epoch, backend=buffer.backend)[0]
