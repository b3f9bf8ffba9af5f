# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes: started quickly, killed for real, and what became of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

PATIENCE = 120.0  # seconds until a rank that does not end is taken for hung


def _rank_main(work: Callable[..., None], rank: int, size: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    code = 0
    try:
        work(rank, size, *arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    # Once in some twenty runs a rank aborted in gloo's teardown ("terminate called without an
    # active exception"), after all was checked and written: not under test.
    os._exit(code)


class Group:
    """Some ranks that run; ``join`` says how each ended."""

    def __init__(self, processes: list[Any]) -> None:
        self.processes = processes

    def kill(self, rank: int) -> None:
        """Send SIGKILL."""
        self.processes[rank].kill()

    def terminate(self, rank: int) -> None:
        """Send SIGTERM."""
        self.processes[rank].terminate()

    def join(self) -> list[int]:
        """Wait for all; when one fails, kill the others, as a launcher does.

        Returns:
            Exit codes: 0, 1 for an exception, minus the number of a signal.
        """
        waiting = list(self.processes)
        while waiting:
            ended = multiprocessing.connection.wait([p.sentinel for p in waiting], PATIENCE)
            hung = not ended
            for process in [p for p in waiting if p.sentinel in ended]:
                process.join()
                waiting.remove(process)
            if hung or any(p.exitcode for p in self.processes):
                for process in waiting:
                    process.kill()
            assert not hung, "a rank hangs"
        return [p.exitcode for p in self.processes]


def start_ranks(work: Callable[..., None], size: int, *arguments: Any) -> Group:
    """Start ``work(rank, size, *arguments)`` in processes that have imported torch already.

    A server without threads forks them, once it has imported: a tenth of a second each, where a
    spawned process takes seconds. ``work`` is a function of a test module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "prune_engine.engine"])
    processes = [
        context.Process(target=_rank_main, args=(work, rank, size, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return Group(processes)
