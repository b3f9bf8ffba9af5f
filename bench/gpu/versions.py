# SPDX-License-Identifier: Apache-2.0
"""An older library beside this one: each operator's median, in processes that take turns."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from gpu import child
from gpu.session import Session

ROUNDS = 7


def run(session: Session, limit: float) -> None:
    """Old, new, old, new; a row is kept as soon as both are known."""
    if session.old is None or not session.old.is_file():
        where = session.old or "--old"
        note = f"left out: there is no older library ({where})"
        session.ledger.put({"part": "versions", "name": "old and new", "note": note})
        return
    new = session.ledger.document["facts"]["library"]
    sides = {"old": str(session.old), "new": new}
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"old": [], "new": []})
    notes: dict[str, str] = {}
    turns = session.place.turns
    share = session.left(limit) / (turns * len(sides))
    rounds = str(min(ROUNDS, session.place.rounds))
    for turn in range(turns):
        for side, library in sides.items():
            found: dict[str, float] = {}

            def hear(event: child.Event, side: str = side, found: Any = found) -> None:
                if event["kind"] == "rows":
                    for row in event["rows"]:
                        if "p50_us" in row:
                            found[row["name"]] = row["p50_us"]
                        elif row.get("note"):
                            notes[row["name"]] = f"{side} {row['note']}"
                elif event["kind"] == "lost":
                    notes[event["key"]] = f"{side} lost: {event['why']}"

            command = session.once("--library", library, "--rounds", rounds)
            ending = child.relay(
                command, limit=session.left(share), silence=60, hear=hear, **session.options()
            )
            for name, value in found.items():
                times[name][side].append(value)
            if ending.reason or ending.status:
                why = ending.reason or f"it ended with {ending.status}"
                notes["not all of it"] = f"{side}, turn {turn + 1}: {why}"
            rows = [row_of(name, times[name], notes) for name in {**times, **notes}]
            if rows:
                session.ledger.put(*rows)


def row_of(name: str, times: dict[str, list[float]], notes: dict[str, str]) -> dict[str, Any]:
    """One operator's row."""
    row: dict[str, Any] = {"part": "versions", "name": name}
    middle = {side: statistics.median(found) for side, found in times.items() if found}
    row |= {f"{side} us": value for side, value in middle.items()}
    if len(middle) == 2:
        row["old/new"] = middle["old"] / middle["new"]
    if name in notes:
        row["note"] = notes[name]
    row["medians_us"] = {side: list(found) for side, found in times.items()}
    return row
