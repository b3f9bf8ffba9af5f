# SPDX-License-Identifier: Apache-2.0
"""The words of the library as frozen data: constants, bands, rules, plans and reports.

Everything else imports from here; this file imports nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # imported where used: host.py serves workers that have no torch in them
    import torch
    from torch import Tensor

PLAN_BLOCK = 4096  # samples per entry of block_offsets, on every backend
SAMPLE_BLOCK = 256  # neighbouring elements that a sampled statistic takes or leaves together
NUM_CLASSES = 8  # entries of a weight table; class 0 is "dropped", class 1 is "kept, weight 1"
MAX_BANDS = 6  # classes 2..7 can carry a weight of their own
STREAM_KEEP = 0  # Philox counter word 2 of the keep draw
STREAM_ORDER = 1  # ... and of the first four round keys of the order; 1..8 are taken by it
ROUNDS_SMALL = 32  # tiny sets need many rounds: 12 fail a chi-square over permutations at n = 5
ROUNDS_LARGE = 8
ROUNDS_LIMIT = 65536  # sets up to this size take ROUNDS_SMALL
MAX_SAMPLES = 2**31 - 1  # of one device: kept indices are int32
MAX_INDEX = 2**62  # of a data set divided among ranks; draws and shuffle are exact up to it
MAX_EPOCH = 2**31 - 2  # epoch + 1 is the high half of a record
MAX_SEED = 2**63 - 1
INT64_MAX = 2**63 - 1


class PruneEngineError(RuntimeError):
    """An engine was used in an order that cannot give a right answer."""


class CoverageError(PruneEngineError):
    """The samples seen in an epoch are not the samples that were planned."""


class NonFiniteLossError(PruneEngineError):
    """A loss was inf or nan and the engine was told ``on_nonfinite="raise"``."""


class StateMismatchError(ValueError):
    """A saved state belongs to another data set, policy, seed or version."""


def decimal_fraction(value: float) -> Fraction:
    """Read a float as the decimal it prints as, so that 0.1 means one tenth.

    Args:
        value: a finite float.

    Returns:
        The exact fraction of its shortest decimal form.

    Example:
        >>> decimal_fraction(0.875), decimal_fraction(0.1)
        (Fraction(7, 8), Fraction(1, 10))
    """
    return Fraction(str(float(value)))


@dataclass(frozen=True)
class Band:
    """What happens to the samples of one score band.

    Args:
        cut: in 0..65535; with independent draws a sample is dropped iff its 16-bit draw < cut.
        weight_class: in 1..7; the class of its kept samples.
        keep_num: with fixed counts, floor(n * keep_num / keep_den) of the n samples stay.
        keep_den: in 1..2^31 - 1, the same for all bands of a rule.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> Band(cut=32768, weight_class=2, keep_num=1, keep_den=2).cut
        32768
    """

    cut: int
    weight_class: int
    keep_num: int = 1
    keep_den: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.cut <= 65535:
            raise ValueError(f"cut must be in 0..65535, got {self.cut}")
        if not 1 <= self.weight_class < NUM_CLASSES:
            raise ValueError(f"weight_class must be in 1..7, got {self.weight_class}")
        if not 1 <= self.keep_den < 2**31:
            raise ValueError(f"keep_den must be in 1..2147483647, got {self.keep_den}")
        if not 0 <= self.keep_num <= self.keep_den:
            raise ValueError(f"keep_num must be in 0..keep_den, got {self.keep_num}")


@dataclass(frozen=True)
class Rule:
    """One epoch's decision rule: thresholds cut the scores into bands, each band has its fate.

    Band b of a seen sample is the number of thresholds <= its score (SEMANTICS 3.2: compared as
    order-preserving 32-bit keys). Everything but the thresholds is known on the host, so a rule
    never makes the host wait.

    Args:
        thresholds: float32 [T], T in 0..5, ascending, on the device of the records.
        bands: T + 1 bands, lowest scores first.
        weight_table: 8 floats; entry k is the weight of class k; entry 0 is 0, entry 1 is 1.
        fixed: draw fixed counts per band instead of independently.
        unseen_band: the band of samples that have no score yet; -1 keeps them with weight 1.

    Raises:
        ValueError: sizes do not fit together.

    Example:
        >>> import torch
        >>> Rule.keep_all(torch.device("cpu")).bands
        (Band(cut=0, weight_class=1, keep_num=1, keep_den=1),)
    """

    thresholds: Tensor
    bands: tuple[Band, ...]
    weight_table: tuple[float, ...]
    fixed: bool = False
    unseen_band: int = -1

    def __post_init__(self) -> None:
        import torch

        if self.thresholds.dim() != 1 or self.thresholds.dtype != torch.float32:
            raise ValueError(
                "thresholds must be a float32 vector, got "
                f"{self.thresholds.dtype} of shape {tuple(self.thresholds.shape)}"
            )
        if len(self.bands) != self.thresholds.numel() + 1 or len(self.bands) > MAX_BANDS:
            raise ValueError(
                f"bands must have {self.thresholds.numel() + 1} entries (at most {MAX_BANDS}), "
                f"got {len(self.bands)}"
            )
        check_weight_table(self.weight_table)
        if not -1 <= self.unseen_band < len(self.bands):
            raise ValueError(
                f"unseen_band must be in -1..{len(self.bands) - 1}, got {self.unseen_band}"
            )
        if self.fixed and len({band.keep_den for band in self.bands}) != 1:
            raise ValueError("bands of a fixed rule must share one keep_den")

    @staticmethod
    def keep_all(device: torch.device) -> Rule:
        """Return the rule that keeps every sample with weight 1.

        Args:
            device: where the (empty) thresholds live.

        Returns:
            A rule of one band that drops nothing.

        Example:
            >>> import torch
            >>> Rule.keep_all(torch.device("cpu")).unseen_band
            -1
        """
        import torch

        empty = torch.empty(0, dtype=torch.float32, device=device)
        return Rule(empty, (Band(0, 1),), weight_table())


class Arrangement(Protocol):
    """How an epoch's samples are listed and ordered where whole groups of them stay together."""

    def samples(self) -> Tensor:
        """List the kept samples, int32, group by group."""
        ...

    def order(self, kept: Tensor, positions: Tensor | range, epoch: int) -> Tensor:
        """Return the samples at some positions of an epoch, int32.

        Args:
            kept: what ``samples()`` returned.
            positions: int64 [M], or a range.
            epoch: the epoch.
        """
        ...


def _no_thresholds() -> Tensor:
    import torch

    return torch.empty(0, dtype=torch.float32)


@dataclass(frozen=True)
class Selection:
    """One epoch's decision made already, where no rule of bands can say it: a class per sample.

    What a policy returns that ranks its samples (``UCB``) or keeps whole groups of them. A plan
    copies the classes, so the same selection may serve many epochs.

    Args:
        weight_class: uint8 [N] on the device of the records, 0..7; 0 = dropped.
        weight_table: 8 floats; entry k is the weight of class k; entry 0 is 0, entry 1 is 1.
        thresholds: float32 [T], what the report calls the thresholds; default none.
        arrangement: lists and orders the kept samples where groups of them stay together; it must
            list exactly those of a class above 0. Default: ascending, each on its own.

    Raises:
        ValueError: a shape or size does not fit.
        TypeError: a dtype does not fit.

    Example:
        >>> import torch
        >>> Selection(torch.tensor([1, 0], dtype=torch.uint8), weight_table()).thresholds.tolist()
        []
    """

    weight_class: Tensor
    weight_table: tuple[float, ...]
    thresholds: Tensor = field(default_factory=_no_thresholds)
    arrangement: Arrangement | None = None

    def __post_init__(self) -> None:
        import torch

        for name, dtype in (("weight_class", torch.uint8), ("thresholds", torch.float32)):
            came: Tensor = getattr(self, name)
            if came.dim() != 1:
                raise ValueError(f"{name} must be a vector, got shape {tuple(came.shape)}")
            if came.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, got {came.dtype}")
        check_weight_table(self.weight_table)


def host_ints(tensor: Tensor) -> list[int]:
    """Read an integer vector; on a device this is where the host waits.

    Args:
        tensor: [M] of an integer dtype.

    Returns:
        Python ints in the same order.

    Example:
        >>> import torch
        >>> host_ints(torch.tensor([1, 2]))
        [1, 2]
    """
    return cast("list[int]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]


def check_weight_table(table: tuple[float, ...]) -> None:
    """Refuse a table that does not weigh the dropped 0 and the kept of class 1 one.

    Args:
        table: must be 8 floats that start 0.0, 1.0.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_weight_table(weight_table(2.0))
    """
    if len(table) != NUM_CLASSES or table[:2] != (0.0, 1.0):
        raise ValueError(f"weight_table must have 8 entries that start 0.0, 1.0, got {table}")


def host_floats(tensor: Tensor) -> list[float]:
    """Read a floating vector; on a device this is where the host waits.

    Args:
        tensor: [M] of a floating dtype.

    Returns:
        Python floats in the same order, exactly the tensor's.

    Example:
        >>> import torch
        >>> host_floats(torch.tensor([0.5, 1.0]))
        [0.5, 1.0]
    """
    return cast("list[float]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]


def weight_table(*weights: float) -> tuple[float, ...]:
    """Return the 8-entry table whose classes 2, 3, ... carry the given weights.

    Args:
        weights: up to six weights, for classes 2..7.

    Returns:
        ``(0.0, 1.0, *weights, 0.0, ...)``.

    Raises:
        ValueError: more than six weights.

    Example:
        >>> weight_table(2.0)
        (0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """
    if len(weights) > NUM_CLASSES - 2:
        raise ValueError(f"weights must be at most {NUM_CLASSES - 2} numbers, got {len(weights)}")
    row = (0.0, 1.0, *(float(w) for w in weights))
    return row + (0.0,) * (NUM_CLASSES - len(row))


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did and what the next one will do.

    Args:
        epoch: the epoch that ended.
        num_samples: N.
        planned: samples the epoch's plan kept.
        observed: samples passed to ``observe`` in the epoch.
        served: planned samples the sampler handed out (planned minus the dropped tail).
        dropped_tail: planned samples cut so that every batch is full and ranks are equal.
        missing: planned samples without a score from this epoch.
        extra: samples with a score from this epoch that were not planned.
        nonfinite: observed scores that were inf or nan.
        num_seen: samples that have a score at all.
        threshold: the epoch's first threshold (nan where the rule has none).
        score_mean: exact mean of all scores (nan before the first).
        next_planned: samples the next epoch will keep.
        next_threshold: its first threshold (nan where the rule has none).
        samples_trained: sum of ``served`` over all epochs so far.
        nominal_trained: what that sum would be without pruning.
        dsi: data saving so far, 1 - samples_trained / nominal_trained.
        engine_seconds: host seconds spent inside the engine in this epoch.
        ended_early: nothing is left for the next epoch or any after it.

    Example:
        >>> sorted(f.name for f in fields(EpochReport))[:2]
        ['dropped_tail', 'dsi']
    """

    epoch: int
    num_samples: int
    planned: int
    observed: int
    served: int
    dropped_tail: int
    missing: int
    extra: int
    nonfinite: int
    num_seen: int
    threshold: float
    score_mean: float
    next_planned: int
    next_threshold: float
    samples_trained: int
    nominal_trained: int
    dsi: float
    engine_seconds: float = field(compare=False)  # the one figure that no resume can repeat
    ended_early: bool = False

    @property
    def saved_fraction(self) -> float:
        """The share of the data set that this epoch skipped, in [0, 1]."""
        return 1.0 - self.served / self.num_samples if self.num_samples else 0.0

    def as_dict(self) -> dict[str, float | int]:
        """Return the report as plain numbers, ready for JSON or a logger.

        Returns:
            Field name -> value, in the order of the fields.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)}
