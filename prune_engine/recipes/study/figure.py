# SPDX-License-Identifier: Apache-2.0
"""The figure of a study: every rule's difference to its control, regime by regime."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune_engine.files import write_bytes
from prune_engine.recipes.pictures import require
from prune_engine.recipes.results import FULL
from prune_engine.recipes.study.design import Found
from prune_engine.recipes.study.rules import rule_named
from prune_engine.recipes.study.tables import Difference, differences

COLOURS = ("#1f77b4", "#e6550d", "#31a354", "#756bb1")
SHOWN = 6.0  # points: what is beyond is drawn at the edge


def draw(path: Path, found: Sequence[Found]) -> None:
    """Draw a panel for each regime, with a line for each rule and a colour for each saving.

    Args:
        path: of the picture; its ending says of what kind.
        found: of the study.

    Raises:
        ImportError: Matplotlib is missing; the message names the extra.
    """
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = differences(found)
    options = found[0].options
    rules = [FULL, *(rule for rule in options.rules if rule_named(rule).settable)]
    across = min(5, len(found))
    down = -(-len(found) // across)
    size = (2.6 * across + 1.4, (0.24 * len(rules) + 0.9) * down)
    figure: Any = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    for panel, each in zip(panels, found, strict=False):
        of = [one for one in made if one.regime == each.regime and one.arm in rules]
        _panel(panel, of, rules, options.savings)
        panel.set_title(each.regime, fontsize=9)
    for panel in list(panels)[len(found) :]:
        panel.set_axis_off()
    figure.supxlabel("points of accuracy against random of equal samples, 95%", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", fontsize=8, ncols=len(labels))
    write_bytes(path, _drawn(figure, path.suffix[1:]))


def _drawn(figure: Any, kind: str) -> bytes:
    """Return a figure's file: of the same rows the same, without blanks at the ends of lines."""
    matplotlib: Any = importlib.import_module("matplotlib")
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "study"}):
        words = {"metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(content, format=kind, **words)
    if kind != "svg":
        return content.getvalue()
    lines = content.getvalue().decode("utf-8").splitlines()
    return "".join(line.rstrip() + "\n" for line in lines).encode()


def _panel(
    panel: Any, of: Sequence[Difference], rules: Sequence[str], savings: Sequence[float]
) -> None:
    """Draw one regime."""
    panel.axvline(0, color="#888888", linewidth=0.8)
    for number, saving in enumerate(savings):
        colour = COLOURS[number % len(COLOURS)]
        shift = 0.3 * (number - (len(savings) - 1) / 2)
        shown = [one for one in of if one.saving == saving]
        label: str | None = f"{100 * saving:.0f}% saved"
        for one in shown:
            at = max(-SHOWN, min(SHOWN, one.mean))
            half = 0.0 if math.isnan(one.half) else one.half
            ends = [[min(half, at + SHOWN)], [min(half, SHOWN - at)]]
            place = rules.index(one.arm) + shift
            mark = "o" if one.sure else "."
            panel.errorbar(at, place, xerr=ends, fmt=mark, color=colour, label=label, linewidth=1)
            label = None
    panel.set_xlim(-SHOWN, SHOWN)
    panel.set_yticks(range(len(rules)), rules, fontsize=8)
    panel.set_ylim(len(rules) - 0.5, -0.5)
