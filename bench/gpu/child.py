# SPDX-License-Identifier: Apache-2.0
"""Run a program within a limit, hear what it says, and start it again past what broke it.

A kernel that has never run may hang or leave the device unusable to its process. What it was doing
then is known from its last ``begin``: that is written down as lost, and a fresh process goes on
with the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu import events

Event = dict[str, Any]
Hear = Callable[[Event], None]
PAUSE, GRACE = 0.05, 3.0  # seconds
STARTS = 8  # of one program, at most
WORTH_A_START = 12.0  # seconds that must be left for another
# A group of its own, to be ended whole; and no orphan on a machine that is given back. (What
# subprocess calls between fork and exec is for processes of one thread.)
_LAUNCH = """
import ctypes, os, signal, sys
os.setpgrp()
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
os.execvp(sys.argv[1], sys.argv[1:])
"""
LAUNCHER = (sys.executable, "-I", "-S", "-c", _LAUNCH)


@dataclass(frozen=True)
class Ending:
    """How a program ended.

    Args:
        status: its exit status; negative: the signal.
        reason: "" where it ended by itself, else which limit it passed.
        seconds: it ran.
    """

    status: int
    reason: str
    seconds: float


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program with all that it started, kindly first."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # not yet a group, or nothing is left of it
            process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run(
    command: Sequence[str],
    *,
    limit: float,
    log: Path,
    cwd: Path,
    environ: Mapping[str, str],
    silence: float = float("inf"),
    hear: Hear = lambda event: None,
) -> Ending:
    """Run a program; what it prints goes to the end of the log.

    Args:
        command: its words.
        limit: seconds after which it is ended.
        log: a file.
        cwd: where it runs.
        environ: the variables that it gets beside this process's.
        silence: seconds without an event after which it is ended.
        hear: is given every event, as it comes.

    Returns:
        How it ended.
    """
    began = heard = time.monotonic()
    reason = ""
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        path = Path(folder) / "events"
        path.touch()
        variables = {**os.environ, **environ, events.LISTENER: str(path)}
        process = subprocess.Popen(
            [*LAUNCHER, *command], cwd=cwd, env=variables, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

        try:
            with path.open(encoding="utf-8") as lines:
                while True:
                    ended = process.poll() is not None  # before the last look at what it said
                    for line in _whole_lines(lines):
                        heard = time.monotonic()
                        hear(json.loads(line))
                    now = time.monotonic()
                    if ended:
                        break
                    if now - began > limit:
                        reason = f"its {limit:.0f} s were over"
                    elif now - heard > silence:
                        reason = f"nothing was heard for {silence:.0f} s"
                    if reason:
                        break
                    time.sleep(PAUSE)
        finally:
            end(process)
    return Ending(process.returncode, reason, time.monotonic() - began)


def _whole_lines(file: Any) -> list[str]:
    """The lines that are complete; what is still being written is left for the next look."""
    found: list[str] = []
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return found
        found.append(line)


def relay(
    command: Sequence[str],
    *,
    limit: float,
    environ: Mapping[str, str],
    hear: Hear,
    **options: Any,
) -> Ending:
    """Run a program, and again past each key that ended or hung it; ``run`` has the arguments.

    A key that was begun and not ended is heard as ``{"kind": "lost", "key": ..., "why": ...}``.
    """
    end_of_all = time.monotonic() + limit
    finished: list[str] = []
    begun: list[str] = []
    faults: list[str] = []

    def follow(event: Event) -> None:
        if event["kind"] == "begin":
            begun[:] = [event["key"]]
            faults.clear()
        elif event["kind"] == "end":
            finished.append(event["key"])
            begun.clear()
        elif event["kind"] == "fault":
            faults.append(event["why"])
        hear(event)

    with tempfile.TemporaryDirectory() as folder:
        past = Path(folder) / "finished"
        for _ in range(STARTS):
            past.write_text(json.dumps(finished), encoding="utf-8")
            begun.clear()
            left = max(0.0, end_of_all - time.monotonic())
            told = {**environ, events.FINISHED: str(past)}
            ending = run(command, limit=left, environ=told, hear=follow, **options)
            if ending.status == 0 or not begun:
                break
            why = faults[-1] if faults else ending.reason or f"the process ended: {ending.status}"
            hear({"kind": "lost", "key": begun[0], "why": why})
            finished += begun
            if end_of_all - time.monotonic() < WORTH_A_START:
                break
    return ending
