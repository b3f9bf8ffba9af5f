# SPDX-License-Identifier: Apache-2.0
"""The files of a run, all written whole: to a temporary neighbour, then moved into place.

A run folder holds ``config.json``, one ``<arm>-seed<k>/metrics.jsonl`` per training (one line per
epoch, each with the version of its schema), ``summary.json``, ``table.md`` and the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prune_engine.files import write_bytes
from prune_engine.recipes.results import FOOTNOTE, SCHEMA, Report, RunResult


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, lines.encode())


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
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a line of JSON ({error})") from error
        if row.get("schema") != SCHEMA:
            raise ValueError(
                f"{path}:{number}: expected schema {SCHEMA}, got {row.get('schema')!r}"
            )
        rows.append(row)
    return rows


def load_run(folder: Path) -> tuple[Report, dict[str, Any]]:
    """Read a run from its files.

    Args:
        folder: as given to ``--out``.

    Returns:
        The report over the trainings that are there, and the configuration.

    Raises:
        FileNotFoundError: no ``config.json``.
        ValueError: a file of another schema, or no training with a finished epoch.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"run_dir: no file {file}")
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("schema") != SCHEMA:
        raise ValueError(f"{file}: expected schema {SCHEMA}, got {config.get('schema')!r}")
    runs: list[RunResult] = []
    for name in config["runs"]:
        metrics = folder / name / "metrics.jsonl"
        if metrics.is_file() and (rows := read_rows(metrics)):
            runs.append(RunResult.of(rows))
    if not runs:
        raise ValueError(f"{folder}: no training has finished an epoch")
    return Report(tuple(runs), config["policy_arm"]), config


def write_report(folder: Path, report: Report, title: str) -> None:
    """Write ``table.md`` and ``summary.json``.

    Args:
        folder: of the run.
        report: its trainings.
        title: the heading, such as the command.
    """
    said = "\n".join(f"- {sentence}" for sentence in report.sentences())
    text = f"# {title}\n\n{report.table(markdown=True)}\n\n{said}\n\n{FOOTNOTE}\n"
    write_bytes(folder / "table.md", text.encode())
    write_json(folder / "summary.json", report.summary())
