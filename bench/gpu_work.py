# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu.py times: the operators on a GPU, and what torch offers for the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import prune_engine as pe

STEPS = 32  # calls of observe in one timed call
PERCENTS = (20.0, 85.0)
QUANTILE_LIMIT = 2**24  # torch.quantile refuses more elements


@dataclass
class Row:
    """One alternative: its times in microseconds, or why there are none."""

    table: str
    n: int
    name: str
    bytes: int = 0
    per_call: int = 1
    refused: str = ""
    times_us: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """The value that this share of the times does not exceed (nearest rank)."""
        ordered = sorted(self.times_us)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


Work = tuple[Row, Callable[[], object]]


def random_scores(n: int, device: torch.device) -> Tensor:
    """Losses as a classifier has them: positive, skewed."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.empty(n, device=device).exponential_(generator=generator)


def filled_buffer(n: int, device: torch.device, scores: Tensor) -> pe.ScoreBuffer:
    """A buffer in which every sample has been seen once."""
    buffer = pe.ScoreBuffer(n, device=device)
    for begin in range(0, n, 1 << 24):
        part = torch.arange(begin, min(n, begin + (1 << 24)), device=device)
        buffer.observe(scores[begin : begin + (1 << 24)], part)
    return buffer


def eager_plan(scores: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The plan as a torch user would write it, on the device: masks, nonzero, randperm."""
    low_mask = scores < scores.mean()
    low = low_mask.nonzero().squeeze(1)
    high = low_mask.logical_not().nonzero().squeeze(1)
    half = low.shape[0] // 2
    chosen = torch.randperm(low.shape[0], generator=generator, device=scores.device)[:half]
    low_kept = low[chosen]
    weights = torch.ones_like(scores)
    weights[low_kept] = 2.0
    kept = torch.cat((high, low_kept))
    order = torch.randperm(kept.shape[0], generator=generator, device=scores.device)
    return kept[order], weights


def plan_work(n: int, device: torch.device) -> list[Work]:
    """The epoch's end: ours, its parts, and what torch would need."""
    scores = random_scores(n, device)
    buffer = filled_buffer(n, device, scores)
    threshold = buffer.mean_threshold()
    table = (0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    bands = (pe.Band(32768, 2, 1, 2), pe.Band(0, 1, 2, 2))
    rule = pe.Rule(threshold, bands, table, False, -1)
    fixed = pe.Rule(threshold, bands, table, True, -1)
    out = buffer.weight_class
    _, offsets = pe.ops.plan(buffer.records, rule, seed=0, epoch=1, out=out)
    count = int(offsets[-1])
    kept = pe.ops.compact(out, offsets, count)
    generator = torch.Generator(device).manual_seed(1)
    copied = torch.empty_like(buffer.records)

    other = torch.empty_like(out)  # what compact and audit read must stay

    def plan(which: pe.Rule, into: Tensor) -> tuple[Tensor, Tensor]:
        return pe.ops.plan(buffer.records, which, seed=0, epoch=1, out=into)

    def whole() -> object:
        buffer.mean_threshold()
        return pe.ops.compact(*plan(rule, out), count)

    def quantile() -> object:
        if n > QUANTILE_LIMIT:
            raise RuntimeError(f"torch.quantile takes at most {QUANTILE_LIMIT} elements")
        return torch.quantile(scores, 0.5)

    rows: list[tuple[str, int, Callable[[], object]]] = [
        ("copy of the records", 16 * n, lambda: copied.copy_(buffer.records)),
        ("threshold + plan + compact", 9 * n + 4 * count, whole),
        ("plan", 9 * n, lambda: plan(rule, out)),
        ("plan, fixed counts", 9 * n, lambda: plan(fixed, other)),
        ("compact", n + 4 * count, lambda: pe.ops.compact(out, offsets, count)),
        ("order, all", 8 * count, lambda: pe.ops.order(kept, range(count), seed=0, epoch=1)),
        ("order, 256", 0, lambda: pe.ops.order(kept, range(256), seed=0, epoch=1)),
        ("audit", 9 * n, lambda: pe.ops.audit(buffer.records, out, epoch=0)),
        ("mean_threshold", 0, buffer.mean_threshold),
        ("torch eager planner", 0, lambda: eager_plan(scores, generator)),
        ("torch.sort", 0, lambda: torch.sort(scores)),
        ("torch.argsort", 0, lambda: torch.argsort(scores)),
        ("torch.quantile", 0, quantile),
        ("torch.kthvalue", 0, lambda: torch.kthvalue(scores, n // 2)),
        ("torch.topk, half", 0, lambda: torch.topk(scores, n // 2)),
        ("torch.randperm", 0, lambda: torch.randperm(n, generator=generator, device=device)),
        ("torch.nonzero", 0, lambda: torch.nonzero(out)),
    ]
    return [(Row("plan", n, name, size), call) for name, size, call in rows]


def select_work(n: int, device: torch.device) -> list[Work]:
    """Two percentiles and a half, exact: no sort, and no look at a number between the passes."""
    scores = random_scores(n, device)
    records = filled_buffer(n, device, scores).records
    ranks = [round((n - 1) * percent / 100) for percent in PERCENTS]

    def kthvalues() -> object:
        return [torch.kthvalue(scores, rank + 1) for rank in ranks]

    copied = torch.empty_like(scores)
    rows: list[tuple[str, int, Callable[[], object]]] = [
        ("copy of the scores", 8 * n, lambda: copied.copy_(scores)),
        ("percentiles", 4 * n, lambda: pe.ops.percentiles(scores, PERCENTS)),
        ("percentiles of records", 8 * n, lambda: pe.ops.percentiles(records, PERCENTS)),
        ("top half", 5 * n, lambda: pe.ops.top(scores, n // 2)),
        ("torch.kthvalue, twice", 0, kthvalues),
        ("torch.sort", 0, lambda: torch.sort(scores)),
        ("torch.topk, half", 0, lambda: torch.topk(scores, n // 2, sorted=False)),
        ("torch.mean", 4 * n, scores.mean),
    ]
    return [(Row("select", n, name, size), call) for name, size, call in rows]


def graph_of(call: Callable[[], object]) -> Callable[[], object]:
    """Capture a call; the result replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def observe_work(n: int, batch: int, device: torch.device) -> list[Work]:
    """A step's bookkeeping: STEPS calls, eager and captured, and the same in eager torch."""
    buffer = pe.ScoreBuffer(n, device=device)
    generator = torch.Generator(device).manual_seed(batch)
    indices = torch.randint(n, (STEPS, batch), device=device, generator=generator)
    losses = torch.rand(STEPS, batch, device=device, generator=generator)
    scores, weights = (torch.ones(n, device=device) for _ in range(2))

    def ours() -> None:
        for step in range(STEPS):
            buffer.observe(losses[step], indices[step])

    def eager() -> None:
        for step in range(STEPS):
            scores[indices[step]] = losses[step]
            losses[step] * weights[indices[step]]

    # Losses, indices and both results once; a record is read and written, a class is read.
    size = batch * (4 + 8 + 4 + 4 + 16 + 1)
    rows = [("observe", ours), ("torch eager scatter, gather, product", eager)]
    if device.type == "cuda":
        rows.insert(1, ("observe, in a graph", graph_of(ours)))  # type: ignore[arg-type]
    return [(Row("observe", batch, name, size, STEPS), call) for name, call in rows]
