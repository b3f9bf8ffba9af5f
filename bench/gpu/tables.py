# SPDX-License-Identifier: Apache-2.0
"""The rows of one or more calls as Markdown: prediction, floor and measurement side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import floors

from gpu import predictions

Row = dict[str, Any]
Cell = Callable[[Row, float | None], str]
BRIEF, ROOM, MOST_FAULTS, LINE = 11_500, 60, 12, 250  # of what a terminal is shown
SPREAD = ("p20", "p80")  # left out there
OTHERS = ("triton", "reference")  # whose tables are of other kernels than the library's
COPY = "copy"  # the row whose rate is the ceiling of all others


def key(row: Row) -> tuple[Any, ...]:
    """What tells a row from the others of its call."""
    return row["part"], row.get("table", ""), row.get("n", 0), row["name"]


def number(value: float | None) -> str:
    """Three digits, or as many as it has before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def span(ends: tuple[float, float] | None) -> str:
    """One number or two."""
    if ends is None:
        return ""
    return number(ends[0]) if ends[0] == ends[1] else f"{number(ends[0])}-{number(ends[1])}"


def _predicted(row: Row) -> predictions.Prediction | None:
    return predictions.find(row.get("table", ""), row.get("n", 0), row["name"])


def _prediction(row: Row, copy: float | None) -> str:
    found = _predicted(row)
    if found is None:
        return ""
    return " or ".join(span(ends) for ends in (found.now, found.changed) if ends)


def _floor(row: Row, copy: float | None) -> str:
    if row.get("bytes") and copy:
        return number(row["bytes"] / copy)
    found = _predicted(row)
    return number(found.floor) if found else ""


def _bound(row: Row) -> floors.Bound | None:
    """The model of a row, which is of the CUDA kernels."""
    other = row.get("table", "").partition(" ")[0] in OTHERS
    return None if other else floors.bound(row["name"], row.get("bytes", 0))


def _moved(row: Row, copy: float | None) -> str:
    found = _bound(row)
    return number(found.memory * floors.H200.copy / (copy or floors.H200.copy)) if found else ""


def _issue(row: Row, copy: float | None) -> str:
    if found := _bound(row):
        return number(found.issue)
    predicted = _predicted(row)
    return number(predicted.issue) if predicted else ""


def _share(row: Row, copy: float | None) -> str:
    if not (row.get("bytes") and row.get("p50_us") and copy):
        return ""
    return f"{row['bytes'] / row['p50_us'] / copy:.0%}"


def _verdict(row: Row, copy: float | None) -> str:
    found = _predicted(row)
    judged = found and row.get("p50_us") and predictions.verdict(found, row["p50_us"])
    return ", ".join(text for text in (judged, row.get("note")) if text)


def _value(name: str) -> Cell:
    def cell(row: Row, copy: float | None) -> str:
        value = row.get(name)
        return number(value) if isinstance(value, int | float) else str(value or "")

    return cell


TIMES: dict[str, Cell] = {
    "predicted us": _prediction,
    "floor": _floor,
    "moved": _moved,
    "issue": _issue,
    "p50": _value("p50_us"),
    "p20": _value("p20_us"),
    "p80": _value("p80_us"),
    "of copy": _share,
    "": _verdict,
}


def _plain(*names: str) -> dict[str, Cell]:
    return {name: _value(name) for name in names}


COLUMNS: dict[str, dict[str, Cell]] = {
    "machine": _plain("value"),
    "library": _plain("value", "note"),
    "tests": _plain("passed", "failed", "skipped", "seconds", "note"),
    "benchmark": TIMES,
    "counters": _plain(
        "us", "DRAM MB", "L2 sectors", "sectors/request", "issue %", "of copy %", "note"
    ),
    "sanitizer": _plain("faults", "tests", "seconds", "note"),
    "capture": _plain("result", "note"),
    "compile": _plain("graphs", "skipped", "result", "note"),
    "training": _plain("epochs", "seconds", "samples", "accuracy", "us/step", "note"),
    "versions": _plain("old us", "new us", "old/new", "note"),
}


def copy_rate(documents: Sequence[dict[str, Any]]) -> float | None:
    """Bytes per microsecond of the largest copy, None where none was timed."""
    rates = [
        row["bytes"] / row["p50_us"]
        for document in documents
        for row in document["rows"]
        if row.get("table") == "ceiling" and row["name"].startswith(COPY) and row.get("p50_us")
    ]
    return max(rates, default=None)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _heading(document: dict[str, Any]) -> str:
    facts = document["facts"]
    words = [f"{name} {facts[name]}" for name in ("device", "driver", "torch") if facts.get(name)]
    words += [f"commit {facts.get('commit', 'none')}", document["started"]]
    return (
        f"call {document['call']}: {', '.join(words)}; {document['seconds']:.0f} s, "
        + (document["ended"])
    )


def markdown(documents: Sequence[dict[str, Any]]) -> str:
    """All rows, a table for each part and heading; the faults last.

    Args:
        documents: of ``ledger.Ledger``; a copy timed in any is the ceiling of all.
    """
    copy = copy_rate(documents)
    lines = [_heading(document) for document in documents]
    if copy:
        lines.append(
            f"Ceiling: a copy at {copy / 1e6:.2f} TB/s; floors are bytes over that, moved what is "
            "read again as well; issue: to begin the instructions that the machine code has."
        )
    rows = [row for document in documents for row in document["rows"]]
    order = {key(row)[:3]: place for place, row in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda row: order[key(row)[:3]])
    for (part, table, n), group in groupby(rows, key=lambda row: key(row)[:3]):
        columns = COLUMNS[part]
        title = ", ".join(str(word) for word in (part, table, f"{n:,}" if n else "") if word)
        lines += ["", f"### {title}", "", _line(["", *columns])]
        lines.append(_line(["---"] + ["---:"] * len(columns)))
        for row in group:
            lines.append(_line([row["name"], *(cell(row, copy) for cell in columns.values())]))
    wrong = [row for row in rows if row.get("fault")]
    if wrong:
        lines += ["", "### At fault", ""]
        lines += [
            f"- {', '.join(map(str, filter(None, key(row))))}: {row['fault']}" for row in wrong
        ]
    return "\n".join(lines) + "\n"


def _cut(line: str) -> str:
    return line.replace("\n", " ")[:LINE]


def brief(documents: Sequence[dict[str, Any]], limit: int = BRIEF) -> str:
    """The same for a terminal of which only an end is kept: faults first, most wanted rows next.

    Args:
        documents: as for ``markdown``.
        limit: characters; what does not fit is counted.
    """
    copy = copy_rate(documents)
    rows = [row for document in documents for row in document["rows"]]
    lines = [_heading(document)[:400] for document in documents]
    wrong = [row for row in rows if row.get("fault")]
    for row in wrong[:MOST_FAULTS]:
        lines.append(
            f"FAULT {' / '.join(str(word) for word in key(row) if word)}: {row['fault']}"[:250]
        )
    if len(wrong) > MOST_FAULTS:
        lines.append(f"... and {len(wrong) - MOST_FAULTS} faults more")
    head: tuple[Any, ...] = ()
    size = sum(len(line) + 1 for line in lines)
    for number, row in enumerate(rows):
        columns = COLUMNS[row["part"]]
        fresh: list[str] = []
        if key(row)[:3] != head:
            head = key(row)[:3]
            names = [name for name in columns if name not in SPREAD]
            title = " ".join(str(word) for word in head if word)
            fresh.append(f"# {title} | {' | '.join(names)}".rstrip(" |"))
        cells = [cell(row, copy) for name, cell in columns.items() if name not in SPREAD]
        fresh.append(
            f"{row['name']} | {' | '.join(cells)}".rstrip(" |")[:250].replace(chr(10), " ")
        )
        size += sum(len(line) + 1 for line in fresh)
        if size > limit - ROOM:
            lines.append(f"... {len(rows) - number} rows more in the files")
            break
        lines += fresh
    return "\n".join(lines) + "\n"
