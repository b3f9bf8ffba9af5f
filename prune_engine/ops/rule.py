# SPDX-License-Identifier: Apache-2.0
"""What decides an epoch: a rule of bands, levels of scores, or a selection made already."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from prune_engine.bands import (
    DRAWS,
    MAX_BANDS,
    MAX_LEVEL_SAMPLES,
    MAX_SAMPLES,
    Band,
    check_weight_cap,
    check_weight_table,
    weighed_classes,
    weight_table,
)
from prune_engine.ops.checks import check_int, check_vector
from prune_engine.plain import store_plain


@dataclass(frozen=True)
class Rule:
    """One epoch's decision rule: thresholds cut the scores into bands, each band has its fate.

    Band b of a seen sample is the number of thresholds <= its score (SEMANTICS 3.2: compared as
    order-preserving 32-bit keys). Everything but the thresholds is known on the host, so a rule
    never makes the host wait.

    Args:
        thresholds: float32 [T], T in 0..5, ascending, on the device of the records.
        bands: T + 1 bands, lowest scores first; where T < 5 one more may follow, for samples that
            have no score yet alone: then ``unseen_band`` is T + 1.
        weight_table: 2 to 256 floats; entry k is the weight of class k; 0, 1, then positive.
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
        if self.thresholds.dim() != 1 or self.thresholds.dtype != torch.float32:
            raise ValueError(
                "thresholds must be a float32 vector, got "
                f"{self.thresholds.dtype} of shape {tuple(self.thresholds.shape)}"
            )
        of_scores = self.thresholds.numel() + 1
        own = self.unseen_band == of_scores
        if len(self.bands) != of_scores + own or len(self.bands) > MAX_BANDS:
            more = f", or {of_scores + 1} with unseen_band {of_scores}" if not own else ""
            raise ValueError(
                f"bands must have {of_scores + own} entries{more} (at most {MAX_BANDS}), "
                f"got {len(self.bands)}"
            )
        check_weight_table(self.weight_table)
        highest = max(band.weight_class for band in self.bands)
        if highest >= weighed_classes(self.weight_table):
            raise ValueError(
                f"weight_table must have a weight for class {highest} of bands, got "
                f"{self.weight_table}"
            )
        if not -1 <= self.unseen_band < len(self.bands):
            raise ValueError(
                f"unseen_band must be in -1..{len(self.bands) - 1}, got {self.unseen_band}"
            )
        if self.fixed and len({band.keep_den for band in self.bands}) != 1:
            raise ValueError("bands of a fixed rule must share one keep_den")

    @property
    def drops(self) -> bool:
        """Whether a sample of any band may be dropped."""
        if self.fixed:
            return any(band.keep_num < band.keep_den for band in self.bands)
        return any(band.cut > 0 for band in self.bands)

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
        empty = torch.empty(0, dtype=torch.float32, device=device)
        return Rule(empty, (Band(0, 1),), weight_table())


@dataclass(frozen=True)
class LevelRule:
    """One epoch's decision by importance: a number of samples, in proportion to their scores.

    A sample of score x stays with probability ``min(1, x / tau)``, at least ``least / 65536``, in
    sixteen steps to an octave, and weighs the inverse; tau is found on the device, so that no more
    than ``target`` stay on average (SEMANTICS 3.12; ``ops.solve_levels``). What was never seen is
    taken for a sample of the score ``unseen``; without one it stays and counts as one of them, and
    where the never seen and ``least`` alone are more than ``target``, they stay all the same.

    Args:
        target: how many samples to keep on average, in 0..2^46.
        least: in 1..65536: of 65536 draws, those that keep any sample, zero and negative scores
            included.
        weight_cap: at least 1: no sample weighs more, which biases the estimate; None: no cap.
        unseen: float32 [1] on the device of the records, such as ``buffer.mean_threshold()``: the
            score that the never seen count as; None: they stay.

    Raises:
        TypeError: a number is of the wrong kind, or ``unseen`` not float32.
        ValueError: a number is out of range, or ``unseen`` not of one element.

    Example:
        >>> LevelRule(target=700, least=4588).target
        700
    """

    target: int
    least: int = 1
    weight_cap: float | None = None
    unseen: Tensor | None = None

    def __post_init__(self) -> None:
        store_plain(self)
        check_int("target", self.target, 0, MAX_LEVEL_SAMPLES, "0..2^46")
        check_int("least", self.least, 1, DRAWS)
        check_weight_cap(self.weight_cap)
        if self.unseen is not None:
            check_vector("unseen", self.unseen, (torch.float32,), size=1)

    def capped(self, table: Tensor) -> Tensor:
        """Return a table in which no class weighs more than the cap, rounded to float32.

        Args:
            table: float32 [256], of ``solve_levels``.

        Returns:
            The same where there is no cap.
        """
        return table if self.weight_cap is None else table.clamp(max=self.weight_cap)

    @property
    def weight_bound(self) -> float:
        """No sample weighs more, whatever the scores are."""
        bound = DRAWS / self.least
        return bound if self.weight_cap is None else min(bound, self.weight_cap)


@dataclass(frozen=True)
class TopRule:
    """One epoch's rule that keeps a fixed number of a random pool: those of the largest scores.

    A sample is in the pool iff its keep draw is at least ``cut`` (SEMANTICS 3.3). The never seen
    come first, then the largest scores; who stays among equals is drawn (SEMANTICS 3.13).

    Args:
        k: in 0..2^31-1, how many stay; all of the pool where it has fewer.
        cut: in 0..65535.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is out of range.

    Example:
        >>> TopRule(k=10, cut=32768).weight_table
        (0.0, 1.0)
    """

    k: int
    cut: int = 0

    def __post_init__(self) -> None:
        store_plain(self)
        check_int("k", self.k, 0, MAX_SAMPLES)
        check_int("cut", self.cut, 0, 65535)

    @property
    def weight_table(self) -> tuple[float, ...]:
        """No weights."""
        return weight_table()

    @property
    def thresholds(self) -> Tensor:
        """None: where the edge lies is not read back."""
        return _no_thresholds()


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
    return torch.empty(0, dtype=torch.float32)


@dataclass(frozen=True)
class Selection:
    """One epoch's decision made already, where no rule of bands can say it: a class per sample.

    What a policy returns that ranks its samples (``UCB``) or keeps whole groups of them. A plan
    copies the classes, so the same selection may serve many epochs.

    Args:
        weight_class: uint8 [N] on the device of the records, each one of the table; 0 = dropped.
        weight_table: 2 to 256 floats; entry k is the weight of class k; 0, 1, then positive.
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
        for name, dtype in (("weight_class", torch.uint8), ("thresholds", torch.float32)):
            came: Tensor = getattr(self, name)
            if came.dim() != 1:
                raise ValueError(f"{name} must be a vector, got shape {tuple(came.shape)}")
            if came.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, got {came.dtype}")
        check_weight_table(self.weight_table)


AnyRule = Rule | LevelRule | TopRule | Selection
