# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads of one process: the part of torch.distributed that the library calls.

Hundreds of runs of up to eight ranks would take an hour as processes. Real gloo ranks are in
test_distributed.py and test_faults.py; both must agree.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from prune_engine.epoch import ranks

PATIENCE = 60.0  # seconds until a rank that waits for another gives up


class Killed(BaseException):
    """A rank was killed: no handler of Exception sees it, as none sees SIGKILL."""


class Ranks:
    """A world of threads; ``logs`` has each rank's (collective, bytes received) in order."""

    ReduceOp = dist.ReduceOp

    def __init__(self, size: int) -> None:
        self.size = size
        self.logs: list[list[tuple[str, float]]] = [[] for _ in range(size)]
        self._here = threading.local()
        self._barrier = threading.Barrier(size, timeout=PATIENCE)
        self._board: list[Any] = [None] * size

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return hasattr(self._here, "rank")

    def get_rank(self, group: Any = None) -> int:
        return self._here.rank

    def get_world_size(self, group: Any = None) -> int:
        return self.size

    def all_reduce(self, tensor: Tensor, *, op: Any, group: Any = None) -> None:
        received = 2 * tensor.nbytes * (self.size - 1) / self.size  # a ring's
        shown = torch.stack(self._swap("all_reduce", tensor, received))
        tensor.copy_(shown.sum(dim=0) if op == dist.ReduceOp.SUM else shown.amax(dim=0))

    def all_gather(self, rows: list[Tensor], row: Tensor, *, group: Any = None) -> None:
        received = row.nbytes * (self.size - 1)
        for into, shown in zip(rows, self._swap("all_gather", row, received), strict=True):
            into.copy_(shown)

    def all_to_all_single(
        self, into: Tensor, sent: Tensor, counts_in: list[int], counts_out: list[int], *, group: Any
    ) -> None:
        assert sum(counts_out) == len(sent)
        assert sum(counts_in) == len(into)
        rank, row = self._here.rank, sent[:1].nbytes
        received = row * (sum(counts_in) - counts_in[rank])
        shown = self._swap("all_to_all", (counts_out, sent), received)
        parts = [rows.split(counts)[rank] for counts, rows in shown]
        assert [len(part) for part in parts] == counts_in, "what a rank waits for must come"
        into.copy_(torch.cat(parts))

    def _swap(self, name: str, sent: Any, received: float) -> list[Any]:
        """Show all ranks a copy of a tensor, or of rows for each; return everybody's."""
        if isinstance(sent, Tensor):
            self._board[self._here.rank] = (name, sent.shape, sent.clone())
        else:
            self._board[self._here.rank] = (name, sent[1].shape[1:], (sent[0], sent[1].clone()))
        self._barrier.wait()
        shown = list(self._board)
        self._barrier.wait()  # the board is free for the next
        assert len({(other, shape) for other, shape, _ in shown}) == 1, "collectives must match"
        self.logs[self._here.rank].append((name, received))
        return [copy for _, _, copy in shown]

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Run ``work(rank)`` on every rank; return what each returned.

        When a rank fails, those that wait for it fail too; the first failure is raised here.
        """
        results: list[Any] = [None] * self.size
        failures: list[BaseException] = []

        def rank_main(rank: int) -> None:
            self._here.rank = rank
            try:
                torch.set_num_threads(1)
                results[rank] = work(rank)
            except threading.BrokenBarrierError:
                pass  # another rank's failure is the one to see
            except BaseException as error:
                failures.append(error)
                self._barrier.abort()

        with mock.patch.object(ranks, "dist", self):
            threads = [threading.Thread(target=rank_main, args=(q,)) for q in range(self.size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        assert not self._barrier.broken, "a rank waited in vain"
        return results
