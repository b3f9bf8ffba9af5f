# SPDX-License-Identifier: Apache-2.0
"""What a reader wants to know first: a few figures, and the policy against its controls."""

from __future__ import annotations

from dataclasses import dataclass

from prune_engine.recipes.results import ACCURACY, ALL, FULL, Report


@dataclass(frozen=True)
class Tile:
    """One figure.

    Args:
        value: large.
        label: what it is.
        note: beside what it stands, or "".
    """

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Bout:
    """A policy against another arm, on an axis from worse to better.

    Args:
        name: of the other arm, or under ``all`` of the policy.
        words: the gap and its interval.
        verdict: ``"better"``, ``"worse"``, ``"open"``, or ``"alone"`` of one seed.
        at: place of the gap, in percent of the axis.
        low: where its interval begins, likewise.
        width: of it.
    """

    name: str
    words: str
    verdict: str
    at: float
    low: float
    width: float


def tiles(report: Report) -> list[Tile]:
    """Return the figures of the policy, or none where there are several.

    Args:
        report: of a run.

    Returns:
        Samples and wall time saved, the test figure and what the engine took.
    """
    if report.policy == ALL or report.policy not in report.arms:
        return []
    own = report.summary()["arms"][report.policy]
    full = report.summary()["arms"].get(FULL, {}).get(f"{report.metric}_mean")
    beside = full is not None and report.policy != FULL
    unit, digits = ("%", 2) if report.metric == ACCURACY else ("", 3)
    saved = own["dsi"] if own["saved"] is None else own["saved"]  # without full training: by plan
    found = [Tile(f"{100 * saved:.1f}%", "fewer samples", f"{own['samples']:,.0f} trained")]
    if own["wall_saved"] is not None:
        wall = f"{own['wall_seconds']:.2f} s a training"
        found.append(Tile(f"{100 * own['wall_saved']:.1f}%", "less wall time", wall))
    tested = own[f"{report.metric}_mean"]
    if tested is not None:
        note = f"full training: {full:.{digits}f}{unit}" if beside else ""
        found.append(Tile(f"{tested:.{digits}f}{unit}", f"test {report.metric}", note))
    spent = f"{own['engine_seconds']:.3f} s a training"
    found.append(Tile(f"{100 * own['engine_share']:.1f}%", "of wall time in the engine", spent))
    return found


def bouts(report: Report) -> list[Bout]:
    """Lay out a report's gaps on one axis, equality in the middle and better to the right.

    Args:
        report: of a run.

    Returns:
        One row each.
    """
    gaps = report.gaps()
    reach = max((abs(gap.better) + gap.bound for gap in gaps), default=0.0) or 1.0

    def at(better: float) -> float:
        return round(50 + 48 * better / reach, 2)

    found: list[Bout] = []
    for gap in gaps:
        low, high = at(gap.better - gap.bound), at(gap.better + gap.bound)
        words = gap.words if gap.n == 1 else f"{gap.words} ± {gap.interval}"
        name = gap.policy if report.policy == ALL else gap.other
        found.append(Bout(name, words, gap.verdict, at(gap.better), low, round(high - low, 2)))
    return found
