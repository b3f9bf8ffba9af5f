# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer's four tools over the GPU tests at small sizes, as far as the time goes.

First a kernel that is made to read past an allocation: where that is not reported, no silence
means anything. Without torch's caching allocator an access past an allocation leaves it, and is
seen. initcheck must see torch's kernels too: to it, what a kernel left out has written was never
written.
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

from gpu import child, suites
from gpu.session import Session

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# One size on each side of a block and of a warp; each tool slows a kernel ten to a hundred times.
SIZES = (
    "not triton and not compile and ((test_observe and (0 or 31 or 257)) or 33 or 1025 or 4097"
    " or views or stream or out_of_range or (many_layers and 97) or relu_moments)"
)
MARKERS = "cuda and not triton and not distributed"
FOUND = 9  # the exit status of a tool that has found a fault
# After a fault the program goes on, or its own failure would be the exit status. What the CUDA API
# answers is checked by those who call it, and torch asks for more than every driver has.
WORDS = (
    *("compute-sanitizer", "--target-processes", "application-only", "--launch-timeout", "0"),
    *("--error-exitcode", str(FOUND), "--destroy-on-device-error", "kernel"),
    *("--report-api-errors", "no"),
)
OURS = ("--kernel-name", "kns=prune_engine")
VARIABLES = {"SANITIZE": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
PLANTED_SECONDS, TOOL_SECONDS = 40.0, 60.0
WORTH_A_TOOL = 20.0  # seconds that must be left for one


def order(first: str) -> tuple[str, ...]:
    """All tools, beginning with one: where the time goes out, the next begins with another."""
    place = TOOLS.index(first)
    return TOOLS[place:] + TOOLS[:place]


def command(tool: str, program: list[str]) -> list[str]:
    """The words of one tool."""
    which = () if tool == "initcheck" else OURS
    return [*WORDS, *which, "--tool", tool, *program]


def reports(text: str) -> int:
    """How many faults a tool has printed; of one that was ended there is no summary."""
    if sums := re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)", text, re.MULTILINE):
        return sum(map(int, sums))
    fault = r"^=+ (?:Invalid|Uninitialized|Barrier error|(?:Error: |Warning: )?Race reported)"
    return len(re.findall(fault, text, re.MULTILINE))


def run(session: Session, limit: float) -> None:
    """The planted fault, then the tools in their order."""
    if shutil.which("compute-sanitizer") is None:
        note = "left out: compute-sanitizer is not on PATH"
        session.ledger.put({"part": "sanitizer", "name": "compute-sanitizer", "note": note})
        return
    if not planted(session):
        return
    for tool in order(session.first):
        if session.left() < WORTH_A_TOOL and session.place.on_gpu:
            session.ledger.put(
                {"part": "sanitizer", "name": tool, "note": f"not reached; --first {tool}"}
            )
            continue
        one(session, tool, TOOL_SECONDS)


def planted(session: Session) -> bool:
    """Whether memcheck sees a known fault in our kernels."""
    (program,) = session.tests.rglob("_overrun.py")
    words = command("memcheck", [sys.executable, str(program)])
    options = {**session.options(), "environ": {**session.environ(), **VARIABLES}}
    ending = child.run(words, limit=session.left(PLANTED_SECONDS), **options)
    seen = ending.status == FOUND
    row: dict[str, Any] = {"part": "sanitizer", "name": "a planted fault, memcheck"}
    row |= {"seconds": ending.seconds, "note": "seen" if seen else "NOT seen"}
    if not seen:
        why = ending.reason or f"it ended with {ending.status}, expected {FOUND}"
        row["fault"] = f"compute-sanitizer does not see a known fault in our kernels: {why}"
    session.ledger.put(row)
    return seen


def one(session: Session, tool: str, limit: float) -> None:
    """One tool over the tests; its row is kept after each test."""
    tally = suites.Tally()
    row: dict[str, Any] = {"part": "sanitizer", "name": tool, "tests": 0}
    size = session.log.stat().st_size if session.log.exists() else 0

    def printed() -> str:
        with session.log.open("rb") as log:
            log.seek(size)
            return log.read().decode(errors="replace")

    def hear(event: child.Event) -> None:
        if tally.hear(event):
            row["tests"], row["faults"] = tally.ran, reports(printed())
            session.ledger.put(dict(row))

    program = suites.command(suites.files(session.tests), MARKERS, SIZES)
    options = {**session.options(), "environ": {**session.environ(), **VARIABLES}}
    ending = child.run(command(tool, program), limit=session.left(limit), hear=hear, **options)
    row |= {"seconds": ending.seconds, "tests": tally.ran, "faults": reports(printed())}
    row["note"] = f"of {tally.collected}" + (f"; {ending.reason}" if ending.reason else "")
    if ending.status == FOUND or row["faults"]:
        row["fault"] = f"{row['faults']} reports; see {session.log.name}"
    elif tally.faults:
        row["fault"] = f"{len(tally.faults)} tests failed under it: {next(iter(tally.faults))}"
    elif tally.ran == 0 or (ending.status and not ending.reason):
        row["fault"] = f"it ended with {ending.status} after {tally.ran} tests"
    session.ledger.put(row)
