# SPDX-License-Identifier: Apache-2.0
"""The tests that need a GPU: found by their marker, run within a limit, counted as they end."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import child
from gpu.session import Session

# A test that names none of these is of the compiled kernels alone.
SLOW = "triton or compile"
SILENCE = 90.0  # seconds of one test, in which a compiler may run


def files(folder: Path, marker: str = "cuda") -> list[Path]:
    """The test files that name a marker: the others may need packages that a machine lacks."""
    named = re.compile(rf"\bmark\.{marker}\b")
    return [
        path
        for path in sorted(folder.rglob("test_*.py"))
        if named.search(path.read_text(encoding="utf-8"))
    ]


def command(paths: list[Path], markers: str, names: str = "") -> list[str]:
    """Pytest's; a warning of a torch that no test has met is shown and fails nothing."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.outcomes"]
    words += ["-W", "default", "-m", markers, *(("-k", names) if names else ())]
    return words + [str(path) for path in paths]


@dataclass
class Tally:
    """How the tests of a run ended, by file."""

    collected: int | None = None
    ran: int = 0
    skips: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, float]] = field(default_factory=dict)

    def hear(self, event: child.Event) -> bool:
        """Count one event; says whether there is news."""
        if event["kind"] == "collected" and self.collected is None:
            self.collected = event["count"]
        elif event["kind"] == "outcome":
            self._count(event["key"], event["outcome"], event["seconds"])
            self.skips += event["skips"]
            if event["outcome"] == "failed":
                self.faults[event["key"]] = event["why"]
        elif event["kind"] == "lost":
            if event["key"] not in self.faults:
                self._count(event["key"], "failed", 0.0)
            self.faults[event["key"]] = event["why"]
        else:
            return False
        return True

    def _count(self, key: str, outcome: str, seconds: float) -> None:
        self.ran += 1
        name = Path(key.partition("::")[0]).name
        counts = self.files.setdefault(
            name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0}
        )
        counts[outcome] += 1
        counts["seconds"] += seconds

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A row for each file, one for all, one for each failure."""
        common = {"part": "tests", "table": table}
        rows: list[dict[str, Any]] = [
            {**common, "name": name, **counts} for name, counts in self.files.items()
        ]
        kinds = ("passed", "failed", "skipped", "seconds")
        total = {kind: sum(counts[kind] for counts in self.files.values()) for kind in kinds}
        note = f"of {self.collected}, {max(0, (self.collected or 0) - self.ran)} not reached"
        if self.skips:
            note += f"; {self.skips} graphs skipped by the compiler"
        rows.append({**common, "name": "all", **total, "note": note, "skips": self.skips})
        for key, why in self.faults.items():
            rows.append({**common, "name": key, "failed": 1, "note": why[:120], "fault": why})
        return rows


def run(
    session: Session, table: str, limit: float, markers: str, names: str = "", marker: str = "cuda"
) -> Tally:
    """Run a selection; rows are kept after each test."""
    tally = Tally()

    def hear(event: child.Event) -> None:
        if tally.hear(event):
            session.ledger.put(*tally.rows(table))

    paths = files(session.tests, marker)
    ending = child.relay(
        command(paths, markers, names),
        limit=session.left(limit),
        silence=SILENCE,
        hear=hear,
        **session.options(),
    )
    rows = tally.rows(table)
    total = next(row for row in rows if row["name"] == "all")
    if ending.reason:
        total["note"] += f"; {ending.reason}"
    elif tally.ran == 0 or ending.status not in (0, 1):
        total["fault"] = f"pytest ended with {ending.status} after {tally.ran} tests"
        total["note"] += f"; {total['fault']}; see {session.log.name}"
    session.ledger.put(*rows)
    return tally
