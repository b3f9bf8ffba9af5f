# SPDX-License-Identifier: Apache-2.0
"""A training step under torch.compile: how many graphs the compiler skipped, whose bits it has.

``python -m gpu.compiled``; the step is run as a CUDA graph by ``mode="reduce-overhead"``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import prune_engine as pe
from gpu import events
from gpu.outcomes import skipped_graphs
from gpu.place import PLACES, Place

N, BATCH, STEPS = 4096, 64, 6

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def step_of(name: str, engine: pe.PruneEngine, weight: Tensor) -> Step:
    """One way to train a linear layer."""

    def observed(x: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        return engine.observe(F.cross_entropy(x @ weight, targets, reduction="none"), indices)

    def fused(x: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        return engine.cross_entropy_observe(x @ weight, targets, indices)

    def plain(x: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight, targets)

    return {"observe": observed, "cross_entropy_observe": fused, "no engine": plain}[name]


def train(name: str, place: Place, compiled: bool) -> tuple[Tensor, Tensor]:
    """Some steps; the scores and the last loss."""
    generator = torch.Generator(place.device).manual_seed(0)
    weight = torch.zeros(16, 10, device=place.device, requires_grad=True)
    engine = pe.PruneEngine(N, pe.InfoBatch(), num_epochs=9, device=place.device)
    step: Any = step_of(name, engine, weight)
    if compiled:
        backend, mode = place.compiler
        step = torch.compile(step, fullgraph=True, backend=backend, mode=mode)
    inputs = torch.randn(N, 16, device=place.device, generator=generator)
    targets = torch.randint(10, (N,), device=place.device, generator=generator)
    loss = torch.zeros(())
    for number in range(STEPS):
        indices = torch.arange(BATCH, device=place.device) + number * BATCH
        loss = step(inputs[indices], targets[indices], indices)
        loss.backward()
        loss = loss.detach().clone()  # the next replay writes over it
        with torch.no_grad():
            weight -= 0.1 * weight.grad if weight.grad is not None else 0.0
        weight.grad = None
    return engine.scores(), loss


def row_of(name: str, place: Place) -> dict[str, Any]:
    """Compile, run, and compare with eager."""
    torch._dynamo.reset()
    before = skipped_graphs()
    scores, loss = train(name, place, compiled=True)
    skipped = skipped_graphs() - before
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.utils.counters["stats"].clear()
    want, plain = train(name, place, compiled=False)
    # The compiler's own losses differ from eager's in their last bits, and with them the scores.
    same = torch.allclose(scores, want, rtol=1e-4, equal_nan=True)
    same = same and torch.allclose(loss, plain, rtol=1e-4)
    row: dict[str, Any] = {"name": name, "graphs": graphs, "skipped": str(skipped)}
    row["result"] = "as eager" if same else "not as eager"
    if skipped or not same:
        row["fault"] = f"{skipped} graphs skipped, {row['result']}"
    return row


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu.compiled", description=__doc__)
    parser.add_argument("--size", choices=PLACES, default="full")
    place = PLACES[parser.parse_args(argv).size]
    for name in ("no engine", "observe", "cross_entropy_observe"):
        if name in events.finished():
            continue
        events.emit("begin", key=name)
        events.emit("rows", rows=[row_of(name, place)])
        events.emit("end", key=name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
