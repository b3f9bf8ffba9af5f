# SPDX-License-Identifier: Apache-2.0
"""What test_torchrun.py lets torchrun start: the recipe of the data page, as its reader runs it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from _readme import ROOT, blocks, readers_names

PAGE = ROOT / "prune_engine" / "data" / "README.md"


def difference() -> list[str]:
    """Return the lines of the page's block for many processes: what changes in a DDP script."""
    ((_, found),) = blocks(PAGE.read_text(), "diff")
    return found.splitlines()


def recipe(mark: str = "+") -> str:
    """Return the DDP script with the changes, or without them (``mark="-"``)."""
    return "\n".join(line[1:] for line in difference() if line[:1] in (" ", mark))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_recipe(code: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run it as a reader would, among a reader's names; return what its engine came to."""
    # The reader's model is drawn from the global generator, which is each process's own.
    with torch.no_grad():
        for parameter in space["model"].parameters():
            parameter.zero_()
    exec(compile(code, str(PAGE), "exec"), space)
    engine = space["engine"]
    return {
        "planned": [report.planned for report in engine.history],
        "observed": [report.observed for report in engine.history],
        "kept": engine.plan.kept,
        "scores": engine.scores(),
    }


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.set_num_threads(1)
    space = readers_names(folder)
    torch.save(run_recipe(recipe(), space), folder / f"recipe{rank}.pt")
    # A thread of gloo's that frees a tensor while the interpreter shuts down aborts the process:
    # of DDP alone too, on a busy machine. What the recipe guards against is freed by now.
    os._exit(0)
