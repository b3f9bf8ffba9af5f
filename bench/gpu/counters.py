# SPDX-License-Identifier: Apache-2.0
"""What the hardware counts while each operator runs once: ncu over ``bench/once.py``.

The clocks are left alone; ncu empties the caches before each of its replays.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu import child, tables
from gpu.session import Session

TIME, READ, WRITTEN = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"
SECTORS = "lts__t_sectors.sum"
LOADED = "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"
REQUESTS = "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
# A name that this ncu does not know would end it before it measures anything: then the fewer ones.
METRICS = (TIME, READ, WRITTEN, SECTORS, LOADED, REQUESTS, ISSUE)
FEWER = (TIME, READ, WRITTEN)
BEGUN = 0.7  # of the limit: after it once.py begins no operator
MARK = "spin_kernel"  # once.py's, before each operator


def command(session: Session, log: Path, metrics: tuple[str, ...], seconds: float) -> list[str]:
    """The words of ncu."""
    return [
        *("ncu", "--clock-control", "none", "--target-processes", "application-only"),
        *("--profile-from-start", "off", "--print-units", "base", "--csv"),
        *("--log-file", str(log), "--metrics", ",".join(metrics)),
        *session.once("--seconds", f"{seconds:.0f}"),
    ]


def kernels(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The launches in ncu's CSV, in their order: name and metrics."""
    found: dict[str, dict[str, Any]] = {}
    text = (line for line in lines if line.startswith('"'))  # the rest is ncu's own talk
    for row in csv.DictReader(text):
        try:
            value = float(row["Metric Value"].replace(",", ""))
        except (KeyError, TypeError, ValueError):
            continue
        launch = found.setdefault(row["ID"], {"name": row["Kernel Name"]})
        launch[row["Metric Name"]] = value
    return list(found.values())


def by_operator(launches: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """A row for each launch, named by the operator whose mark came before it."""
    rows: list[dict[str, Any]] = []
    marks = 0
    for launch in launches:
        if MARK in launch["name"]:
            marks += 1
            continue
        operator = names[marks - 1] if 0 < marks <= len(names) else "?"
        short = launch["name"].partition("(")[0].rpartition("::")[2]
        rows.append(_row(operator, f"{short} #{len(rows) + 1}", launch))
    return rows


def _row(operator: str, name: str, launch: dict[str, Any]) -> dict[str, Any]:
    moved = launch.get(READ, 0.0) + launch.get(WRITTEN, 0.0)
    row = {
        "part": "counters",
        "table": operator,
        "name": name,
        "us": launch.get(TIME, 0.0) / 1e3,
        "DRAM MB": moved / 1e6,
        "metrics": {key: value for key, value in launch.items() if key != "name"},
    }
    if SECTORS in launch:
        row["L2 sectors"] = launch[SECTORS]
    if launch.get(REQUESTS):
        row["sectors/request"] = launch[LOADED] / launch[REQUESTS]
    if ISSUE in launch:
        row["issue %"] = launch[ISSUE]
    return row


def run(session: Session, limit: float) -> None:
    """Count, and read what was counted, also of a run that was ended."""
    if shutil.which("ncu") is None:
        note = "left out: ncu is not on PATH"
        session.ledger.put({"part": "counters", "name": "ncu", "note": note})
        return
    for metrics in (METRICS, FEWER):
        if count(session, limit, metrics):
            return
    note = f"ncu counted nothing; see {session.log.name}"
    session.ledger.put({"part": "counters", "name": "ncu", "note": note, "fault": note})


def count(session: Session, limit: float, metrics: tuple[str, ...]) -> bool:
    """One run of ncu; says whether any kernel was counted."""
    log = session.folder / "ncu.csv"
    log.unlink(missing_ok=True)
    names: list[str] = []
    cut: list[str] = []

    def read() -> bool:
        if not log.is_file():
            return False
        with log.open(encoding="utf-8", errors="replace") as lines:
            rows = by_operator(kernels(lines), names)
        rate = tables.copy_rate([session.ledger.document])
        for row in rows:
            if rate and row["us"]:
                row["of copy %"] = 100 * row["DRAM MB"] * 1e6 / row["us"] / rate
        if rows:
            session.ledger.put(*rows)
        return bool(rows)

    def hear(event: child.Event) -> None:
        if event["kind"] == "begin":
            names.append(event["key"])
        elif event["kind"] == "end":
            read()
        elif event["kind"] == "cut":
            cut.append(event["key"])

    left = session.left(limit)
    words = command(session, log, metrics, left * BEGUN)
    ending = child.run(words, limit=left, hear=hear, **session.options())
    counted = read()
    if counted and (cut or ending.reason or ending.status):
        note = ending.reason or (f"ncu ended with {ending.status}" if ending.status else "")
        note = ", ".join(filter(None, (note, *(f"not reached from {name} on" for name in cut))))
        session.ledger.put({"part": "counters", "name": "not all of it", "note": note})
    return counted
