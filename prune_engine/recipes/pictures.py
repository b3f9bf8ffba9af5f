# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run, drawn from its files with Matplotlib's object interface.

No ``pyplot``: it keeps figures in module state. Every picture is rendered in memory and moved into
place whole.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from prune_engine.recipes import files
from prune_engine.recipes.results import (
    ACCURACY,
    CUT,
    FULL,
    FULL_CUT,
    FULL_FORWARDS,
    RANDOM,
    metric_of,
)

PICTURES = ("pruned.png", "accuracy.png", "losses.png", "batches.png")
COLOURS = {FULL: "#444444", FULL_CUT: "#b07aa1", FULL_FORWARDS: "#edc948", RANDOM: "#f28e2b"}
POLICY_COLOUR = "#1f77b4"
OTHER_COLOURS = ("#59a14f", "#e15759", "#76b7b2", "#9c755f")  # more settings of the policy

Rows = list[dict[str, Any]]
Runs = Mapping[str, Rows]


def require() -> None:
    """Say what to install where Matplotlib is missing, before any time is spent.

    Raises:
        ImportError: it is missing; the message names the extra.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "pictures need Matplotlib: pip install 'prune_engine[train]', or --no-pictures"
        ) from error


def draw(folder: Path, run: files.Run) -> list[Path]:
    """Draw every picture that a run allows.

    Args:
        folder: of the run.
        run: what it found.

    Returns:
        The files written: pruned per epoch, accuracy against wall time, and, where a policy
        pruned by score, the loss distribution before pruning, after it and after rescaling
        (Qin et al., ICLR 2024, figure 6); where batches were dropped, those kept per epoch under
        each setting of delta.

    Raises:
        ImportError: Matplotlib is missing; the message names the extra.
    """
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config, runs = run.config, run.rows
    prefix = f"{config['policy_arm']}-seed"
    histograms = [shown for name, shown in run.histograms.items() if name.startswith(prefix)]
    written: list[Path] = []
    for picture in PICTURES:
        if picture == "losses.png" and not histograms:
            continue
        if picture == "batches.png" and not _batchwise(runs):
            continue
        figure: Any = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        if picture == "pruned.png":
            _pruned(figure.subplots(), runs)
        elif picture == "accuracy.png":
            _accuracy(figure.subplots(), runs)
        elif picture == "batches.png":
            _batches(figure.subplots(), _batchwise(runs), config["arguments"])
        else:
            score = config["arguments"]["train"].get("score", "loss")
            _losses(figure.subplots(), histograms[0], config["policy_arm"], score)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        files.write_bytes(folder / picture, buffer.getvalue())
        written.append(folder / picture)
    return written


def _lines(runs: Runs) -> list[tuple[str, str, str | None, Rows]]:
    """(arm, colour, legend label for the first seed of an arm, rows) for every training."""
    seen: set[str] = set()
    others = dict.fromkeys(rows[0]["arm"] for rows in runs.values() if "_" in rows[0]["arm"])
    for name in CUT:
        others.pop(name, None)
    colours = dict(zip(others, OTHER_COLOURS * len(others), strict=False)) | COLOURS
    lines: list[tuple[str, str, str | None, Rows]] = []
    for rows in runs.values():
        arm = rows[0]["arm"]
        lines.append((arm, colours.get(arm, POLICY_COLOUR), None if arm in seen else arm, rows))
        seen.add(arm)
    return lines


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _pruned(axes: Any, runs: Runs) -> None:
    for arm, colour, label, rows in _lines(runs):
        if arm in CUT:
            continue  # it drops no samples, it stops early
        share = [100 * row["saved"] / row.get("nominal", row["num_samples"]) for row in rows]
        axes.plot([row["epoch"] for row in rows], share, color=colour, label=label, marker=".")
    axes.set_ylim(bottom=0)
    _finish(axes, "Samples pruned, by epoch", "epoch", "pruned, % of the data set")


def _accuracy(axes: Any, runs: Runs) -> None:
    finals: list[float] = []
    metric, _ = metric_of(next(iter(runs.values()))[0])
    for _, colour, label, rows in _lines(runs):
        seconds = list(accumulate(row["seconds"] for row in rows))
        scale = 100 if metric == ACCURACY else 1
        tested = [scale * metric_of(row)[1] for row in rows]
        axes.plot(seconds, tested, color=colour, alpha=0.6, linewidth=1.2, label=label)
        axes.plot(seconds[-1:], tested[-1:], color=colour, marker="o", markersize=4)
        finals.append(tested[-1])
    # Early epochs are far below the end; show the part in which arms can be told apart.
    axes.set_ylim(*(window(finals) if metric == ACCURACY else below(finals)))
    _finish(
        axes,
        f"Test {metric} against training time (dot: end)",
        "wall time of training, s",
        "test accuracy, %" if metric == ACCURACY else f"test {metric}",
    )


def window(finals: Sequence[float]) -> tuple[float, float]:
    """Return the part of an axis of accuracies in which the ends of trainings can be told apart.

    Example:
        >>> window([90.0, 91.0])
        (85.0, 91.6)
    """
    low, high = min(finals), max(finals)
    span = max(4.0 * (high - low), 6.0)
    return high - span, high + 0.1 * span


def below(finals: Sequence[float]) -> tuple[float, float]:
    """Return the same for a figure that is the better the smaller it is.

    Example:
        >>> below([5.0, 6.0])
        (4.6, 9.0)
    """
    low, high = min(finals), max(finals)
    span = max(4.0 * (high - low), 0.2 * low)
    return low - 0.1 * span, low + span


def _batchwise(runs: Runs) -> dict[str, Rows]:
    """The trainings whose policy keeps or drops whole batches."""
    return {name: rows for name, rows in runs.items() if rows[0].get("batches") is not None}


def _batches(axes: Any, runs: Runs, arguments: dict[str, Any]) -> None:
    ranges: list[list[float]] = arguments.get("delta_ranges") or []
    first = f"bpas {ranges[0][0]:g} to {ranges[0][1]:g}" if ranges else "bpas"
    for arm, colour, label, rows in _lines(runs):
        if arm == RANDOM:
            continue  # it repeats the counts of the policy
        if label is not None:
            label = first if arm == "bpas" else label.replace("_", " ", 1).replace("_", " to ")
        kept = [row["batches"] for row in rows]
        if len(kept) < rows[0]["num_epochs"]:
            kept.append(0)  # it ended early: nothing was left
        axes.plot(range(1, len(kept) + 1), kept, color=colour, label=label, marker=".")
    axes.set_ylim(bottom=0)
    _finish(axes, "Batches kept, by epoch", "epoch", "batches")


def _losses(axes: Any, histogram: dict[str, Any], arm: str, score: str) -> None:
    total = sum(histogram["before"])
    styles = (
        ("before", "before pruning", COLOURS[FULL], "-"),
        ("after", "kept", COLOURS[RANDOM], "-"),
        ("rescaled", "kept, weighted", POLICY_COLOUR, "--"),
    )
    for key, label, colour, style in styles:
        mean = histogram[f"mean_{key}"]
        axes.stairs(
            [100 * count / total for count in histogram[key]],
            histogram["edges"],
            color=colour,
            linestyle=style,
            linewidth=1.4,
            label=f"{label} (mean {mean:.4f})",
        )
    axes.set_xscale("log")
    what = score.replace("_", " ")
    title = f"{what.capitalize()} distribution, {arm}, epoch {histogram['epoch']}"
    _finish(axes, title, f"score ({what} when last seen)", "share of the data set, %")
