# SPDX-License-Identifier: Apache-2.0
"""What every part of a call shares: its ledger, its time, and how it starts programs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu import child
from gpu.ledger import Ledger
from gpu.place import Place

ROOT = Path(__file__).resolve().parent.parent.parent
RESERVE = 4.0  # seconds kept for the table


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Session:
    """One call under way.

    Args:
        ledger: of the call.
        place: where, and how much.
        folder: for the files that come back.
        seconds: the whole call may take.
        tests: the folder of the tests.
        first: the tool of the sanitizer that comes first.
        old: an older library to be compared with.
    """

    ledger: Ledger
    place: Place
    folder: Path
    seconds: float
    tests: Path = ROOT / "tests"
    first: str = "memcheck"
    old: Path | None = None
    _began: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """What all programs print."""
        return self.folder / f"call-{self.ledger.document['call']}.log"

    def left(self, limit: float = float("inf")) -> float:
        """Seconds that a part may take."""
        now = time.monotonic()
        return max(1.0, min(limit, self._began + self.seconds - RESERVE - now))

    @property
    def is_over(self) -> bool:
        """Whether no further part is worth its start."""
        return self.left() <= 1.0

    def environ(self) -> dict[str, str]:
        """Variables of every program: this tree's modules, and the package where it lies here."""
        places = [str(ROOT / "bench")]
        if (ROOT / "prune_engine" / "__init__.py").is_file():
            places.insert(0, str(ROOT))
        if given := os.environ.get("PYTHONPATH"):
            places.append(given)
        return {"PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}

    def options(self) -> dict[str, Any]:
        """What ``child.run`` and ``child.relay`` need of a session."""
        return {"log": self.log, "cwd": ROOT, "environ": self.environ()}

    def module(self, name: str, *words: str) -> list[str]:
        """The command of a module that knows the sizes."""
        return [sys.executable, "-m", f"gpu.{name}", "--size", self.place.name, *words]

    def once(self, *words: str) -> list[str]:
        """The command of ``bench/once.py``."""
        return [sys.executable, str(ROOT / "bench/once.py"), "--size", self.place.name, *words]

    def follow(
        self,
        part: str,
        command: list[str],
        limit: float,
        silence: float = 60.0,
        after_table: Callable[[], object] = lambda: None,
    ) -> child.Ending:
        """Relay a program whose rows go into the ledger as they are.

        Args:
            part: of the rows.
            command: words.
            limit: seconds.
            silence: seconds without an event.
            after_table: is called when a table is complete and the next has begun.
        """

        def hear(event: child.Event) -> None:
            if event["kind"] == "rows":
                self.ledger.put(*({**row, "part": part} for row in event["rows"]))
            elif event["kind"] == "table":
                say(f"  {event['name']} {event['n'] or ''} ({self.spent():.0f} s)")
                after_table()
            elif event["kind"] == "lost":
                table, n, name = [*event["key"].split("|"), "", ""][:3]
                row = {"table": table, "n": int(n), "name": name} if n else {"name": table}
                fault = f"lost: {event['why']}"
                self.ledger.put({"part": part, **row, "note": fault, "fault": fault})

        ending = child.relay(
            command, limit=self.left(limit), silence=silence, hear=hear, **self.options()
        )
        if ending.reason or ending.status:
            note = ending.reason or f"ended with {ending.status}; see {self.log.name}"
            # Time that is over is no fault: what was measured until then stands.
            fault = {} if ending.reason.startswith("its") else {"fault": note}
            self.ledger.put({"part": part, "name": "not all of it", "note": note, **fault})
        return ending

    def spent(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._began
