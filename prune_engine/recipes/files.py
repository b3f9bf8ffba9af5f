# SPDX-License-Identifier: Apache-2.0
"""The files of a run, all written whole: to a temporary neighbour, then moved into place.

A run folder holds ``config.json``, one ``<arm>-seed<k>/metrics.jsonl`` per training (one line per
epoch, each with the version of its schema), beside it what ``compare.OWN_FILES`` names,
``summary.json``, ``table.md``, ``report.html`` and, where asked for, the pictures; while a run owns
it, ``run.lock`` (see ``owner``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prune_engine.files import write_bytes
from prune_engine.recipes.results import FOOTNOTE, SCHEMA, Report, RunResult

TABLE, SUMMARY, PAGE = "table.md", "summary.json", "report.html"
REPORTS = (TABLE, SUMMARY, PAGE)  # of a run, made of its rows
Rows = list[dict[str, Any]]
MEANS = ("mean_before", "mean_after", "mean_rescaled")
HISTOGRAM = ("epoch", "edges", "before", "after", "rescaled", *MEANS)


@dataclass(frozen=True)
class Run:
    """What a run found: in memory where it has just ended, read by ``load_run`` where it is old.

    Args:
        config: as in ``config.json``.
        rows: those of each training, by its name, in the order they were trained.
        histograms: loss distributions by the name of the training; not every one has one.
    """

    config: Mapping[str, Any]
    rows: Mapping[str, list[dict[str, Any]]]
    histograms: Mapping[str, dict[str, Any]]

    @property
    def report(self) -> Report:
        """The table and its sentences."""
        runs = tuple(RunResult.of(rows) for rows in self.rows.values())
        arguments: Mapping[str, Any] = self.config.get("arguments") or {}
        chosen: Any = arguments.get("subset")
        selections = len(chosen) if isinstance(chosen, list) else int(bool(chosen))  # pyright: ignore[reportUnknownArgumentType]
        return Report(runs, self.config["policy_arm"], selections)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, lines.encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is torn, not JSON, or something else than an object.

    Example:
        >>> read_json(Path("no/such.json"))
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'no/such.json'
    """
    try:
        return _object(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # of the text's encoding, or of the JSON in it
        raise ValueError(f"{path}: not a JSON object ({error})") from error


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}")
    return cast(dict[str, Any], value)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines and check the version of each.

    Args:
        path: a ``metrics.jsonl``.

    Returns:
        One dictionary per line, in order.

    Raises:
        ValueError: a line is not JSON, or of another schema.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = _object(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not a line of JSON ({error})") from error
        if row.get("schema") != SCHEMA:
            raise ValueError(
                f"{path}:{number}: expected schema {SCHEMA}, got {row.get('schema')!r}"
            )
        rows.append(row)
    return rows


def load_run(folder: Path) -> Run:
    """Read a run from its files.

    Args:
        folder: as given to ``--out``.

    Returns:
        The trainings that are there, and the configuration.

    Raises:
        FileNotFoundError: no ``config.json``.
        ValueError: a file that is torn or of another schema, or no training with a finished epoch.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"run_dir: no file {file}")
    config = read_json(file)
    if config.get("schema") != SCHEMA:
        raise ValueError(f"{file}: expected schema {SCHEMA}, got {config.get('schema')!r}")
    rows: dict[str, list[dict[str, Any]]] = {}
    histograms: dict[str, dict[str, Any]] = {}
    _check_config(config, file)
    for name in config["runs"]:
        metrics, histogram = folder / name / "metrics.jsonl", folder / name / "losses.json"
        if metrics.is_file() and (found := read_rows(metrics)):
            _check_rows(found, metrics)
            rows[name] = found
            if histogram.is_file():
                histograms[name] = read_json(histogram)
                _need(histograms[name], HISTOGRAM, histogram)
    if not rows:
        raise ValueError(f"{folder}: no training has finished an epoch")
    return Run(config, rows, histograms)


def _need(found: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing")


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration without the words that the report is made of."""
    _need(config, ("runs", "policy_arm", "arguments"), path)
    arguments = config["arguments"]
    if not isinstance(config["runs"], list) or not isinstance(arguments, dict):
        raise ValueError(f"{path}: runs must be a list and arguments an object")
    words = cast("dict[str, Any]", arguments)
    _need(words, ("data", "train"), path)
    if not isinstance(words["train"], dict) or "model" not in words["train"]:
        raise ValueError(f"{path}: arguments.train.model missing")


def _check_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Refuse rows that cannot be added up."""
    try:
        RunResult.of(rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: a row does not fit ({error!r})") from error


def write_report(folder: Path, run: Run) -> None:
    """Write ``table.md`` and ``summary.json``.

    Args:
        folder: of the run.
        run: what it found.
    """
    report, arguments = run.report, run.config["arguments"]
    title = f"{arguments['data']}, {arguments['train']['model']}, {run.config['policy_arm']}"
    said = "\n".join(f"- {sentence}" for sentence in report.sentences())
    text = f"# {title}\n\n{report.table(markdown=True)}\n\n{said}\n\n{FOOTNOTE}\n"
    write_bytes(folder / TABLE, text.encode())
    write_json(folder / SUMMARY, report.summary())
