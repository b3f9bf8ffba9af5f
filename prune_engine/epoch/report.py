# SPDX-License-Identifier: Apache-2.0
"""What the epochs of a run did, one report each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload


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
        repeated: observations of samples that had been observed before, where they cannot be told
            from padding or from ranks that train the same.
        partial: the epoch was broken off: ``served`` is what was trained, and ``nominal_trained``
            has grown by the same share of an epoch.
        num_saturated: of the nonfinite, those that were finite before they were rounded to float32:
            float64 beyond its range (3.4e38).

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
    repeated: int = 0
    partial: bool = False
    num_saturated: int = 0

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


class History(Sequence[EpochReport]):
    """An append-only list of epoch reports.

    Example:
        >>> len(History()), History().dsi
        (0, 0.0)
    """

    def __init__(self, reports: Sequence[EpochReport] = ()) -> None:
        self._reports = list(reports)

    def __len__(self) -> int:
        """Return the number of ended epochs."""
        return len(self._reports)

    @overload
    def __getitem__(self, index: int) -> EpochReport: ...
    @overload
    def __getitem__(self, index: slice) -> list[EpochReport]: ...
    def __getitem__(self, index: int | slice) -> EpochReport | list[EpochReport]:
        """Return one report or several."""
        return self._reports[index]

    def __iter__(self) -> Iterator[EpochReport]:
        """Iterate from the first epoch on."""
        return iter(self._reports)

    def append(self, report: EpochReport) -> None:
        """Add the report of the epoch that ended.

        Args:
            report: its report.
        """
        self._reports.append(report)

    @property
    def samples_trained(self) -> int:
        """Samples served in all ended epochs."""
        return self._reports[-1].samples_trained if self._reports else 0

    @property
    def nominal_trained(self) -> int:
        """What ``samples_trained`` would be without pruning."""
        return self._reports[-1].nominal_trained if self._reports else 0

    @property
    def dsi(self) -> float:
        """Data saving so far: 1 - samples_trained / nominal_trained, 0 before the first epoch."""
        return self._reports[-1].dsi if self._reports else 0.0

    def published_dsi(self, num_epochs: int) -> float:
        """Return B-PAS's data saving index, ``1 - sum_i n_i / (I n_1)`` (ICLR 2026).

        Epochs that an early end left out count as saved here; ``dsi`` counts the epochs that were
        run alone.

        Args:
            num_epochs: I.

        Returns:
            The share, 0 before the first epoch.
        """
        if not self._reports or self._reports[0].planned == 0:
            return 0.0
        kept = sum(report.planned for report in self._reports)
        return 1.0 - kept / (num_epochs * self._reports[0].planned)

    def state(self) -> list[dict[str, Any]]:
        """Return the reports as plain data."""
        return [report.as_dict() for report in self._reports]

    @staticmethod
    def from_state(state: Sequence[Mapping[str, Any]]) -> History:
        """Return the history that ``state`` came from.

        Args:
            state: what ``state()`` returned.

        Returns:
            A new history.
        """
        names = [f.name for f in fields(EpochReport)]
        rows = [{name: row[name] for name in names if name in row} for row in state]
        return History([EpochReport(**row) for row in rows])
