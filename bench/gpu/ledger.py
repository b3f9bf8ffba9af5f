# SPDX-License-Identifier: Apache-2.0
"""What a call found, row by row, on the disk after each: nothing that ends it takes a row back."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu import tables

FORMAT = 1
UNFINISHED = "unfinished"


class Ledger:
    """The rows of one call; written as JSON and as Markdown after every change.

    Args:
        call: 1, 2 or 3.
        folder: for ``call-<n>.json`` and ``call-<n>.md``.
        facts: what is known of the call before it begins.
    """

    def __init__(self, call: int, folder: Path, facts: dict[str, Any]) -> None:
        self._began = time.monotonic()
        self._stem = folder / f"call-{call}"
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "kind": "sitting",
            "call": call,
            "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "ended": UNFINISHED,
            "seconds": 0.0,
            "facts": facts,
            "rows": [],
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which they came."""
        rows: list[dict[str, Any]] = self.document["rows"]
        return rows

    def fact(self, **values: Any) -> None:
        """Write down what is true of the whole call."""
        self.document["facts"].update(values)
        self.save()

    def put(self, *rows: dict[str, Any]) -> None:
        """Add rows; one of the same part, table, n and name takes the place of the older."""
        places = {tables.key(row): number for number, row in enumerate(self.rows)}
        for row in rows:
            place = places.setdefault(tables.key(row), len(self.rows))
            self.rows[place : place + 1] = [row]
        self.save()

    @property
    def faulty(self) -> list[dict[str, Any]]:
        """The rows that say that something is wrong."""
        return [row for row in self.rows if row.get("fault")]

    def close(self, how: str) -> None:
        """Say how the call ended."""
        self.document["ended"] = how
        self.save()

    def save(self) -> None:
        """Write both files, each at once: a reader finds the old one or the new one, whole."""
        self.document["seconds"] = round(time.monotonic() - self._began, 1)
        replace(self._stem.with_suffix(".json"), json.dumps(self.document, indent=1) + "\n")
        replace(self._stem.with_suffix(".md"), tables.markdown([self.document]))


def replace(path: Path, text: str) -> None:
    """Put a file in the place of the older one, in one step."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def load(path: Path) -> dict[str, Any]:
    """Read a call.

    Raises:
        ValueError: the file is not one, or of another format.
    """
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = (document.get("kind"), document.get("format"))
    if found != ("sitting", FORMAT):
        raise ValueError(f"{path.name}: expected a sitting of format {FORMAT}, got {found}")
    return document
