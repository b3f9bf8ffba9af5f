# SPDX-License-Identifier: Apache-2.0
"""The reports of the epochs that have ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, overload

from prune_engine.bands import EpochReport


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
        return History([EpochReport(*(row[name] for name in names)) for row in state])
