# SPDX-License-Identifier: Apache-2.0
"""Times the operators beside what torch offers: ``python -m gpu.benchmark`` in ``bench/``.

Rows go to whoever listens (``gpu.events``) after each round, most wanted tables first.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gpu import events, steps
from gpu.clock import Clock, DeviceLost, Row, check_device, measure
from gpu.graphs import Replay
from gpu.operators import (
    Operator,
    Scored,
    activation_operators,
    activations,
    epoch_operators,
    select_operators,
)
from gpu.place import PLACES, Place
from gpu.rivals import activation_rivals, epoch_rivals, select_rivals


@dataclass(frozen=True)
class Job:
    """One table: its rows are made, timed in the same rounds, and let go."""

    table: str
    n: int
    make: Callable[[], list[Operator]]

    @property
    def key(self) -> str:
        """What tells the making of its inputs from everything else."""
        return f"{self.table}|{self.n}|its inputs"


def ceiling(place: Place) -> list[Operator]:
    """What the memory can do at best."""
    source = torch.ones(place.copied_mib << 18, device=place.device)
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    return [
        Operator("copy", lambda: target.copy_(source), 2 * size),
        Operator("read (sum)", source.sum, size),
        Operator("write (fill)", lambda: target.fill_(1.0), size),
    ]


def epoch(place: Place, backend: str, n: int, rivals: bool = True) -> list[Operator]:
    """The epoch's end, its parts, what torch would need."""
    made = Scored(n, place.device)
    works = epoch_operators(place.kernels(backend), made)
    if place.on_gpu:
        whole = works[0]
        works.insert(1, Operator(f"{whole.name}, in a graph", Replay(whole.call), whole.bytes))
    return works + (epoch_rivals(made) if rivals else [])


def select(place: Place, backend: str, n: int, rivals: bool = True) -> list[Operator]:
    """Exact percentiles and halves."""
    made = Scored(n, place.device)
    works = select_operators(place.kernels(backend), made)
    return works + (select_rivals(made) if rivals else [])


def activation(place: Place, backend: str, rivals: bool = True) -> list[Operator]:
    """The statistics of a ResNet-50's activations."""
    tensors = activations(place.images, place.side, place.device, place.width)
    works = activation_operators(place.kernels(backend), tensors)
    works.append(
        Operator(
            "moments, a call a layer",
            lambda: [place.kernels(backend).moments([tensor], 1) for tensor in tensors],
            works[0].bytes,
        )
    )
    return works + (activation_rivals(tensors) if rivals else [])


def jobs(place: Place) -> Iterator[Job]:
    """Every table, the most wanted first."""
    own = place.backend
    first, *rest = place.samples
    yield Job("ceiling", 0, lambda: ceiling(place))
    yield Job("epoch", first, lambda: epoch(place, own, first))
    yield Job("select", first, lambda: select(place, own, first))
    for batch in place.batches:
        yield Job("observe", batch, lambda b=batch: steps.observe_works(place, own, b))
    for batch, classes in place.logits:
        yield Job(
            f"logits {batch:,} x {classes:,}",
            batch,
            lambda b=batch, c=classes: steps.loss_works(place, own, b, c),
        )
    yield Job("activations", place.images, lambda: activation(place, own))
    yield Job("ResNet-50 step", place.images, lambda: steps.resnet_works(place))
    for n in rest:
        yield Job("epoch", n, lambda n=n: epoch(place, own, n))
        yield Job("select", n, lambda n=n: select(place, own, n))


def other_jobs(place: Place, backend: str) -> Iterator[Job]:
    """The tables of another backend's operators, without rivals."""
    n = place.n
    yield Job("ceiling", 0, lambda: ceiling(place))
    yield Job(f"{backend} epoch", n, lambda: epoch(place, backend, n, False))
    yield Job(f"{backend} select", n, lambda: select(place, backend, n, False))
    yield Job(f"{backend} activations", place.images, lambda: activation(place, backend, False))


def run(job: Job, clock: Clock, place: Place, rounds: int) -> None:
    """Times one table.

    Raises:
        DeviceLost: this process cannot go on.
    """
    past = events.finished()
    if job.key in past:
        return
    begin = lambda key: events.emit("begin", key=key)  # noqa: E731
    begin(job.key)
    try:
        made = job.make()
    except (RuntimeError, ImportError) as error:
        if isinstance(error, RuntimeError):
            check_device(error, place.on_gpu)
        refused = Row(job.table, job.n, Operator("its inputs", lambda: None))
        refused.refused = str(error).splitlines()[0]
        events.emit("rows", rows=[refused.as_dict()])
        events.emit("end", key=job.key)
        return
    rows = [Row(job.table, job.n, work) for work in made]
    rows = [row for row in rows if row.key not in past]
    for changed in measure(clock, rows, rounds, place.on_gpu, begin):
        events.emit("rows", rows=[row.as_dict() for row in changed])
    for key in (*(row.key for row in rows), job.key):
        events.emit("end", key=key)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu.benchmark", description=__doc__)
    parser.add_argument("--size", choices=PLACES, default="full")
    parser.add_argument("--backend", help="only the operators of this one")
    parser.add_argument("--tables", nargs="+", help="only these (default: all)")
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args(argv)
    place = PLACES[arguments.size]
    clock = Clock(place)
    found = other_jobs(place, arguments.backend) if arguments.backend else jobs(place)
    for job in found:
        if arguments.tables and job.table not in arguments.tables:
            continue
        try:
            run(job, clock, place, arguments.rounds or place.rounds)
        except DeviceLost as fault:
            events.emit("fault", why=str(fault))
            return events.LOST
        gc.collect()
        events.emit("table", name=job.table, n=job.n)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
