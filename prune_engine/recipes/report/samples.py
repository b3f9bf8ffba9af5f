# SPDX-License-Identifier: Apache-2.0
"""The samples that a page shows: which, and as what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_engine.recipes.data import ImageData
from prune_engine.recipes.report import charts, png
from prune_engine.recipes.report.history import SampleHistory
from prune_engine.recipes.text import PAD, TextData
from prune_engine.recording import Recording
from prune_engine.recording.codes import code_values

MOST_LETTERS = 220


@dataclass(frozen=True)
class Card:
    """One sample of a page.

    Args:
        index: its position in the data set.
        image: a link, or "".
        text: what it says, or "".
        label: the name of its class, or "".
        prediction: of the trained model, or "".
        score: at the end, in words.
        kept: epochs that kept it.
        path: its score by epoch, for a small chart.
        note: what the list is about.
    """

    index: int
    image: str
    text: str
    label: str
    prediction: str
    score: str
    kept: int
    path: str
    note: str


@dataclass(frozen=True)
class Gallery:
    """One list of samples.

    Args:
        title: what they are.
        about: by which rule.
        total: how many there are.
        cards: the first of them.
    """

    title: str
    about: str
    total: int
    cards: list[Card]


@dataclass(frozen=True)
class Source:
    """What is known of the samples beside their scores.

    Args:
        data: the data set, or None where its files are not there.
        labels: int64 [M], of the recorded samples, or None.
        predictions: likewise, of the trained model.
        names: of the classes.
    """

    data: ImageData | TextData | None
    labels: NDArray[np.int64] | None
    predictions: NDArray[np.int64] | None
    names: Sequence[str]


def galleries(
    recording: Recording, history: SampleHistory, source: Source, most: int
) -> list[Gallery]:
    """Return the lists of a page, those without a sample too.

    Args:
        recording: of the run.
        history: what it says.
        source: what the samples are.
        most: cards in each list.

    Returns:
        Most often pruned, never pruned, latest learned, never learned, most forgotten, not finite,
        and likely label errors.
    """
    epochs, kept = len(recording.epochs), history.kept
    pruned, last = epochs - kept, np.nan_to_num(history.last, nan=-np.inf)
    seen = np.isfinite(history.last)
    late, gone, lost = history.learned_at, history.forgotten, history.lost
    always = kept == epochs
    wrong = always & ~history.ever & seen
    if source.labels is not None and source.predictions is not None:
        wrong &= source.labels != source.predictions
    begin = recording.epochs[0]
    lists: list[tuple[str, str, NDArray[np.bool_], NDArray[np.generic], Callable[[int], str]]] = [
        (
            "Pruned most often",
            "kept by the fewest plans",
            pruned > 0,
            pruned,
            lambda at: f"pruned {pruned[at]}\u00d7",
        ),
        (
            "Never pruned",
            "kept by every plan, the highest scores first",
            always,
            last,
            lambda at: "",
        ),
        (
            "Learned last",
            f"learned is {history.rule} at an epoch's end, from there on to the end",
            late > begin,
            late,
            lambda at: f"learned in epoch {late[at] + 1}",
        ),
        (
            "Never learned",
            f"never {history.rule} at an epoch's end, the highest scores first",
            ~history.ever & seen,
            last,
            lambda at: "",
        ),
        (
            "Forgotten most often",
            "learned at one epoch's end and not at the next",
            gone > 0,
            gone,
            lambda at: f"forgotten {gone[at]}\u00d7",
        ),
        (
            "Not finite",
            "trained, and without a score: its loss was inf or nan",
            lost > 0,
            lost,
            lambda at: f"not finite {lost[at]}\u00d7",
        ),
        (
            "Likely label errors",
            "always trained, never learned"
            + ("" if source.predictions is None else ", predicted as another class")
            + ", the highest scores first: worth a look, no verdict",
            wrong,
            last,
            lambda at: "",
        ),
    ]
    matrix = _Scores(recording)
    found: list[Gallery] = []
    for title, about, mask, order, note in lists:
        places = np.flatnonzero(mask)
        # The higher the first; of equals the highest score, then the lowest index.
        ranked = places[np.lexsort((-last[places], -order[places].astype(np.float64)))][:most]
        cards = [_card(int(at), note(int(at)), matrix, history, source) for at in ranked]
        found.append(Gallery(title, about, len(places), cards))
    return found


class _Scores:
    """Single samples' scores by epoch, a byte of the file at a time."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.values = recording, code_values()
        self.rows = [recording.codes(epoch) for epoch in _thinned(recording.epochs)]

    def of(self, at: int) -> list[float]:
        return [float(self.values[row[at]]) for row in self.rows]


def _thinned(epochs: Sequence[int], most: int = 60) -> list[int]:
    step = max(1, -(-len(epochs) // most))
    return list(epochs[::step])


def _card(at: int, note: str, scores: _Scores, history: SampleHistory, source: Source) -> Card:
    index = int(scores.recording.indices[at])
    values = scores.of(at)
    known = [value for value in values if value == value]
    path = charts.spark(values, min(0.0, *known, 0.0), max(known, default=1.0))
    image = text = ""
    if isinstance(source.data, ImageData):
        image = png.data_link(source.data.train_images[index])
    elif source.data is not None:
        row = source.data.train_rows[index].numpy().tobytes().rstrip(bytes([PAD]))
        text = row.decode("utf-8", "replace")[:MOST_LETTERS]
    last = float(history.last[at])
    return Card(
        index=index,
        image=image,
        text=text,
        label=_name(source.labels, at, source.names),
        prediction=_name(source.predictions, at, source.names),
        score="never scored" if last != last else f"score {last:.3g}",
        kept=int(history.kept[at]),
        path=path,
        note=note,
    )


def _name(labels: NDArray[np.int64] | None, at: int, names: Sequence[str]) -> str:
    if labels is None:
        return ""
    label = int(labels[at])
    return names[label] if 0 <= label < len(names) else str(label)
