# SPDX-License-Identifier: Apache-2.0
"""What a recording says of every sample, in one pass over its epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_engine.recording import Recording
from prune_engine.recording.codes import CODES

LIKELY = math.log(2)  # below this loss the label has more than half of the probability


@dataclass(frozen=True)
class SampleHistory:
    """One entry per recorded sample.

    Args:
        kept: epochs whose plan kept it.
        lost: epochs in which its score was not finite.
        forgotten: how often it was learned at an epoch's end and not at the next one's.
        learned_at: the first epoch from whose end on it stayed learned; -1: not learned at the end.
        ever: it was learned at some epoch's end.
        last: the score at the end, nan where never seen.
        rule: what learned means, in words.
        below_log2: it means a loss below ln 2, else a score below its epoch's mean.
    """

    kept: NDArray[np.int64]
    lost: NDArray[np.int64]
    forgotten: NDArray[np.int64]
    learned_at: NDArray[np.int64]
    ever: NDArray[np.bool_]
    last: NDArray[np.float32]
    rule: str
    below_log2: bool


def read_history(recording: Recording, *, is_loss: bool) -> SampleHistory:
    """Add up what a recording says.

    Args:
        recording: of at least one epoch.
        is_loss: the score is a cross-entropy of one label.

    Returns:
        The figures of each recorded sample.
    """
    count = len(recording.indices)
    kept, lost = np.zeros(count, np.int64), np.zeros(count, np.int64)
    forgotten, learned_at = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    before, ever = np.zeros(count, bool), np.zeros(count, bool)
    last = recording.last_scores()
    for epoch in recording.epochs:
        last = recording.scores(epoch)
        limit = LIKELY if is_loss else recording.figures(epoch)["score_mean"]
        learned = np.less(last, limit)  # nan is not
        forgotten += before & ~learned
        learned_at = np.where(learned, np.where(before, learned_at, epoch), -1)
        before, ever = learned, ever | learned
        kept += recording.kept(epoch)
        lost += recording.lost(epoch)
    rule = "a loss below ln 2" if is_loss else "a score below its epoch's mean"
    return SampleHistory(kept, lost, forgotten, learned_at, ever, last, rule, is_loss)


def distributions(recording: Recording) -> list[tuple[int, NDArray[np.float64]]]:
    """Return how the scores lay that decided about each epoch.

    Args:
        recording: of a run.

    Returns:
        (epoch, float64 [3, 256]) where the epoch before is recorded too: by code, samples before
        pruning, those kept, and the sums of their weights.
    """
    found: list[tuple[int, NDArray[np.float64]]] = []
    for epoch in recording.epochs:
        if epoch - 1 not in recording.epochs:
            continue
        codes = recording.codes(epoch - 1)
        before = np.bincount(codes, minlength=CODES)
        kept = np.bincount(codes[recording.kept(epoch)], minlength=CODES)
        table: Any = np.stack([before, kept, recording.weights(epoch)])
        found.append((epoch, table))
    return found
