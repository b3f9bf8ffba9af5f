# SPDX-License-Identifier: Apache-2.0
"""What a program of the sitting tells the one that started it, a line of JSON at a time.

A line is written at once, so that whatever ends the program takes back nothing it has said:
``begin`` and ``end`` of a key, rows, a fault. Without a listener nothing is written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LISTENER = "PE_SITTING_EVENTS"  # the file to append to
FINISHED = "PE_SITTING_FINISHED"  # a JSON list: keys that an earlier start of the program ended
LOST = 70  # the exit status of a process that can use its device no more


def emit(kind: str, **values: Any) -> None:
    """Say one thing."""
    if path := os.environ.get(LISTENER):
        line = json.dumps({"kind": kind, **values}) + "\n"
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line)


def finished() -> frozenset[str]:
    """The keys that need not be begun again."""
    path = os.environ.get(FINISHED)
    return frozenset(json.loads(Path(path).read_text(encoding="utf-8")) if path else ())
