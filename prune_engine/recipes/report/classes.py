# SPDX-License-Identifier: Apache-2.0
"""What was kept of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_engine.recipes.report import charts
from prune_engine.recording import Recording

MOST = 20  # classes shown from either end
ERRORS, POINTS = 3.0, 0.02  # from the run's share: standard errors, and in itself


@dataclass(frozen=True)
class ClassRow:
    """One class of a page.

    Args:
        name: as the data set says.
        count: of its recorded samples.
        kept: share of its samples that was kept, over all epochs.
        score: mean at the end.
        path: kept share by epoch, for a small chart.
        verdict: ``"over-pruned"``, ``"under-pruned"`` or "".
    """

    name: str
    count: int
    kept: float
    score: float
    path: str
    verdict: str


def class_rows(
    recording: Recording,
    kept: NDArray[np.int64],
    last: NDArray[np.float32],
    labels: NDArray[np.int64],
    names: Sequence[str],
) -> tuple[list[ClassRow], int]:
    """Return the rows of a page.

    A class is over-pruned where its samples were kept less than the run's by 3 standard errors of
    its own mean and by 2 points; under-pruned likewise.

    Args:
        recording: of the run.
        kept: epochs in which each recorded sample was kept.
        last: its score at the end.
        labels: its class, in 0..C-1.
        names: of the C classes.

    Returns:
        Rows by kept share, those pruned most first, and how many classes between were left out.
    """
    size, epochs = len(names), recording.epochs
    counts = np.bincount(labels, minlength=size)
    by_epoch = np.stack([_share(recording.kept(e), labels, counts) for e in epochs])
    share: NDArray[np.float64] = kept / len(epochs)
    mean = float(share.mean())
    means = _share(share, labels, counts)
    squares = _share((share - means[labels]) ** 2, labels, counts)
    known = np.isfinite(last)
    scores = _share(np.where(known, last, 0), labels, np.bincount(labels[known], minlength=size))
    rows: list[ClassRow] = []
    by_share: list[int] = np.argsort(means, kind="stable").tolist()
    for label in by_share:
        if not counts[label]:
            continue
        gap = float(means[label]) - mean
        error = math.sqrt(float(squares[label]) / float(counts[label]))
        told = abs(gap) > max(ERRORS * error, POINTS)
        verdict = ("over-pruned" if gap < 0 else "under-pruned") if told else ""
        path = charts.spark(by_epoch[:, label].tolist(), 0.0, 1.0)
        score = float(scores[label])
        rows.append(ClassRow(names[label], int(counts[label]), mean + gap, score, path, verdict))
    left = max(0, len(rows) - 2 * MOST)
    return (rows if not left else rows[:MOST] + rows[-MOST:]), left


def _share(
    values: NDArray[np.generic], labels: NDArray[np.int64], counts: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the mean of some values by class, 0 for a class without any."""
    sums = np.bincount(labels, values.astype(np.float64), minlength=len(counts))
    return sums / np.maximum(counts, 1)
