# SPDX-License-Identifier: Apache-2.0
"""Capture each operator in a graph at its first call in a process: ``python -m gpu.capture``.

The driver loads a kernel when it is first launched; a capture is a bad time for that. What the
graph's replay gives is compared with a plain call afterwards. On a CPU the call itself stands in
for the graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpu import events
from gpu.clock import DeviceLost, check_device
from gpu.graphs import captured
from gpu.operators import Operator, all_operators
from gpu.place import PLACES, Place

N = 100_000  # what is tried is the launch, not the length
CHANGES_ITS_INPUT = ("observe", "observe_mean", "cross_entropy_observe", "relu_moments_")


def tensors(result: Any) -> list[Tensor]:
    """The tensors that a call returned."""
    if isinstance(result, Tensor):
        return [result]
    return [item for item in result if isinstance(item, Tensor)] if result is not None else []


def replayed(work: Operator, on_gpu: bool) -> list[Tensor]:
    """What the first call gives, made in a capture and run by its replay."""
    if not on_gpu:
        return tensors(work.call())
    graph, result = captured(work.call)
    graph.replay()
    torch.cuda.synchronize()
    return [tensor.clone() for tensor in tensors(result)]


def attempt(work: Operator, on_gpu: bool) -> dict[str, Any]:
    """The row of one operator.

    Raises:
        DeviceLost: this process cannot go on.
    """
    row: dict[str, Any] = {"name": work.name}
    try:
        first = replayed(work, on_gpu)
        again = first if work.name in CHANGES_ITS_INPUT else tensors(work.call())
    except RuntimeError as error:
        check_device(error, on_gpu)
        why = str(error).splitlines()[0]
        return {**row, "result": "refused", "note": why, "fault": why}
    if all(map(torch.equal, first, again)):
        return {**row, "result": "ok"}
    fault = "the replay and a plain call differ"
    return {**row, "result": "differs", "note": fault, "fault": fault}


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu.capture", description=__doc__)
    parser.add_argument("--size", choices=PLACES, default="full")
    place: Place = PLACES[parser.parse_args(argv).size]
    n, side = min(N, place.n), min(32, place.side)
    works = all_operators(place.kernels(), n, (64, 1000), 2, side, place.device)
    for work in works:
        if work.name in events.finished():
            continue
        events.emit("begin", key=work.name)
        try:
            events.emit("rows", rows=[attempt(work, place.on_gpu)])
        except DeviceLost as fault:
            events.emit("fault", why=str(fault))
            return events.LOST
        events.emit("end", key=work.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
