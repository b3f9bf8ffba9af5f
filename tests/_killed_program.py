# SPDX-License-Identifier: Apache-2.0
"""``prune-engine train`` in a process that kills itself: no handler, no ``finally``, no goodbye.

    python _killed_program.py WHEN COUNT train ...

``step`` dies within the COUNT-th optimiser step, ``replace`` before a file's COUNT-th move into
place, ``record`` half-way through the COUNT-th block of a recording, ``never`` not at all, and
``forget`` resumes without the optimiser. What it was continued with is printed: ``steps N``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from prune_engine.cli import main
from prune_engine.recipes import train
from prune_engine.recipes.trainer import Trainer


class Counted:
    """Calls a function, and at some call another one instead."""

    def __init__(self, real: Callable[..., Any], at: int, instead: Callable[..., Any]) -> None:
        self.real, self.at, self.instead, self.calls = real, at, instead, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return (self.instead if self.calls == self.at else self.real)(*arguments)


def die(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(descriptor: int, data: memoryview, at: int) -> None:
    pwrite(descriptor, data[: len(data) // 2], at)
    die()


pwrite = os.pwrite  # as it is before anything is put in its place


def run(when: str, count: int, words: list[str]) -> int:
    steps = Counted(Trainer.step, count if when == "step" else 0, die)
    replaced = Counted(os.replace, count if when == "replace" else 0, die)
    written = Counted(os.pwrite, count if when == "record" else 0, write_half)
    parts = whole = train._parts
    if when == "forget":

        def forgetful(*arguments: Any) -> dict[str, Any]:
            return {name: part for name, part in whole(*arguments).items() if name != "optimizer"}

        parts = forgetful

    with (
        mock.patch.object(Trainer, "step", lambda *arguments: steps(*arguments)),
        mock.patch.object(os, "replace", replaced),
        mock.patch.object(os, "pwrite", written),
        mock.patch.object(train, "_parts", parts),
    ):
        status = main(words)
    print(f"steps {steps.calls}")
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
