# SPDX-License-Identifier: Apache-2.0
"""What the seconds of the trainings were spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune_engine.recipes import files

# Name, what it is, and what the rows have of it.
MODEL = ("model and data", "loading, forward, backward, optimiser", "model")
ENGINE = (
    ("observe", "recording scores and weighing losses", "observe"),
    ("order", "drawing the order of the samples", "order"),
    ("audit", "finding out what an epoch saw", "audit"),
    ("plan", "deciding what an epoch keeps", "plan"),
    ("recording", "kept bits and scores to disk", "recording"),
)
EVALUATION = ("evaluation", "outside the wall time", "eval")
PARTS = (MODEL, *ENGINE, EVALUATION)


@dataclass(frozen=True)
class Bar:
    """One arm.

    Args:
        arm: its name.
        shares: widths of its parts, in percent of the longest bar.
        total: of its seconds, in words.
    """

    arm: str
    shares: list[float]
    total: str


@dataclass(frozen=True)
class Bars:
    """One chart of bars.

    Args:
        title: above it.
        parts: their names.
        first: number of the colour of the first part; the others follow.
        bars: one per arm.
    """

    title: str
    parts: list[str]
    first: int
    bars: list[Bar]


@dataclass(frozen=True)
class Costs:
    """What a page says of a run's seconds.

    Args:
        charts: all of them, and the engine's alone.
        head: of the table.
        table: its rows.
        notes: what the parts are.
    """

    charts: list[Bars]
    head: list[str]
    table: list[list[str]]
    notes: list[str]


def costs(trainings: Mapping[str, Sequence[files.Rows]]) -> Costs:
    """Add up the seconds of each arm, mean over its trainings.

    Args:
        trainings: arm -> rows of its trainings, at least one each.

    Returns:
        Charts and table.
    """
    seconds = {
        arm: {
            key: sum(spent(row)[key] for rows in of for row in rows) / len(of)
            for _, _, key in PARTS
        }
        for arm, of in trainings.items()
    }
    engine = {arm: [of[key] for _, _, key in ENGINE] for arm, of in seconds.items()}
    whole = {arm: [of["model"], sum(engine[arm]), of["eval"]] for arm, of in seconds.items()}
    charts = [
        _bars("All seconds", [MODEL[0], "engine", EVALUATION[0]], 0, whole),
        _bars("The engine's alone", [name for name, _, _ in ENGINE], 3, engine),
    ]
    head = ["arm", MODEL[0], "engine", "% of wall", *(name for name, _, _ in ENGINE), EVALUATION[0]]
    table: list[list[str]] = []
    for arm, (model, own, tested) in whole.items():
        share = 100 * own / (model + own or 1.0)
        cells = [f"{model:.2f}", _few(own), f"{share:.2g}", *map(_few, engine[arm])]
        table.append([arm, *cells, f"{tested:.2f}"])
    return Costs(charts, head, table, [f"{name}: {about}" for name, about, _ in PARTS])


def spent(row: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's seconds by part; an old row knows its end and the rest alone."""
    found = {key: row.get(f"{key}_seconds", 0.0) for _, _, key in PARTS}
    if "observe_seconds" not in row:
        ends = row.get("end_seconds", 0.0)
        found |= {"observe": row["engine_seconds"] - ends, "plan": ends - found["recording"]}
    found["model"] = row["seconds"] - row["engine_seconds"]
    return {key: max(0.0, seconds) for key, seconds in found.items()}


def _bars(title: str, parts: list[str], first: int, seconds: Mapping[str, Sequence[float]]) -> Bars:
    longest = max((sum(of) for of in seconds.values()), default=0.0) or 1.0
    bars = [
        Bar(arm, [round(100 * part / longest, 2) for part in of], f"{_few(sum(of))} s")
        for arm, of in seconds.items()
    ]
    return Bars(title, parts, first, bars)


def _few(seconds: float) -> str:
    """Return seconds with two figures that mean something, milliseconds at the least."""
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"
