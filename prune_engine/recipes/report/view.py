# SPDX-License-Identifier: Apache-2.0
"""All that a page says of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_engine.files import read_integers
from prune_engine.recipes import compare, data, files
from prune_engine.recipes.pictures import below, window
from prune_engine.recipes.report import charts
from prune_engine.recipes.report.charts import Chart, Line
from prune_engine.recipes.report.classes import ClassRow, class_rows
from prune_engine.recipes.report.cost import Costs, costs
from prune_engine.recipes.report.headline import Bout, Tile, bouts, tiles
from prune_engine.recipes.report.history import distributions, read_history
from prune_engine.recipes.report.samples import Gallery, Source, galleries
from prune_engine.recipes.results import (
    ACCURACY,
    ALL,
    CUT,
    FULL,
    FULL_CUT,
    RANDOM,
    WHAT,
    Report,
    metric_of,
)
from prune_engine.recipes.text import TextData
from prune_engine.recording import Recording
from prune_engine.recording.codes import POSITIVE, UNSEEN, lower_bounds

NAMES: dict[str, tuple[str, ...]] = {
    "fashion_mnist": (
        *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
SLOTS = {FULL: 0, FULL_CUT: 1, RANDOM: 2}
POLICY_SLOT, OTHER_SLOTS = 3, (4, 5, 6, 7)
STEPS_OF_BINS = ((80, 8), (32, 4), (0, 1))  # codes in use -> codes of a bin: few are shown finely
MOST_FRAMES = 100  # of the slider


@dataclass(frozen=True)
class Distribution:
    """Scores before pruning, of the kept and of the kept weighted, one frame per epoch.

    Args:
        chart: axes, and the paths of the frame that is shown first.
        frames: for the page's script: pixels of the edges, the highest share, and each epoch's
            shares in percent.
        shown: number of the frame that is shown first.
    """

    chart: Chart
    frames: dict[str, Any]
    shown: int


@dataclass(frozen=True)
class View:
    """One run, ready for a template.

    Args:
        name: of the folder.
        title: what was trained.
        facts: (name, value).
        head: of the table.
        table: its rows.
        sentences: what the numbers allow to be said.
        warnings: what a reader should know before believing them.
        tiles: what is to be known first.
        bouts: the policy against its controls.
        against: above these.
        charts: kept, threshold, accuracy against samples and wall time.
        distribution: of scores, where a policy pruned by them.
        training: whose samples are shown, or "".
        classes: of the data set.
        classes_left: how many of them are not shown.
        galleries: lists of samples.
        cost: what the seconds were spent on.
        left_out: what is missing, and why.
    """

    name: str
    title: str
    facts: list[tuple[str, str]]
    head: list[str]
    table: list[list[str]]
    sentences: list[str]
    warnings: list[str]
    tiles: list[Tile]
    bouts: list[Bout]
    against: str
    charts: list[Chart]
    cost: Costs
    distribution: Distribution | None = None
    training: str = ""
    epochs: int = 0
    classes: list[ClassRow] = field(default_factory=list[ClassRow])
    classes_left: int = 0
    galleries: list[Gallery] = field(default_factory=list[Gallery])
    left_out: list[str] = field(default_factory=list[str])


def view(
    folder: Path,
    run: files.Run,
    *,
    data_root: str | None = None,
    names: Sequence[str] | None = None,
    most: int = 12,
) -> View:
    """Gather what a page says of a run.

    Args:
        folder: of the run.
        run: what it found.
        data_root: the folder of the data's files; default where they were.
        names: of the classes; default those that are known, else numbers.
        most: samples in each list.

    Returns:
        The view.

    Raises:
        ValueError: names are fewer than the classes.
    """
    report, config = run.report, run.config
    arguments: Mapping[str, Any] = config["arguments"]
    train = arguments["train"]
    title = f"{arguments['data']}, {train['model']}, {config['policy_arm']}"
    sentences = report.sentences()
    base = View(
        name=folder.name,
        title=title,
        facts=_facts(config),
        head=report.header(),
        table=report.cells(),
        sentences=sentences,
        warnings=_warnings(sentences, run),
        tiles=tiles(report),
        bouts=bouts(report),
        against=_against(report),
        charts=_charts(run),
        cost=costs(_by_arm(run)),
    )
    recorded = [name for name in run.rows if (folder / name / compare.RECORDING).is_file()]
    if not recorded:
        old = next(iter(run.histograms.values()), None)
        said = "classes and samples: no training of this run was recorded"
        return replace(base, distribution=old and _one_frame(old), left_out=[said])
    return _with_samples(base, folder / recorded[0], arguments, data_root, names, most)


def _with_samples(
    base: View,
    folder: Path,
    arguments: Mapping[str, Any],
    data_root: str | None,
    names: Sequence[str] | None,
    most: int,
) -> View:
    """Add what the recording of a training and the data set say."""
    recording = Recording(folder / compare.RECORDING)
    if not recording.epochs:
        return replace(base, left_out=["classes and samples: no epoch was recorded whole"])
    source, left_out = _source(folder, recording, arguments, data_root, names)
    score = arguments["train"].get("score", "loss")
    is_loss = score == "loss" and not isinstance(source.data, TextData)
    history = read_history(recording, is_loss=is_loss)
    if len(recording.indices) < recording.num_samples:
        left_out.append(
            f"{len(recording.indices):,} of {recording.num_samples:,} samples were recorded"
        )
    rows: list[ClassRow] = []
    left = 0
    if source.labels is not None:
        labels = source.labels
        rows, left = class_rows(recording, history.kept, history.last, labels, source.names)
        if left:
            left_out.append(f"classes: {left} between those shown")
    return replace(
        base,
        distribution=_frames(recording, score),
        training=folder.name,
        epochs=len(recording.epochs),
        classes=rows,
        classes_left=left,
        galleries=galleries(recording, history, source, most) if most else [],
        left_out=left_out,
    )


def _source(
    folder: Path,
    recording: Recording,
    arguments: Mapping[str, Any],
    data_root: str | None,
    names: Sequence[str] | None,
) -> tuple[Source, list[str]]:
    """Find out what the samples are, and say what could not be found."""
    where = data_root if data_root is not None else arguments.get("data_root")
    try:
        found = data.load(arguments["data"], where, limit=arguments.get("limit"))
    except (ValueError, OSError, ImportError) as error:
        return Source(None, None, None, ()), [f"what the samples are: {error}"]
    if found.num_samples != recording.num_samples:
        said = f"{found.num_samples:,} now, and {recording.num_samples:,} in the run"
        return Source(None, None, None, ()), [f"what the samples are: the data has {said}"]
    if isinstance(found, TextData):
        return Source(found, None, None, ()), []
    labels: NDArray[np.int64] = found.train_labels.numpy()[recording.indices]
    known = names or NAMES.get(found.name) or [str(label) for label in range(found.num_classes)]
    if len(known) < found.num_classes:
        raise ValueError(f"names: expected {found.num_classes} classes, got {len(known)}")
    return Source(found, labels, _predictions(folder, recording), known), []


def _predictions(folder: Path, recording: Recording) -> NDArray[np.int64] | None:
    """Read what the trained model said of the recorded samples."""
    path = folder / compare.PREDICTIONS
    if not path.is_file():
        return None
    found = read_integers(path.read_bytes(), path)
    if found.shape != (recording.num_samples,):
        raise ValueError(f"{path}: expected {recording.num_samples} labels, got {found.shape}")
    return found[recording.indices].astype(np.int64)


def _against(report: Report) -> str:
    """Return what stands above the comparisons."""
    who = f"Against {WHAT[RANDOM]}" if report.policy == ALL else f"{report.policy} against"
    unit = "points" if report.metric == ACCURACY else report.metric
    return f"{who}: {unit}, mean and 95% interval"


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    arguments: Mapping[str, Any] = config["arguments"]
    train: Mapping[str, Any] = arguments["train"]
    versions, hardware = config.get("versions", {}), config.get("hardware", {})
    wanted: list[tuple[str, Any]] = [
        ("data", arguments["data"]),
        ("training samples", config.get("num_samples")),
        ("test samples", config.get("num_test")),
        ("model", train["model"]),
        ("epochs", train.get("epochs")),
        ("batch size", train.get("batch_size")),
        ("optimiser", train.get("optimizer")),
        ("peak learning rate", train.get("lr")),
        ("policy", arguments.get("policy", config["policy_arm"])),
        ("prune ratio", arguments.get("prune_ratio")),
        ("pruning epochs", arguments.get("delta")),
        ("score", train.get("score")),
        ("seeds", ", ".join(map(str, arguments.get("seeds", ())))),
        ("device", train.get("device")),
        ("prune_engine", versions.get("prune_engine")),
        ("torch", versions.get("torch")),
        ("processor", hardware.get("cpu")),
        ("commit", (config.get("git_commit") or "")[:12]),
    ]
    return [
        (name, f"{value:,}" if type(value) is int else str(value))
        for name, value in wanted
        if value not in (None, "")
    ]


def _warnings(sentences: Sequence[str], run: files.Run) -> list[str]:
    told = (
        " lost to ",
        " did not beat ",
        "One seed says",
        "Nothing was tested",
        "on one selection",
    )
    found = [
        sentence
        for sentence in sentences
        if any(word in sentence for word in told) and " neither beat nor " not in sentence
    ]
    lost = sum(row.get("nonfinite", 0) for rows in run.rows.values() for row in rows)
    if lost:
        found.append(f"{lost:,} losses were not finite.")
    found += run.config.get("notes", [])
    missing = [name for name in run.config["runs"] if name not in run.rows]
    if missing:
        found.append(f"Not trained yet: {', '.join(missing)}.")
    short = [
        name
        for name, rows in run.rows.items()
        if len(rows) < rows[0]["num_epochs"] and rows[0]["arm"] not in CUT
    ]
    if short:
        found.append(f"Fewer epochs than planned: {', '.join(short)}.")
    return found


def _charts(run: files.Run) -> list[Chart]:
    lines = _lines(run)
    metric = metric_of(next(iter(run.rows.values()))[0])[0]
    percent = 100.0 if metric == ACCURACY else 1.0
    axis = "test accuracy, %" if metric == ACCURACY else f"test {metric}"

    def kept(rows: files.Rows) -> list[float]:
        return [100 * row["planned"] / row.get("nominal", row["num_samples"]) for row in rows]

    def tested(rows: files.Rows) -> list[float]:
        return [percent * metric_of(row)[1] for row in rows]

    pruning = [line for line in lines if line[0] not in CUT]
    found = [
        charts.line_chart(
            "kept",
            "Kept by epoch",
            ("epoch", "kept, % of the data set"),
            _drawn(pruning, _epochs, kept),
        ),
        *_threshold(run),
    ]
    ends = [tested(rows)[-1] for rows in run.rows.values()]
    if not all(math.isfinite(end) for end in ends):
        return found
    shown = window(ends) if metric == ACCURACY else below(ends)
    for name, title, field_, x in (
        ("samples", "against samples trained", "served", "samples trained"),
        ("wall", "against wall time", "seconds", "seconds of training"),
    ):

        def spent(rows: files.Rows, of: str = field_) -> list[float]:
            return list(accumulate(float(row[of]) for row in rows))

        said = f"Test {metric} {title}"
        chart = _drawn(lines, spent, tested, dot=True)
        found.append(charts.line_chart(name, said, (x, axis), chart, window=shown))
    return found


def _threshold(run: files.Run) -> list[Chart]:
    """Return a chart of the thresholds, where an arm has any."""

    def thresholds(rows: files.Rows) -> list[float]:
        return [math.nan if row["threshold"] is None else row["threshold"] for row in rows]

    def has_any(trainings: list[files.Rows]) -> bool:
        return any(math.isfinite(t) for rows in trainings for t in thresholds(rows))

    scored = [line for line in _lines(run) if line[0] != FULL_CUT and has_any(line[2])]
    said = ("epoch", "what lies below it may be dropped")
    lines = _drawn(scored, _epochs, thresholds)
    return [charts.line_chart("threshold", "Threshold", said, lines)] if scored else []


def _epochs(rows: files.Rows) -> list[float]:
    return [row["epoch"] + 1 for row in rows]


def _drawn(
    arms: Sequence[tuple[str, int, list[files.Rows]]],
    x: Callable[[files.Rows], list[float]],
    y: Callable[[files.Rows], list[float]],
    *,
    dot: bool = False,
) -> list[Line]:
    """Draw each arm as the mean of its trainings, with these behind it."""
    found: list[Line] = []
    for label, slot, trainings in arms:
        points = [list(zip(x(rows), y(rows), strict=True)) for rows in trainings]
        found.append(Line(label, slot, _mean_of(points), dot))
        if len(points) > 1:
            found += [Line("", slot, each, faint=True) for each in points]
    return found


def _mean_of(points: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean of some lines, as far as all of them go."""
    count = len(points)
    return [
        (sum(x for x, _ in each) / count, sum(y for _, y in each) / count)
        for each in zip(*points, strict=False)
    ]


def _lines(run: files.Run) -> list[tuple[str, int, list[files.Rows]]]:
    """(arm, slot, rows of its trainings) of every arm."""
    policy = run.config["policy_arm"]
    others = [rows[0]["arm"] for rows in run.rows.values()]
    others = [arm for arm in dict.fromkeys(others) if arm not in SLOTS and arm != policy]
    slots = {**SLOTS, policy: SLOTS.get(policy, POLICY_SLOT)}
    slots |= {arm: OTHER_SLOTS[at % len(OTHER_SLOTS)] for at, arm in enumerate(others)}
    return [(arm, slots[arm], trainings) for arm, trainings in _by_arm(run).items()]


def _by_arm(run: files.Run) -> dict[str, list[files.Rows]]:
    """Arm -> rows of its trainings."""
    every = run.rows.values()
    return {arm: [rows for rows in every if rows[0]["arm"] == arm] for arm in run.report.arms}


def _frames(recording: Recording, score: str) -> Distribution | None:
    """Return the distributions of the epochs that pruned, by score."""
    scored = slice(UNSEEN + 1, None)
    found = [(epoch, table) for epoch, table in distributions(recording) if table[0, scored].any()]
    if not any((table[0] != table[1]).any() for _, table in found):
        return None
    found = found[:: -(-len(found) // MOST_FRAMES)]
    held: Any = sum(table.sum(0) for _, table in found)
    used = np.flatnonzero(held[POSITIVE:])
    extent = int(used[-1] - used[0]) if len(used) else 0
    merged = next(codes for least, codes in STEPS_OF_BINS if extent >= least)
    bounds = lower_bounds()[::merged].tolist()
    edges = [bounds[0] / 2, *bounds, bounds[-1] * (1 + merged / 8)]
    total = len(recording.indices)
    frames = [(epoch, 100 * _merged(table, merged) / total) for epoch, table in found]
    return _distribution(edges, frames, score)


def _merged(table: NDArray[np.float64], codes: int) -> NDArray[np.float64]:
    """Merge codes into bins: zero and negative scores first, then so many codes each."""
    low = table[:, 1:POSITIVE].sum(1, keepdims=True)
    high: Any = table[:, POSITIVE:]
    pad = -high.shape[1] % codes
    padded: Any = np.pad(high, ((0, 0), (0, pad)))
    high = padded.reshape(len(table), -1, codes).sum(2)
    return np.concatenate([low, high], axis=1)


def _one_frame(histogram: Mapping[str, Any]) -> Distribution:
    """Return the one distribution that an old run's files have."""
    table = np.array([histogram[name] for name in ("before", "after", "rescaled")])
    table = 100 * table / max(1.0, float(table[0].sum()))
    return _distribution(list(histogram["edges"]), [(int(histogram["epoch"]), table)], "loss")


def _distribution(
    edges: list[float], frames: list[tuple[int, NDArray[np.float64]]], score: str
) -> Distribution:
    """Lay out frames over one pair of axes, without the empty bins at either end."""
    used = np.flatnonzero(sum(table.sum(0) for _, table in frames))
    first, last = int(used[0]), int(used[-1]) + 1
    edges, frames = edges[first : last + 1], [(e, table[:, first:last]) for e, table in frames]
    # Bins differ in width on an axis of logarithms; an area is a share whatever they are.
    widths: NDArray[np.float64] = np.diff(np.log2(edges))
    per = "doubling"
    if max(float((table / widths).max()) for _, table in frames) > 100:  # they lie close
        widths, per = widths * 10, "tenth of a doubling"
    frames = [(epoch, table / widths) for epoch, table in frames]
    across = charts.Scale(edges[0], edges[-1], charts.LEFT, charts.WIDTH - charts.RIGHT, log=True)
    ups = [
        charts.rounded_up(float(table.max()), charts.HEIGHT - charts.BOTTOM, charts.TOP)
        for _, table in frames
    ]
    shown = len(frames) // 2
    up = ups[shown]
    labels = ("before pruning", "kept", "kept, weighted")
    paths = [
        charts.Path(slot, _steps(edges, shares.tolist(), across, up), label)
        for slot, label, shares in zip((0, 2, 3), labels, frames[shown][1], strict=True)
    ]
    word = score.replace("_", " ")
    x, y = f"{word} when last seen", f"samples, % of the data set per {per} of the {word}"
    title = f"{word.capitalize()} before and after pruning"
    about = f"{title}, epoch {frames[shown][0] + 1}. The slider chooses the epoch."
    chart = Chart("spread", title, about, x, y, across.ticks(), up.quarters(), paths)
    return Distribution(
        chart,
        {
            "xs": [across.at(edge) for edge in edges],
            "ys": [up.first, up.last],
            "tops": [scale.high for scale in ups],
            "ticks": [[word for _, word in scale.quarters()] for scale in ups],
            "epochs": [epoch + 1 for epoch, _ in frames],
            "shares": [np.round(table, 3).tolist() for _, table in frames],
        },
        shown,
    )


def _steps(
    edges: Sequence[float], shares: Sequence[float], across: charts.Scale, up: charts.Scale
) -> str:
    points: list[tuple[float, float]] = []
    for at, share in enumerate(shares):
        points += [(edges[at], share), (edges[at + 1], share)]
    return charts.path(points, across, up)


def class_names(path: Path) -> list[str]:
    """Read the names of classes.

    Args:
        path: a text file in UTF-8, a name on each line.

    Returns:
        The names, in order.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from error
