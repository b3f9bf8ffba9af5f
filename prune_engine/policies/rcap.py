# SPDX-License-Identifier: Apache-2.0
"""RCAP: a share of each class by how badly it is learned, and the hard ones of it more likely."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import check_fraction, check_positive, decimal_fraction, weight_table
from prune_engine.epoch.per_sample import PerSample
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Rule, Selection
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule

STREAM = 2**27 + 2  # of draw
LEVELS = 256  # of the weights within a class
UNIT = 2**20  # a loss is added up in these parts of one, in integers
LARGEST = 2**20  # no loss counts for more
DRAWN_BITS = 16


@dataclass(frozen=True)
class RCAP(ScoreRule):
    """Keep a share of every class in proportion to sqrt(its mean loss times its size).

    RCAP (PMLR 286, 2025; datacull): of K = floor(keep * N) samples class c gets a share in
    proportion to ``sqrt(L_c N_c / N)``, at most all of it, the rest going to the other classes in
    the same proportion; within a class they are drawn without replacement, with chances in
    proportion to ``exp(min(loss, ln C) / beta)`` (Efraimidis and Spirakis 2006, as a race of
    exponentials). Ours: keep is what is kept; the redistribution counts what is left, which the
    published code does not; losses are added up in integers and chances have 256 levels, so that
    devices agree. It sorts, so it is O(N log N). No weights: biased.

    Args:
        labels: the class of each sample, ``PerSample`` of integers in 0..65535.
        keep: in (0, 1).
        beta: above 0: the larger, the more alike the chances.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops as much at random, and who was never
            seen counts as one of the mean loss of its class, or of all where nobody of it was.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is of the wrong kind.
        ValueError: a parameter is out of range.

    Example:
        >>> RCAP(PerSample([0, 0, 0, 1]), keep=0.5).shares([3, 1], [1.0, 9.0])
        [1, 1]
    """

    labels: PerSample
    keep: float = 0.5
    beta: float = 1.0
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self, "keep", "beta", "first_epoch", "warmup", "weight_cap")
        if not isinstance(self.labels, PerSample):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"labels must be a PerSample, such as PerSample(targets), got "
                f"{type(self.labels).__name__}"
            )
        least, most = self.labels.bounds()
        if not self.labels.integral or least < 0 or most > 65535:
            raise ValueError(f"labels must be integers in 0..65535, got {least} to {most}")
        check_fraction("keep", self.keep, zero=False, one=False)
        check_positive("beta", self.beta)
        self.check_beginning()

    def savings(self) -> float:
        """Return the share that an even first epoch drops."""
        return 1 - self.keep

    def weighs(self) -> bool:
        """Return False."""
        return False

    def shares(self, sizes: list[int], means: list[float]) -> list[int]:
        """Return how many samples of each class are kept.

        Args:
            sizes: N_c.
            means: L_c.

        Returns:
            Whole numbers of the sum floor(keep * N): the largest remainders are rounded up, ties to
            the smaller class.
        """
        wanted = math.floor(decimal_fraction(self.keep) * sum(sizes))
        given = [0.0] * len(sizes)
        open_ = [c for c, size in enumerate(sizes) if size]
        left = float(wanted)
        while open_ and left > 0:
            parts = [math.sqrt(max(means[c], 0.0) * sizes[c]) for c in open_]
            whole = sum(parts)
            parts = [p / whole if whole else 1 / len(open_) for p in parts]
            full = [c for c, p in zip(open_, parts, strict=True) if left * p >= sizes[c]]
            if not full:
                for c, p in zip(open_, parts, strict=True):
                    given[c] = left * p
                break
            for c in full:
                given[c] = float(sizes[c])
                left -= sizes[c]
            open_ = [c for c in open_ if c not in full]
        floors = [math.floor(each) for each in given]
        order = sorted(range(len(sizes)), key=lambda c: (floors[c] - given[c], c))
        for c in [c for c in order if floors[c] < sizes[c]][: wanted - sum(floors)]:
            floors[c] += 1
        return floors

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return the drawn samples; the host reads two numbers per class.

        Args:
            buffer: the scores.
            progress: the epoch and the seed.
            memory: there is none.

        Returns:
            The decision of the epoch.

        Raises:
            ValueError: the labels are not one for each sample.
        """
        n = buffer.num_samples
        if len(self.labels) != n:
            raise ValueError(f"labels must be one for each of {n} samples, got {len(self.labels)}")
        if progress.epoch == 0 or n == 0:
            return Rule.keep_all(buffer.device)
        labels = self.labels.on(buffer.device)
        classes = int(self.labels.bounds()[1]) + 1
        scores = buffer.scores.nan_to_num(0.0).clamp(-LARGEST, LARGEST)
        units = (scores.to(torch.float64) * UNIT).round().to(torch.int64)
        totals = torch.zeros(classes, dtype=torch.int64, device=buffer.device)
        sums = host_ints(totals.index_add(0, labels, units))
        sizes = host_ints(totals.index_add(0, labels, torch.ones_like(labels)))
        if self.first_epoch == "even":
            seen = (buffer.records != 0).to(torch.int64)
            means = _means(sums, host_ints(totals.index_add(0, labels, seen)))
            typical = torch.tensor(means, dtype=torch.float32, device=buffer.device)
            scores = torch.where(seen == 1, scores, typical[labels])
        else:
            means = _means(sums, sizes)
        counts = self.shares(sizes, means)
        finish = _race(buffer, progress, scores, math.log(max(2, classes)), self.beta)
        kept = _first_of_each(labels, finish, sizes, counts)
        return Selection(kept, weight_table())


def _means(sums: list[int], counts: list[int]) -> list[float]:
    """Return the mean loss of each class; where nobody of one counts, that of all."""
    of_all = sum(sums) / UNIT / max(1, sum(counts))
    return [s / UNIT / n if n else of_all for s, n in zip(sums, counts, strict=True)]


def _race(
    buffer: ScoreBuffer, progress: Progress, scores: Tensor, most: float, beta: float
) -> Tensor:
    """Return when each sample finishes, float32 [N]: an exponential draw over its chance."""
    level = (scores.clamp(0, most) * ((LEVELS - 1) / most)).round().to(torch.int64)
    step = most / (LEVELS - 1) / beta
    chances = torch.tensor([math.exp(k * step - most / beta) for k in range(LEVELS)])
    draws = 1 << DRAWN_BITS
    times = torch.tensor([-math.log((k + 0.5) / draws) for k in range(draws)])
    numbers = torch.arange(buffer.num_samples, device=buffer.device)
    key: dict[str, Any] = {"seed": progress.seed, "epoch": progress.epoch, "stream": STREAM}
    drawn = ops.draw(numbers, backend=buffer.backend, **key) >> (32 - DRAWN_BITS)
    return times.to(buffer.device)[drawn] / chances.to(buffer.device)[level]


def _first_of_each(labels: Tensor, finish: Tensor, sizes: list[int], counts: list[int]) -> Tensor:
    """Return 1 for the first ones of each class, ties to the smaller index: uint8 [N]."""
    by_time = torch.sort(finish, stable=True).indices
    order = by_time[torch.sort(labels[by_time], stable=True).indices]
    first, starts = 0, list[int]()
    for size in sizes:
        starts.append(first)
        first += size
    device = labels.device
    place = torch.empty_like(labels)
    place[order] = torch.arange(labels.shape[0], device=device)
    within = place - torch.tensor(starts, device=device)[labels]
    return (within < torch.tensor(counts, device=device)[labels]).to(torch.uint8)
