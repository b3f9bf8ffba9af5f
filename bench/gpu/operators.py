# SPDX-License-Identifier: Apache-2.0
"""Every operator, ready to be called once: what ncu, the graphs and the clocks all look at.

Inputs are made with torch and the reference, so that a kernel at fault is met where it is called
and nowhere else. The operators are bare, as ``csrc/ops.cpp`` declares them: those of a backend of
this package, or of any library that was loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune_engine.backends import reference
from prune_engine.bands import SUM_WORDS

Call = Callable[[], object]
INT64_MAX = 2**63 - 1
BOTTLENECKS = (3, 4, 6, 3)  # ResNet-50's stages
HALF = ([32768, 0], [2, 1], [1, 2], 0, -1)  # below the mean one half is dropped, by its own draw
HALF_FIXED = ([32768, 0], [2, 1], [1, 2], 2, -1)  # ... or exactly one half


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Operator:
    """One call.

    Args:
        name: in every table.
        call: does the work once.
        bytes: each array that it must touch, once; 0: not counted.
        prepare: is called before each call and not timed.
        calls: how many calls of the operator ``call`` makes.
    """

    name: str
    call: Call
    bytes: int = 0
    prepare: Call = nothing
    calls: int = 1


class Scored:
    """N samples that were all seen in epoch 0, and the plan of epoch 1."""

    def __init__(self, n: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.n = n
        # Losses as a classifier has them: positive, skewed.
        self.scores = torch.empty(n, device=device).exponential_(generator=generator)
        keys = self.scores.view(torch.int32).to(torch.int64) | 1 << 31  # of scores above 0
        self.records = (1 << 32) | keys
        self.weight_class = torch.empty(n, dtype=torch.uint8, device=device)
        audit = reference.audit(self.records, self.weight_class.fill_(1), 0)
        self.score_sum = audit[:SUM_WORDS].clone()
        self.threshold = reference.mean_threshold(self.score_sum)
        self.offsets = reference.plan(
            self.records, self.threshold, *HALF, 0, 1, self.weight_class
        )  # fmt: skip
        self.count = int(self.offsets[-1])
        self.kept = reference.compact(self.weight_class, self.offsets, self.count)
        self.other_class = torch.empty_like(self.weight_class)  # what others read must stay


def epoch_operators(kernels: Any, made: Scored) -> list[Operator]:
    """What an epoch's end and the next one's order call."""
    n, count, other = made.n, made.count, made.other_class
    records, kept = made.records, made.kept

    def plan(rule: Any) -> Tensor:
        planned: Tensor = kernels.plan(records, made.threshold, *rule, 0, 1, other)
        return planned

    def whole() -> object:
        threshold = kernels.mean_threshold(made.score_sum)
        offsets = kernels.plan(records, threshold, *HALF, 0, 1, other)
        return kernels.compact(other, offsets, count)

    def by_levels() -> object:
        top, cut, *_ = kernels.solve_levels(kernels.cells(records), n * 7 // 10, 6554)
        return kernels.plan_levels(records, top, cut, 0, 1, other)

    return [
        Operator("threshold + plan + compact", whole, 9 * n + 4 * count),
        Operator("plan", lambda: plan(HALF), 9 * n),
        Operator("plan, fixed counts", lambda: plan(HALF_FIXED), 9 * n),
        Operator(
            "compact",
            lambda: kernels.compact(made.weight_class, made.offsets, count),
            n + 4 * count,
        ),
        Operator("order, all", lambda: kernels.order(kept, None, 0, 1, count, 0, 1), 8 * count),
        Operator("order, 256", lambda: kernels.order(kept, None, 0, 1, min(256, count), 0, 1)),
        Operator("audit", lambda: kernels.audit(records, made.weight_class, 0), 9 * n),
        Operator("mean_threshold", lambda: kernels.mean_threshold(made.score_sum)),
        Operator("cells, solve_levels, plan_levels", by_levels, 17 * n),
        Operator("cells", lambda: kernels.cells(records), 8 * n),
    ]


def select_operators(kernels: Any, made: Scored) -> list[Operator]:
    """Two percentiles and a half, exact."""
    n, percents = made.n, ([0, 0], [200, 850], 1000)
    return [
        Operator("percentiles", lambda: kernels.select(made.scores, *percents), 4 * n),
        Operator("percentiles of records", lambda: kernels.select(made.records, *percents), 8 * n),
        Operator("top half", lambda: kernels.top(made.scores, n // 2), 5 * n),
    ]


def pick_operators(kernels: Any, made: Scored) -> list[Operator]:
    """A quarter of a batch in proportion to its scores: one launch, and several."""
    zero = torch.zeros(1, dtype=torch.int64, device=made.scores.device)

    def work(size: int) -> Operator:
        given = made.scores[:size], size // 4, 2, 6554, 7, zero, zero, 0, 0
        return Operator(f"pick, B = {size:,}", lambda: kernels.pick(*given)[0])

    return [work(size) for size in sorted({min(made.n, 4096), min(made.n, 1_000_000)})]


class Batches:
    """A buffer's tensors, and batches of samples that do not repeat among them."""

    def __init__(self, n: int, batch: int, steps: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(batch)
        steps = max(1, min(steps, n // batch))
        self.indices = torch.randperm(n, generator=generator, device=device)[: steps * batch]
        self.indices = self.indices.view(steps, batch)
        self.losses = torch.rand(steps, batch, device=device, generator=generator)
        self.records = torch.zeros(n, dtype=torch.int64, device=device)
        self.score_sum = torch.zeros(SUM_WORDS, dtype=torch.int64, device=device)
        self.counters = torch.tensor([0, 0, 0, INT64_MAX, 0], device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.weight_class = torch.ones(n, dtype=torch.uint8, device=device)
        self.weight_table = torch.tensor([0.0, 1.0, 2.0] + 253 * [0.0], device=device)
        self.epoch = torch.zeros(1, dtype=torch.int64, device=device)
        self.state = (
            *(self.records, self.score_sum, self.counters, self.step),
            *(self.weight_class, self.weight_table, self.epoch),
        )
        # Losses, indices and both results once; a record is read and written, a class is read.
        self.bytes = batch * (4 + 8 + 4 + 4 + 16 + 1)
        self.mean_bytes = self.bytes - 4 * batch  # one result

    def next_epoch(self) -> None:
        """Let every batch be news: a record of a later epoch is larger than any before."""
        self.epoch.add_(1)


def observe_operator(kernels: Any, made: Batches, name: str = "observe") -> Operator:
    """A step's bookkeeping; each sample of each call changes its record."""
    call = getattr(kernels, name)

    def observe() -> None:
        for losses, indices in zip(made.losses, made.indices, strict=True):
            call(losses, indices, None, made.state, True)

    steps = len(made.losses)
    size = made.bytes if name == "observe" else made.mean_bytes
    return Operator(name, observe, size, made.next_epoch, steps)


def logit_operators(
    kernels: Any, batch: int, classes: int, n: int, device: str
) -> tuple[list[Operator], Batches, tuple[Tensor, Tensor]]:
    """The recorded loss of logits and its gradient; also the batch, and (logits, targets)."""
    made = Batches(max(n, batch), batch, 1, device)
    generator = torch.Generator(device).manual_seed(1)
    logits = torch.empty(batch, classes, dtype=torch.bfloat16, device=device)
    logits.normal_(generator=generator)
    targets = torch.randint(classes, (batch,), device=device, generator=generator)
    labels, state = (None, 0.0, -100), made.state
    indices = made.indices[0]
    spare = [tensor.clone() for tensor in made.state]  # the reference records elsewhere
    _, weights, _, stats = reference.cross_entropy_observe(
        logits, targets, indices, *labels, 0, spare, True
    )
    grad = torch.full((batch,), 1 / batch, device=device)
    size = logits.numel() * logits.element_size()

    def forward() -> object:
        return kernels.cross_entropy_observe(logits, targets, indices, *labels, 0, state, True)

    def backward() -> object:
        return kernels.cross_entropy_grad(grad, logits, targets, *labels, weights, stats)

    found = [
        Operator("cross_entropy_observe", forward, size, made.next_epoch),
        Operator("cross_entropy_grad", backward, 2 * size),
    ]
    return found, made, (logits, targets)


def post_relu_shapes(side: int, width: int = 64) -> Iterator[tuple[int, int, int]]:
    """(channels, height, width) of every ReLU of a ResNet-50 (torchvision's, stride in the 3x3).

    Example:
        >>> shapes = list(post_relu_shapes(224))
        >>> len(shapes), sum(c * h * w for c, h, w in shapes)
        (49, 9608704)
    """
    size = side // 2
    yield width, size, size
    size //= 2
    for stage, blocks in enumerate(BOTTLENECKS):
        planes = width << stage
        for block in range(blocks):
            yield planes, size, size
            if stage and not block:
                size //= 2
            yield planes, size, size
            yield 4 * planes, size, size


def activations(images: int, side: int, device: str, width: int = 64) -> list[Tensor]:
    """What the ReLUs of a ResNet-50 write in bfloat16, channels_last; here normal numbers."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.empty(images, *shape, dtype=torch.bfloat16, device=device)
        .contiguous(memory_format=torch.channels_last)
        .normal_(generator=generator)
        for shape in post_relu_shapes(side, width)
    ]


def activation_operators(kernels: Any, tensors: list[Tensor]) -> list[Operator]:
    """The statistics of activations: in passes of their own, and while they are written."""
    out = torch.zeros(1, dtype=torch.float64, device=tensors[0].device)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    largest = max(tensors, key=Tensor.numel)
    moved = 2 * largest.numel() * largest.element_size()
    return [
        Operator(
            "activation_std", lambda: kernels.activation_std(tensors, out, None, True, 1), size
        ),
        Operator(
            "activation_std, sample=8",
            lambda: kernels.activation_std(tensors, out, None, True, 8),
            size // 8,
        ),
        Operator("moments", lambda: kernels.moments(tensors, 1), size),
        Operator("relu_moments", lambda: kernels.relu_moments(largest), moved),
        Operator("relu_moments_", lambda: kernels.relu_moments_(largest), moved),
        Operator("gelu_moments", lambda: kernels.gelu_moments(largest, False), moved),
    ]


def all_operators(
    kernels: Any, n: int, logits: tuple[int, int], images: int, side: int, device: str
) -> list[Operator]:
    """Each operator with one call: a batch of 4,096 is observed, the rest is at full length."""
    scored = Scored(n, device)
    batches = Batches(n, min(4096, n), 1, device)
    losses, _, _ = logit_operators(kernels, *logits, n, device)
    places = torch.arange(min(n, 4096), device=device)
    contest = scored.records, n // 3, 32768, 0, 1, scored.other_class
    return [
        observe_operator(kernels, batches),
        observe_operator(kernels, batches, "observe_mean"),
        *epoch_operators(kernels, scored)[1:],  # the whole is its parts
        Operator("draw", lambda: kernels.draw(places, 0, 1, 0)),
        Operator("plan_top", lambda: kernels.plan_top(*contest), 33 * n),
        Operator("shuffle", lambda: kernels.shuffle(places, n, False, 0, 1)),
        *select_operators(kernels, scored),
        *pick_operators(kernels, scored),
        *losses,
        *activation_operators(kernels, activations(images, side, device)),
    ]
