# SPDX-License-Identifier: Apache-2.0
"""Charts as numbers: where lines, ticks and labels are; a template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
ENDS = (1, 2, 3, 4, 6, 8, 10)  # of a scale that is drawn in quarters
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_POINTS = 240  # of a line; more are thinned out

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: for the legend; "" for what has no entry of its own.
        slot: of the colours.
        points: (x, y), by x.
        dot: mark the end.
        faint: one of those whose mean is another line.
    """

    label: str
    slot: int
    points: Points
    dot: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Path:
    """A line as it is drawn.

    Args:
        slot: of the colours.
        d: of SVG.
        label: for the legend, or "".
        faint: thin, behind what counts.
    """

    slot: int
    d: str
    label: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart, laid out.

    Args:
        name: an id, once in a page.
        title: above it.
        about: what a reader who does not see it is told.
        x: what runs to the right.
        y: what runs up.
        x_ticks: (position, words).
        y_ticks: likewise.
        paths: the lines, the faint ones first.
        dots: (slot, x, y).
        rows: the ends of the lines as a table: label, first, last.
    """

    name: str
    title: str
    about: str
    x: str
    y: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[Path]
    dots: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    rows: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Slot and label of what has one, each once."""
        return list(dict.fromkeys((path.slot, path.label) for path in self.paths if path.label))


@dataclass(frozen=True)
class Scale:
    """Numbers over a range of pixels; ``log`` for powers of ten, ``whole`` for counts."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a number; what is outside the range is at its edge."""
        low, high = self._shown(self.low), self._shown(self.high)
        share = (self._shown(value) - low) / (high - low)
        return round(self.first + min(1.0, max(0.0, share)) * (self.last - self.first), 1)

    def _shown(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def quarters(self) -> list[tuple[float, str]]:
        """Return the ends of a scale from zero and three between, with their pixels."""
        return [(self.at(self.high * k / 4), _number(self.high * k / 4)) for k in range(5)]

    def _round_logs(self) -> list[float]:
        """Return powers of ten, or where the range has too few, what lies between them."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
            found = [m * 10.0**p for p in powers for m in factors]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) > 2:
                return found[:: -(-len(found) // 7)]
        return [self.low, self.high]

    def ticks(self) -> list[tuple[float, str]]:
        """Return round numbers within the range, with their pixels."""
        if self.log:
            return [(self.at(value), _power(value)) for value in self._round_logs()]
        step = _step((self.high - self.low) / 5)
        if self.whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(self.at(k * step), _number(round(k * step, 10))) for k in range(first, last + 1)]


def _is_whole(values: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def rounded_up(value: float, first: float, last: float) -> Scale:
    """Return a scale from zero to a round number that is not below a value."""
    return Scale(0.0, _step(value, ENDS) if value > 0 else 1.0, first, last)


def scale(values: Sequence[float], first: float, last: float, *, zero: bool = False) -> Scale:
    """Return a scale over some numbers; of none or of one, a range around it."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = (min(0.0, *known), max(0.0, *known)) if zero else (min(known), max(known))
    if high - low <= 1e-12 * max(abs(high), abs(low), 1.0):
        low, high = (low, low + 1.0) if zero else (low - 0.5, high + 0.5)
    return Scale(low, high, first, last)


def line_chart(
    name: str,
    title: str,
    axes: tuple[str, str],
    lines: Sequence[Line],
    *,
    window: tuple[float, float] | None = None,
    zero: bool = True,
) -> Chart:
    """Lay out lines over one pair of axes.

    Args:
        name: an id.
        title: above the chart.
        axes: what x and y are.
        lines: at least one with a point that is a number.
        window: of y, outside of which nothing is drawn; default all of it.
        zero: y begins at zero.

    Returns:
        The chart; numbers that are not finite break a line.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    across = scale(xs, LEFT, WIDTH - RIGHT, zero=min(xs, default=0.0) == 0)
    across = replace(across, whole=_is_whole(xs))
    up = (
        Scale(*window, HEIGHT - BOTTOM, TOP)
        if window is not None
        else scale(ys, HEIGHT - BOTTOM, TOP, zero=zero)
    )
    paths: list[Path] = []
    dots: list[tuple[int, float, float]] = []
    rows: list[tuple[str, str, str]] = []
    for line in sorted(lines, key=lambda line: not line.faint):
        points = [(x, y) for x, y in line.points if up.low <= y <= up.high]
        paths.append(Path(line.slot, path(thinned(points), across, up), line.label, line.faint))
        if points and (line.dot or len(points) == 1):
            dots.append((line.slot, across.at(points[-1][0]), up.at(points[-1][1])))
        if line.label and points:
            rows.append((line.label, _number(points[0][1]), _number(points[-1][1])))
    said = "; ".join(f"{label} from {first} to {last}" for label, first, last in rows)
    about = f"{title}. {axes[1]} over {axes[0]}: {said or 'no figures'}."
    x_ticks, y_ticks = across.ticks(), up.ticks()
    return Chart(name, title, about, *axes, x_ticks, y_ticks, paths, dots, rows)


def path(points: Points, across: Scale, up: Scale) -> str:
    """Return a line as an SVG path."""
    return "M" + "L".join(f"{across.at(x):g} {up.at(y):g}" for x, y in points) if points else ""


def thinned(points: Points) -> Points:
    """Return at most so many points of a line as a screen shows, first and last among them."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(k * last / (MOST_POINTS - 1))] for k in range(MOST_POINTS)]


def spark(values: Sequence[float], low: float, high: float) -> str:
    """Return a small line of 100 by 24 as an SVG path; what is not finite breaks it."""
    across = Scale(0.0, max(1.0, len(values) - 1.0), 2, 98)
    up = Scale(low, high if high > low else low + 1.0, 22, 2)
    parts: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if math.isfinite(value):
            parts[-1].append((at, value))
        elif parts[-1]:
            parts.append([])
    return "".join(path(_drawn(part), across, up) for part in parts if part)


def _drawn(part: Points) -> Points:
    """Return a part of a line that can be seen: a single point gets a little length."""
    return part if len(part) > 1 else [*part, (part[0][0] + 0.5, part[0][1])]


def _step(rough: float, factors: Sequence[float] = (1, 2, 5, 10)) -> float:
    """Return the next of some factors times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in factors if m * power >= rough * (1 - 1e-9))


def _power(value: float) -> str:
    """Write a number of an axis of logarithms, far from one as a power of ten."""
    exponent = round(math.log10(value))
    if 1e-3 < value < 1e4 or not math.isclose(value, 10.0**exponent):
        return _number(value)
    return "10" + str(exponent).translate(RAISED)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
