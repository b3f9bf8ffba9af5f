# SPDX-License-Identifier: Apache-2.0
"""A training that can be killed at every point that matters, and what it must come to.

The same program runs on ranks that are threads, on processes, and under torchrun.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _runs import batches, figures, losses_at

import prune_engine as pe
from prune_engine import files as disk
from prune_engine.epoch import ranks, state_file


@dataclass(frozen=True)
class Job:
    """What is trained.

    Args:
        n: samples.
        num_epochs: of the run.
        global_batch: over all ranks.
        every: steps between two checkpoints.
        align: of the sampler; with 1 the last batches are short.
        sick: every so many samples' losses are nan in each epoch; 0 for none.
        divided: the scores, among the ranks.
        habits: steps observe twice or are tried again, an epoch is broken off, samples are added.
    """

    n: int = 240
    num_epochs: int = 4
    global_batch: int = 24
    every: int = 4
    align: int = 24
    sick: int = 0
    divided: bool = False
    habits: bool = False


# Three blocks of 4096, the last one short: with four ranks one of them owns nothing.
DIVIDED = Job(n=9000, global_batch=1200, align=1200, every=3, divided=True)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: equal for any two runs that trained the same."""

    times_trained: list[list[int]]
    figures: list[str]
    records: list[int]
    order: list[int]


def train(job: Job, file: Path, tick: Callable[[str], None]) -> Outcome:
    """Train to the end on this rank, from the file if there is one.

    ``times_trained`` stands for the model: it is saved with the engine, and goes back with it.
    """
    rank, size = ranks.world()
    more = job.n + 2 * job.global_batch if job.habits else job.n
    engine = pe.PruneEngine(
        saved_samples(file) if job.habits and file.exists() else job.n,
        pe.InfoBatch(0.5, delta=1.0),
        num_epochs=job.num_epochs,
        seed=5,
        shard_scores=job.divided,
    )
    trained = torch.zeros(job.num_epochs, more, dtype=torch.int64)
    if file.exists():
        loaded = pe.load_state(engine, file)["trained"]
        trained = loaded if rank == 0 else trained  # it is of all ranks together
    for epoch in engine.epochs():
        if job.habits and epoch == 2 and engine.num_samples == job.n:
            engine.resize(more)
        if job.habits and epoch == 1 and engine.cursor >= 3 * job.global_batch:
            engine.end_epoch(partial=True)
            continue
        sampler = engine.sampler(align=job.align)
        for batch in batches(sampler, job.global_batch // size):
            losses = losses_at(batch, epoch)
            if job.sick:
                losses[(torch.tensor(batch) + epoch) % job.sick == 0] = torch.nan
            indices = torch.tensor(batch)
            engine.observe(losses, indices)
            if job.habits:
                observe_again(engine, losses, indices)
            trained[epoch, batch] += 1
            tick("step")
            if engine.steps % job.every == 0:
                pe.save_state(engine, file, extra={"trained": total(trained)})
            if job.habits and epoch == 1 and engine.cursor >= 3 * job.global_batch:
                engine.end_epoch(partial=True)
                break
    records, order = engine.buffer.records, engine.plan.indices
    if job.divided:  # each rank has a part of both
        own, share = engine.buffer.owned, range(rank, engine.plan.num_kept, size)
        records = total(torch.zeros(job.n, dtype=torch.int64).index_add_(0, among(own), records))
        order = total(torch.zeros(engine.plan.num_kept).long().index_add_(0, among(share), order))
    rows = [re.sub("'(observed|repeated|nonfinite)': [0-9]+", "", row) for row in figures(engine)]
    shown = rows if job.habits else figures(engine)  # ranks look at other batches again
    return Outcome(total(trained).tolist(), shown, records.tolist(), order.tolist())


def saved_samples(file: Path) -> int:
    """Return for how many samples an engine must be made that takes up a run."""
    return torch.load(file, weights_only=True)["engine"]["num_samples"]


def observe_again(engine: pe.PruneEngine, losses: torch.Tensor, indices: torch.Tensor) -> None:
    """Observe a batch once more, as steps do that look twice or are tried again."""
    half = len(indices) // 2
    match (engine.epoch + int(indices[0])) % 4:
        case 0:
            engine.observe(losses, indices)  # a second look, at the same tensor
        case 1:
            for part in (slice(half), slice(half, None)):  # it did not fit: in two halves
                engine.observe(losses[part], indices[part])
        case 2 if ranks.world()[1] == 1:
            engine.observe(losses, indices.clone())  # moved anew; nothing is drawn ahead here
        case _:
            pass


def among(numbers: range) -> torch.Tensor:
    return torch.tensor([*numbers], dtype=torch.int64)


def total(counts: torch.Tensor) -> torch.Tensor:
    """Return the sum over all ranks."""
    summed = counts.clone()
    if ranks.world()[1] > 1:
        ranks.dist.all_reduce(summed, op=ranks.dist.ReduceOp.SUM)
    return summed


class Shim:
    """A module, but for some functions."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def ticking(tick: Callable[[str], None], durable: bool) -> Iterator[None]:
    """Let the library call ``tick`` around its exchanges and within its writes."""

    def save(content: Any, file: Any) -> None:
        data = io.BytesIO()
        torch.save(content, data)
        middle = len(data.getvalue()) // 2
        file.write(data.getvalue()[:middle])
        file.flush()
        tick("half written")
        file.write(data.getvalue()[middle:])

    def fsync(descriptor: int) -> None:
        tick("flush")
        if durable:  # a killed process does not lose what the system has
            os.fsync(descriptor)

    def rename(source: Any, target: Any) -> None:
        tick("before the rename")
        os.replace(source, target)
        tick("after the rename")

    def around(collective: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            tick("before the exchange")
            result = collective(*arguments)
            tick("after the exchange")
            return result

        return called

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(state_file, "torch", Shim(torch, save=save)))
        files = Shim(os, fsync=fsync, replace=rename)
        for module in (state_file, disk):
            stack.enter_context(mock.patch.object(module, "os", files))
        for name in ("_gather", "_all_reduce_max", "gather", "swap"):
            collective = around(getattr(ranks, name))
            stack.enter_context(mock.patch.object(ranks, name, collective))
        yield


@dataclass
class Fate:
    """Kill one rank when it ticks for the nth time, of all ticks or of those with a name.

    Args:
        kill: does it.
        rank: whom; -1 for nobody.
        at: 1 for the first tick.
        name: counts only these.
    """

    kill: Callable[[], None]
    rank: int = -1
    at: int = 0
    name: str = ""
    seen: int = 0

    def __call__(self, name: str) -> None:
        if ranks.world()[0] == self.rank and name.startswith(self.name):
            self.seen += 1
            if self.seen == self.at:
                self.kill()


def in_process(
    rank: int,
    size: int,
    folder: str,
    job: Job,
    victim: int,
    at: int,
    name: str,
    attempt: int,
    sent: int = signal.SIGKILL,
) -> None:
    """Run one rank over gloo; rank 0 leaves the outcome."""
    store = torch.distributed.FileStore(f"{folder}/store{attempt}", size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    run(folder, job, victim, at, name, sent)
    torch.distributed.barrier()  # a rank that is done and gone would fail one that is not


def run(folder: str, job: Job, victim: int, at: int, name: str, sent: int = signal.SIGKILL) -> None:
    fate = Fate(lambda: os.kill(os.getpid(), sent), victim, at, name)
    with ticking(fate, durable=True):
        outcome = train(job, Path(folder) / "run.pt", fate)
    if ranks.world()[0] == 0:
        torch.save(vars(outcome), f"{folder}/outcome.pt")


def without_a_fault(job: Job, folder: Path, **changes: Any) -> Outcome:
    """Return what one process that holds all scores comes to, never stopped."""
    changes = {"every": 10**9, "divided": False, **changes}
    return train(replace(job, **changes), folder / "never", lambda _: None)


if __name__ == "__main__":  # under torchrun: FOLDER VICTIM AT NAME [divided]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    folder, victim, at, name, *divided = sys.argv[1:]
    run(folder, DIVIDED if divided else Job(), int(victim), int(at), name)
    torch.distributed.destroy_process_group()
