# SPDX-License-Identifier: Apache-2.0
"""Each rule said once more, in NumPy or plain Python: the same decision for every sample and epoch.

A restatement plans an epoch from what it was told of those before: batches of (index, loss). It
shares nothing with the package but the words of SEMANTICS; draws are those of ``tests/oracle.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any

import _levels
import numpy as np
import oracle
import pytest
import torch
from _ranks import Ranks
from _runs import KnownReference, N, batches, losses_at, observe, serve, through_disk
from torch.fx.experimental.proxy_tensor import make_fx

import prune_engine as pe
from prune_engine.policies import (
    IES,
    KAKURENBO,
    RCAP,
    RS2,
    UCB,
    AlignPrune,
    InfoBatch,
    OrderDP,
    PerSample,
    ProgressiveDropout,
    Proportional,
    RePB,
    Reselect,
    SeTa,
    Subset,
    ZeroVariance,
)

EPOCHS = 12
SEED = 11
Batches = list[tuple[np.ndarray, np.ndarray]]


@cache
def keep_draws(epoch: int) -> np.ndarray:
    return np.array(oracle.draws(N, SEED, epoch))


@cache
def stream_draws(epoch: int, stream: int) -> np.ndarray:
    counters = ([i // 4, 0, 16 * stream + 15, epoch] for i in range(N))
    words = [oracle.philox(counter, oracle.halves(SEED)) for counter in counters]
    return np.array([words[i][i % 4] for i in range(N)])


def ceil32(scores: np.ndarray) -> float:
    """Return the smallest float32 that is not below the mean of what was seen."""
    seen = [Fraction(float(x)) for x in scores if not math.isnan(x)]
    mean = sum(seen) / len(seen)
    near = np.float32(float(mean))
    return float(near if Fraction(float(near)) >= mean else np.nextafter(near, np.float32(np.inf)))


def cut_of(share: float) -> int:
    """Return the draws that drop a share."""
    return math.floor(share * 65536 + 0.5)


class Restated:
    """Knows the last loss of each sample, and the epoch it is of."""

    def __init__(self) -> None:
        self.score = np.full(N, np.nan, np.float32)
        self.when = np.full(N, -1)

    def told(self, epoch: int, stream: Batches) -> None:
        for indices, losses in stream:
            self.score[indices] = losses
            self.when[indices] = epoch

    def plan(self, epoch: int) -> np.ndarray:
        return np.ones(N)


class Largest(Restated):
    """OrderDP: of whoever draws at least the cut, the first by (unseen, score, tie draw, index)."""

    def __init__(self, keep: float, pool: float) -> None:
        super().__init__()
        self.count, self.cut = math.floor(Fraction(str(keep)) * N), round(65536 * (1 - pool))

    def plan(self, epoch: int) -> np.ndarray:
        ties = stream_draws(epoch, 2**27) // 2
        score = np.where(np.isnan(self.score), np.inf, self.score)
        pool = [i for i in range(N) if keep_draws(epoch)[i] >= self.cut]
        first = sorted(pool, key=lambda i: (-score[i], -ties[i], i))[: self.count]
        weights = np.zeros(N)
        weights[first] = 1
        return weights


class Inclusion(Restated):
    """Proportional: kept in proportion to the score, at least floor * budget, for the inverse."""

    def __init__(self, savings: float, floor: float, cap: float = math.inf, even: bool = False):
        super().__init__()
        self.savings, self.cap, self.even = Fraction(str(savings)), cap, even
        self.target = round((1 - self.savings) * N)
        self.least = round(65536 * (1 - self.savings) * Fraction(str(floor)))

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            cut = math.floor(65536 * self.savings + Fraction(1, 2)) if self.even else 0
            weight = min(self.cap, 65536 / (65536 - cut))
            return np.where(keep_draws(0) < cut, 0, weight).astype(np.float32)
        scores = [None if math.isnan(x) else float(x) for x in self.score]
        mean = ceil32(self.score) if self.even else None  # the score of the never seen
        levels = _levels.solve(_levels.counts_of(scores), self.target, self.least, mean)
        weights = np.minimum(np.array(levels.weights), np.float32(self.cap))
        return weights[_levels.plan(scores, levels, SEED, epoch, unseen=mean)]


class Chunks(Restated):
    """RS2: places t q to (t + 1) q - 1 of a shuffle, floor(N / q) epochs long."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.size = math.floor(Fraction(str(keep)) * N)

    def plan(self, epoch: int) -> np.ndarray:
        turn, part = divmod(epoch, N // self.size)
        pi = oracle.Bijection(N, SEED, turn)
        weights = np.zeros(N)
        weights[[pi(p) for p in range(part * self.size, (part + 1) * self.size)]] = 1
        return weights


class PerBatch(Restated):
    """RePB: below the batch's mean, or absent, goes with probability rho; the kept weigh E / n."""

    def __init__(self, rho: float) -> None:
        super().__init__()
        self.cut = math.floor(rho * 65536 + 0.5)
        self.low = np.zeros(N, bool)
        self.had = np.zeros(N)

    def told(self, epoch: int, stream: Batches) -> None:
        super().told(epoch, stream)
        for indices, losses in stream:
            self.low[indices] = losses < losses.astype(np.float64).mean()
            self.had[indices] += 1

    def plan(self, epoch: int) -> np.ndarray:
        doubtful = self.low | (self.when != epoch - 1)
        kept = ~doubtful | (keep_draws(epoch) >= self.cut)
        weights = np.float32(epoch + 1) / (self.had + 1).astype(np.float32)
        return np.where(kept, weights, 0) if epoch else np.ones(N)


class EvenPerBatch(PerBatch):
    """The same with a random first epoch, which weighs nothing, and no weight above a cap."""

    def __init__(self, rho: float, cap: float) -> None:
        super().__init__(rho)
        self.rho, self.cap = rho, np.float32(cap)

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return (keep_draws(0) >= cut_of(self.rho / (2 - self.rho))).astype(np.float32)
        return np.minimum(super().plan(epoch), self.cap)


class Window(Restated):
    """SeTa: the window's groups by rank, of which the largest draws stay."""

    def __init__(self, ratio: float, groups: int, window: int) -> None:
        super().__init__()
        self.ratio, self.groups, self.window = Fraction(str(ratio)), groups, window

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return np.ones(N)
        first = (epoch - 1) % (self.groups - self.window + 1)
        ascending = np.sort(self.score)
        span = (first, first + self.window)
        edges = [math.ceil(Fraction((N - 1) * each, self.groups)) for each in span]
        inside = np.ones(N, bool)
        if first:
            inside &= self.score >= ascending[edges[0]]
        if first + self.window < self.groups:
            inside &= self.score < ascending[edges[1]]
        members = sorted(np.flatnonzero(inside), key=lambda i: (-keep_draws(epoch)[i], i))
        weights = np.zeros(N)
        weights[members[: math.floor(len(members) * (1 - self.ratio))]] = 1
        return weights


class EvenWindow(Window):
    """The same where nobody is never seen: of those a random share, as large as the window's."""

    def plan(self, epoch: int) -> np.ndarray:
        part = (1 - self.ratio) * Fraction(self.window, self.groups)
        if epoch == 0:
            return (keep_draws(0) >= cut_of(float(1 - part))).astype(float)
        seen = np.flatnonzero(~np.isnan(self.score))
        first = (epoch - 1) % (self.groups - self.window + 1)
        ascending = np.sort(self.score[seen])
        edge = [
            math.ceil(Fraction((len(seen) - 1) * each, self.groups))
            for each in (first, first + self.window)
        ]
        inside = [
            i
            for i in seen
            if (not first or self.score[i] >= ascending[edge[0]])
            and (first + self.window == self.groups or self.score[i] < ascending[edge[1]])
        ]
        weights = np.zeros(N)
        for members, share in ((inside, 1 - self.ratio), (sorted(set(range(N)) - set(seen)), part)):
            ranked = sorted(members, key=lambda i: (-keep_draws(epoch)[i], i))
            weights[ranked[: math.floor(len(ranked) * share)]] = 1
        return weights


class Hidden(Restated):
    """KAKURENBO: the lowest of last epoch's, if confident, fewer later on."""

    def __init__(self, fraction: float, tau: float) -> None:
        super().__init__()
        self.fraction, self.edge = Fraction(str(fraction)), -math.log(tau)

    def plan(self, epoch: int) -> np.ndarray:
        weights = np.ones(N)
        if epoch == 0:
            return weights
        steps = [(0, 10), (3, 8), (6, 6), (8, 4)]
        share = next(Fraction(part, 10) for at, part in steps[::-1] if 10 * epoch >= at * EPOCHS)
        fresh = [i for i in range(N) if self.when[i] == epoch - 1]
        lowest = sorted(fresh, key=lambda i: (self.score[i], i))
        for i in lowest[: math.floor(share * self.fraction * N)]:
            weights[i] = float(self.score[i] > np.float32(self.edge))
        return weights


class Bend(Restated):
    """IES: out while the second difference of the last three losses is small."""

    def __init__(self, threshold: float, again: int) -> None:
        super().__init__()
        self.threshold, self.again = threshold, again
        self.losses: list[list[np.float32]] = [[] for _ in range(N)]

    def told(self, epoch: int, stream: Batches) -> None:
        super().told(epoch, stream)
        for indices, losses in stream:
            for i, loss in zip(indices, losses, strict=True):
                self.losses[i].append(loss)

    def plan(self, epoch: int) -> np.ndarray:
        def mastered(seen: list[np.float32]) -> bool:
            return len(seen) >= 3 and abs(seen[-1] - 2 * seen[-2] + seen[-3]) < self.threshold

        out = np.array([mastered(seen) for seen in self.losses])
        return np.ones(N) if epoch % self.again == 0 or out.all() else 1.0 - out


class NotLearned(Restated):
    """ProgressiveDropout by tau: the probability of the label is exp(-loss)."""

    def __init__(self, tau: float, last: int) -> None:
        super().__init__()
        self.tau, self.last = tau, last

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0 or epoch >= self.last:
            return np.ones(N)
        learned = np.exp(-self.score.astype(np.float64)) >= self.tau
        return (~learned | (self.score == self.score.max())).astype(float)


class Shrinking(Restated):
    """ProgressiveDropout by gamma: the ceil(gamma^t N) largest draws."""

    def plan(self, epoch: int) -> np.ndarray:
        count = math.ceil(Fraction(9, 10) ** epoch * N)
        first = sorted(range(N), key=lambda i: (-keep_draws(epoch)[i], i))[:count]
        weights = np.zeros(N)
        weights[first] = 1
        return weights


class Aligned(Restated):
    """AlignPrune: below the mean correlation with the reference, half go and the others weigh 2."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.rows: list[np.ndarray] = []
        self.reference: list[float] = []

    def told(self, epoch: int, stream: Batches) -> None:
        super().told(epoch, stream)
        self.rows.append(self.score.astype(np.float64))
        self.reference.append(float(KnownReference(epoch).take()))

    def plan(self, epoch: int) -> np.ndarray:
        score = self.score.astype(np.float64)
        if epoch >= self.window:
            rows, reference = self.rows[-self.window :], self.reference[-self.window :]
            with np.errstate(invalid="ignore"):  # of losses that do not vary: nan, and kept
                score = np.array([np.corrcoef(own, reference)[0, 1] for own in np.array(rows).T])
        low = score < np.nanmean(score) if epoch else np.zeros(N, bool)
        return np.where(low, np.where(keep_draws(epoch) < 32768, 0, 2), 1)


class EvenAligned(Aligned):
    """The same from a quarter fewer on: who has no score, or no alignment, goes as often."""

    def plan(self, epoch: int) -> np.ndarray:
        score = self.score.astype(np.float64)
        if epoch >= self.window:
            rows, reference = self.rows[-self.window :], self.reference[-self.window :]
            with np.errstate(invalid="ignore"):
                score = np.array([np.corrcoef(own, reference)[0, 1] for own in np.array(rows).T])
        low = score < np.nanmean(score) if epoch else np.zeros(N, bool)
        weights = np.where(low, np.where(keep_draws(epoch) < 32768, 0, 2), 1)
        never = np.where(keep_draws(epoch) < 16384, 0, 65536 / 49152)
        return np.where(np.isnan(score), never, weights).astype(np.float32)


class Mean(Restated):
    """InfoBatch's ablations: drop below the mean or not below, with or without weights."""

    def __init__(self, side: str, rescale: bool) -> None:
        super().__init__()
        self.side, self.weight = side, 2.0 if rescale else 1.0

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return np.ones(N)
        low = self.score < self.score.astype(np.float64).mean()
        drawn = low if self.side == "low" else ~low
        return np.where(drawn, np.where(keep_draws(epoch) < 32768, 0, self.weight), 1)


class Fixed(Mean):
    """InfoBatch by fixed counts: of the low ones the larger half of the draws stays."""

    def plan(self, epoch: int) -> np.ndarray:
        weights = super().plan(epoch)
        low = np.flatnonzero(weights != 1) if epoch else np.zeros(0, int)
        kept = sorted(low, key=lambda i: (-keep_draws(epoch)[i], i))[: len(low) // 2]
        weights[low] = 0
        weights[kept] = 2
        return weights


class Lowest(Restated):
    """Budget: of the lowest scores a stated number goes, and the others of them make up for it."""

    def __init__(self, low: int, dropped: int) -> None:
        super().__init__()
        self.low, self.dropped = low, dropped

    def plan(self, epoch: int) -> np.ndarray:
        weights = np.ones(N)
        if epoch == 0:
            return weights
        # Who is never seen is above all; of equal ones the larger index is the lower.
        score = np.where(np.isnan(self.score), np.inf, self.score)
        low = sorted(range(N), key=lambda i: (score[i], -i))[: self.low]
        stay = sorted(low, key=lambda i: (-keep_draws(epoch)[i], i))[: self.low - self.dropped]
        weights[low] = 0
        weights[stay] = self.low / len(stay)
        return weights


class Chance(Restated):
    """RandomSubset: by the draw alone, of each epoch or of the first."""

    def __init__(self, ratio: float, *, weighs: bool, fixed: bool = False, static: bool = False):
        super().__init__()
        self.ratio, self.weighs, self.fixed, self.static = ratio, weighs, fixed, static

    def plan(self, epoch: int) -> np.ndarray:
        draws = keep_draws(0 if self.static else epoch)
        count, cut = round((1 - self.ratio) * N), math.floor(self.ratio * 65536 + 0.5)
        order = np.argsort(-draws, kind="stable")
        kept = np.isin(np.arange(N), order[:count]) if self.fixed else draws >= cut
        weight = N / count if self.fixed else 65536 / (65536 - cut)
        return np.where(kept, weight if self.weighs else 1, 0)


class Even(Mean):
    """The same begun evenly: of the never seen a quarter goes, weighed, as if half were low."""

    def plan(self, epoch: int) -> np.ndarray:
        never = np.where(keep_draws(epoch) < 16384, 0, 65536 / 49152)
        seen = ~np.isnan(self.score)
        if not seen.any():
            return never.astype(np.float32)
        low = seen & (self.score < self.score[seen].astype(np.float64).mean())
        weights = np.where(low, np.where(keep_draws(epoch) < 32768, 0, self.weight), 1)
        return np.where(seen, weights, never).astype(np.float32)


class EvenFixed(Even):
    """The same by counts: of the never seen floor(3/4) stay, for 4/3, of the low floor(1/2)."""

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return super().plan(0)
        seen = ~np.isnan(self.score)
        weights = np.ones(N, np.float32)
        low = seen & (self.score < self.score[seen].astype(np.float64).mean())
        for members, share in ((low, Fraction(1, 2)), (~seen, Fraction(3, 4))):
            ranked = sorted(np.flatnonzero(members), key=lambda i: (-keep_draws(epoch)[i], i))
            weights[ranked] = 0
            weights[ranked[: math.floor(len(ranked) * share)]] = float(1 / share)
        return weights


class Confident(Restated):
    """UCB with a coefficient: ema + c varema, anew in each epoch."""

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.ema, self.var = np.full(N, np.nan), np.zeros(N)

    def told(self, epoch: int, stream: Batches) -> None:
        for indices, losses in stream:
            wide, old = losses.astype(np.float64), self.ema[indices]
            first = np.isnan(old)
            residual = np.where(first, 0, wide - old)
            self.var[indices] = np.where(first, 0, 0.8 * self.var[indices] + 0.2 * residual**2)
            self.ema[indices] = np.where(first, wide, 0.8 * old + 0.2 * wide)

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return np.ones(N)
        bound = self.ema + self.coefficient * self.var
        weights = np.zeros(N)
        weights[np.argsort(-bound, kind="stable")[: N * 4 // 10]] = 1
        return weights


LABELS = [(i * i) % 3 for i in range(N)]  # of 34, 66 and none


class Classes(Restated):
    """RCAP: a share of each class by sqrt(mean loss times size), a race within it."""

    def __init__(self, keep: float, beta: float) -> None:
        super().__init__()
        self.keep, self.beta = keep, beta

    def plan(self, epoch: int) -> np.ndarray:
        weights = np.ones(N)
        if epoch == 0:
            return weights
        most = math.log(2)
        level = np.rint(np.clip(self.score, 0, np.float32(most)) * np.float32(255 / most))
        chance = np.exp(level * most / 255 / self.beta)
        drawn = stream_draws(epoch, 2**27 + 2) >> 16
        time = -np.log((drawn + 0.5) / 65536) / chance
        members = {c: [i for i in range(N) if LABELS[i] == c] for c in (0, 1)}
        wide = self.score.astype(np.float64)
        root = {c: math.sqrt(wide[m].mean() * len(m)) for c, m in members.items()}
        wanted = math.floor(Fraction(str(self.keep)) * N)
        share = {c: wanted * root[c] / sum(root.values()) for c in members}
        count = {c: math.floor(share[c]) for c in members}
        if sum(count.values()) < wanted:
            count[max(members, key=lambda c: share[c] - count[c])] += 1
        weights[:] = 0
        for c, own in members.items():
            weights[sorted(own, key=lambda i: time[i])[: count[c]]] = 1
        return weights


class EvenClasses(Classes):
    """The same from a random half on: the never seen have the mean loss of their class."""

    def plan(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return (keep_draws(0) >= cut_of(1 - self.keep)).astype(float)
        last, labels = self.score, np.array(LABELS)
        means = [np.nanmean(last[labels == c].astype(np.float64)) for c in (0, 1)]
        self.score = np.where(np.isnan(last), np.float32(means)[labels], last)
        weights = super().plan(epoch)
        self.score = last
        return weights


CASES: dict[str, tuple[pe.policies.Policy, Callable[[], Restated], Callable[[], Restated]]] = {
    # The policy, its restatement, and one that is wrong.
    "OrderDP": (OrderDP(0.3, 0.5), lambda: Largest(0.3, 0.5), lambda: Largest(0.3, 0.6)),
    "Proportional": (
        Proportional(0.6, floor=0.25, delta=1.0),
        lambda: Inclusion(0.6, 0.25),
        lambda: Inclusion(0.6, 0.5),
    ),
    "even Proportional, capped": (
        Proportional(0.6, floor=0.25, delta=1.0, first_epoch="even", weight_cap=2.3),
        lambda: Inclusion(0.6, 0.25, 2.3, even=True),
        lambda: Inclusion(0.6, 0.25, even=True),
    ),
    "RS2": (RS2(0.3), lambda: Chunks(0.3), lambda: Chunks(0.4)),
    "RePB": (RePB(0.7), lambda: PerBatch(0.7), lambda: PerBatch(0.6)),
    "even RePB, capped": (
        RePB(0.7, first_epoch="even", weight_cap=2.5),
        lambda: EvenPerBatch(0.7, 2.5),
        lambda: EvenPerBatch(0.7, 3.5),
    ),
    "SeTa": (
        SeTa(0.25, groups=5, window=2, delta=1.0),
        lambda: Window(0.25, 5, 2),
        lambda: Window(0.25, 5, 3),
    ),
    "KAKURENBO": (KAKURENBO(0.3, 0.6), lambda: Hidden(0.3, 0.6), lambda: Hidden(0.3, 0.9)),
    "IES": (IES(0.4, again=7), lambda: Bend(0.4, 7), lambda: Bend(0.8, 7)),
    "dropout": (
        ProgressiveDropout(tau=0.5, revision=0.75),
        lambda: NotLearned(0.5, 9),
        lambda: NotLearned(0.5, 8),
    ),
    "random dropout": (
        ProgressiveDropout(tau=None, gamma=0.9, revision=1.0),
        Shrinking,
        Restated,
    ),
    "AlignPrune": (AlignPrune(0.5, delta=1.0, window=4), lambda: Aligned(4), lambda: Aligned(5)),
    "InfoBatch": (
        InfoBatch(0.5, delta=1.0),
        lambda: Mean("low", True),
        lambda: Fixed("low", True),
    ),
    "fixed InfoBatch": (
        InfoBatch(0.5, delta=1.0, sampling="fixed"),
        lambda: Fixed("low", True),
        lambda: Mean("low", True),
    ),
    "Budget": (
        pe.Budget(0.4, delta=1.0),
        lambda: Lowest(80, 40),
        lambda: Lowest(90, 40),
    ),
    "RandomSubset": (
        pe.RandomSubset(0.3, rescale=True),
        lambda: Chance(0.3, weighs=True),
        lambda: Chance(0.3, weighs=False),
    ),
    "fixed RandomSubset": (
        pe.RandomSubset(0.6, rescale=True, sampling="fixed"),
        lambda: Chance(0.6, weighs=True, fixed=True),
        lambda: Chance(0.6, weighs=True),
    ),
    "static RandomSubset": (
        pe.RandomSubset(0.4, static=True),
        lambda: Chance(0.4, weighs=False, static=True),
        lambda: Chance(0.4, weighs=False),
    ),
    "high": (
        InfoBatch(0.5, delta=1.0, side="high"),
        lambda: Mean("high", True),
        lambda: Mean("low", True),
    ),
    "no weights": (
        InfoBatch(0.5, delta=1.0, rescale=False),
        lambda: Mean("low", False),
        lambda: Mean("low", True),
    ),
    "even": (
        InfoBatch(0.5, delta=1.0, first_epoch="even"),
        lambda: Even("low", True),
        lambda: Mean("low", True),
    ),
    "even fixed InfoBatch": (
        InfoBatch(0.5, delta=1.0, sampling="fixed", first_epoch="even"),
        lambda: EvenFixed("low", True),
        lambda: Even("low", True),
    ),
    "even SeTa": (
        SeTa(0.25, groups=5, window=2, delta=1.0, first_epoch="even"),
        lambda: EvenWindow(0.25, 5, 2),
        lambda: Window(0.25, 5, 2),
    ),
    "even AlignPrune": (
        AlignPrune(0.5, delta=1.0, window=4, first_epoch="even"),
        lambda: EvenAligned(4),
        lambda: Aligned(4),
    ),
    "even RCAP": (
        RCAP(PerSample(LABELS), keep=0.5, beta=0.5, first_epoch="even"),
        lambda: EvenClasses(0.5, 0.5),
        lambda: EvenClasses(0.5, 2.0),
    ),
    "coefficient": (
        UCB(0.4, period=1, coefficient=3.0),
        lambda: Confident(3.0),
        lambda: Confident(1.0),
    ),
    "RCAP": (
        RCAP(PerSample(LABELS), keep=0.5, beta=0.5),
        lambda: Classes(0.5, 0.5),
        lambda: Classes(0.5, 2.0),
    ),
}


def made(policy: pe.policies.Policy, **options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(N, policy, num_epochs=EPOCHS, seed=SEED, **options)


def agreements(policy: pe.policies.Policy, restated: Restated, backend: str) -> list[bool]:
    """Return for each epoch whether both give every sample the same weight."""
    engine, found = made(policy, backend=backend), []
    for epoch in engine.epochs():
        want = restated.plan(epoch).astype(np.float32)
        found.append(bool((engine.plan.weights.numpy() == want).all()))
        stream = list(batches(engine.sampler(), 10))
        restated.told(
            epoch, [(np.array(batch), losses_at(batch, epoch).numpy()) for batch in stream]
        )
        serve(engine)
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_decision_is_the_restatements(name, backend):
    policy, right, wrong = CASES[name]
    assert agreements(policy, right(), backend) == [True] * EPOCHS
    assert not all(agreements(policy, wrong(), backend)), "control"


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_keep_the_same_samples(name):
    policy, world = CASES[name][0], Ranks(2)

    def work(rank: int) -> list[Any]:
        engine = made(policy)
        plans = []
        for _ in range(5):
            serve(engine, align=20)
            engine.end_epoch()
            plans.append((engine.plan.kept.tolist(), engine.plan.weights.tolist()))
        return plans

    first, second = world.run(work)
    assert first == second
    assert any(len(kept) < N for kept, _ in first)


def lowest_third(epoch: int, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = scores.argsort()[: N // 3]
    return chosen, torch.full((len(chosen),), 1.0 + epoch)


STOPPED: dict[str, pe.policies.Policy] = {
    # Those that are not in the table, whose conformance has this, and more of those that remember.
    name: CASES[name][0]
    for name in (
        *("RePB", "even RePB, capped", "AlignPrune", "even AlignPrune", "IES", "RCAP"),
        *("Proportional", "even Proportional, capped", "even", "even fixed InfoBatch"),
    )
}
STOPPED |= {
    "Subset": Subset([5, 90, 7, 31, *range(40, 80)], [1.5, 0.25, 3.0, 1.0] * 11),
    "Reselect": Reselect(lowest_third, every=4, start=2),
}


def later(engine: pe.PruneEngine) -> list[float]:
    """Train what is left of an epoch; return the weights of the next."""
    serve(engine, 5)
    engine.end_epoch()
    return engine.plan.weights.tolist()


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("at", [0, 15])
def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_as_before(name, at):
    whole, stopped, resumed = (made(STOPPED[name]) for _ in range(3))
    for engine in (whole, stopped):
        for _ in range(5):
            serve(engine)
            engine.end_epoch()
    for batch in list(batches(iter(list(stopped.sampler())[:at]), 5)):
        observe(stopped, batch)
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    assert resumed.cursor == at
    want, got = ([later(engine) for _ in range(4)] for engine in (whole, resumed))
    assert got == want
    fresh = made(STOPPED[name])
    for _ in range(9):
        serve(fresh, 7)
        fresh.end_epoch()
    if name == "RePB":
        assert whole.plan.weights.tolist() != fresh.plan.weights.tolist(), "control: other batches"


# --- what a policy of its own data does ---------------------------------------------------------


def rewards(indices: list[int], epoch: int) -> torch.Tensor:
    """Return four rewards of each prompt: some always right or wrong, others now and then."""
    rows = []
    for i in indices:
        kind = i % 4
        alike = 1.0 if kind == 0 else 0.0
        rows.append([alike] * 4 if kind < 2 or (i + epoch) % 3 == 0 else [0.0, 1.0, 0.0, 1.0])
    return torch.tensor(rows)


def test_zero_variance_is_the_restatements(backend):
    policy = ZeroVariance(start=0.5, explore=0.1, target=0.3)
    engine = made(policy, backend=backend)
    streak, easy, chance = np.zeros(N, int), np.zeros(N, int), [Fraction(1, 2), Fraction(1, 2)]
    skipped = 0
    for epoch in engine.epochs():
        visit = [max(chance[1 - easy[i]] ** int(streak[i]), Fraction(1, 10)) for i in range(N)]
        cuts = np.array([min(65535, round(65536 * (1 - v))) for v in visit])
        kept = (stream_draws(epoch, 2**27 + 1) >> 16) >= cuts if epoch else np.ones(N, bool)
        assert engine.plan.kept.tolist() == np.flatnonzero(kept).tolist()
        skipped += N - int(kept.sum())
        for batch in list(batches(engine.sampler(), 10)):
            spread = pe.losses.scores.reward_spread(rewards(batch, epoch))
            engine.observe(torch.ones(len(batch)), torch.tensor(batch), score=spread)
        visited = [i for i in range(N) if kept[i]]
        rows = rewards(visited, epoch).tolist()
        alike = {i: len(set(row)) == 1 for i, row in zip(visited, rows, strict=True)}
        for i in visited:
            streak[i] = streak[i] + 1 if alike[i] else 0
            easy[i] = int(alike[i] and rewards([i], epoch)[0, 0] == 1)
        counts = [sum(easy[i] for i in visited), sum(alike[i] and not easy[i] for i in visited)]
        for kind, part in enumerate((Fraction(1, 3), Fraction(2, 3))):
            step = -1 if counts[kind] > Fraction(3, 10) * part * len(visited) else 1
            moved = chance[kind] + Fraction(step, 100)
            chance[kind] = min(Fraction(95, 100), max(Fraction(5, 100), moved))
    assert skipped > N, "control: something was skipped"


def test_a_streak_is_saved_in_the_middle_of_an_epoch():
    def run(engine: pe.PruneEngine, count: int) -> None:
        for batch in list(batches(iter(list(engine.sampler())[: 10 * count]), 10)):
            spread = pe.losses.scores.reward_spread(rewards(batch, engine.epoch))
            engine.observe(torch.ones(len(batch)), torch.tensor(batch), score=spread)

    policy = ZeroVariance()
    engine = made(policy)
    for _ in range(4):
        run(engine, N)
        engine.end_epoch()
    run(engine, 2)
    resumed = made(policy)
    resumed.load_state_dict(through_disk(engine.state_dict()))
    for each in (engine, resumed):
        run(each, N)
        each.end_epoch()
    assert engine.plan.kept.tolist() == resumed.plan.kept.tolist()
    assert engine.plan.num_kept < N


@pytest.mark.parametrize("start", [0.004, 0.5, 0.97, 0.999])
def test_a_chance_of_the_beginning_is_saved_too(start):
    """The first chance may lie outside of the bounds that later ones move within."""
    policy = ZeroVariance(start=start)
    engine, resumed = made(policy), made(policy)
    saved = through_disk(engine.state_dict())
    resumed.load_state_dict(saved)
    assert resumed.memory.chances == engine.memory.chances == [round(100 * start)] * 2
    saved["memory"]["chance_hard"] = 101
    with pytest.raises(pe.StateMismatchError, match="chance_hard"):
        resumed.load_state_dict(saved)


def test_marks_are_made_in_place_and_of_the_epoch_that_the_device_knows():
    """A step that was recorded once and is replayed, as a captured graph is, marks its batches."""
    policy = RePB(rho=0.7)
    engine, replayed = made(policy), made(policy)
    memory = replayed.memory
    address = memory.marks.data_ptr()

    def step(indices, score):
        memory.after_record(indices, score, score, pe.policies.Extras())
        return score

    graph = make_fx(step)(torch.tensor([-1, -1]), torch.tensor([1.0, 3.0]))  # marks nobody
    for epoch in range(4):
        assert engine.plan.kept.tolist() == replayed.plan.kept.tolist()
        for batch in batches(engine.sampler(), 10):
            observe(engine, batch)
        for batch in batches(replayed.sampler(), 10):
            indices, losses = torch.tensor(batch), losses_at(batch, epoch)
            replayed.buffer.observe(losses, indices)
            graph(indices, losses)
            replayed.consume(len(batch))
        assert memory.marks.data_ptr() == address
        engine.end_epoch()
        replayed.end_epoch()
    assert engine.plan.num_kept < N, "control: marks decide"


@pytest.mark.parametrize("horizon", [0.0, 0.5])
def test_repb_decided_ahead_goes_by_the_last_epoch_that_has_ended(horizon):
    engine = pe.PruneEngine(N, RePB(rho=0.7), num_epochs=6, mode="flow", horizon=horizon, seed=SEED)
    plans: list[torch.Tensor] = []
    high: list[set[int]] = []
    while not engine.done:
        for batch in batches(engine.sampler(align=10), 10):
            losses = losses_at(batch, 0)
            engine.observe(losses, torch.tensor(batch))
            if not engine.done and engine.epoch == len(plans):
                plans.append(engine.plan.weights)
                high.append(set())
            least = losses.double().mean()
            high[-1] |= {i for i, loss in zip(batch, losses.double(), strict=True) if loss >= least}
    kept = [set(weights.nonzero()[:, 0].tolist()) for weights in plans]
    assert [len(each) for each in kept[:2]] == [N, N], "nothing had ended when they were decided"
    epochs_that_had = np.zeros(N)
    for epoch, weights in enumerate(plans):
        epochs_that_had += weights.numpy() > 0
        want = np.where(weights.numpy() > 0, (epoch + 1) / epochs_that_had, 0.0)
        assert weights.tolist() == want.astype(np.float32).tolist()
    for epoch in range(2, 6):
        assert high[epoch - 2] <= kept[epoch]
        assert len(kept[epoch]) < 0.8 * N, "control: of the low ones some are dropped"


def test_a_subset_brings_its_weights():
    indices, weights = [5, 90, 7], [1.5, 0.25, 3.0]
    engine = made(Subset(indices, weights))
    want = np.zeros(N, np.float32)
    want[indices] = weights
    assert engine.plan.weights.tolist() == want.tolist()
    assert sorted(engine.sampler()) == sorted(indices)
    assert made(Subset(torch.tensor(indices))).plan.weights.sum() == 3
    other = made(Subset(indices, [1.5, 0.25, 2.0]))
    with pytest.raises(pe.StateMismatchError, match="policy"):
        other.load_state_dict(engine.state_dict())
    made(Subset(np.array(indices), torch.tensor(weights))).load_state_dict(engine.state_dict())


def test_more_weights_than_classes_are_rounded_within_a_part_and_keep_their_sum():
    generator = np.random.default_rng(3)
    weights = generator.integers(1, 600, 3000).astype(np.float32)  # as CRAIG's counts
    engine = pe.PruneEngine(3000, Subset(np.arange(3000), weights), num_epochs=2)
    got = engine.plan.weights.double().numpy()
    assert len(set(got.tolist())) <= 254 < len(set(weights.tolist()))
    assert np.abs(got / weights - 1).max() < 0.034
    assert got.sum() == pytest.approx(weights.sum(), rel=1e-6)
    few = pe.PruneEngine(250, Subset(np.arange(250), np.arange(1, 251)), num_epochs=2)
    assert few.plan.weights.tolist() == list(map(float, range(1, 251))), "control: few are exact"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0, 0],), "indices must be distinct"),
        (([-1],), "indices must be integers in 0"),
        (([0.5],), "indices must be integers"),
        (([0, 1], [1.0]), "weights must be 2"),
        (([0], [0.0]), "weights must be above 0"),
        (([0], [math.nan]), "finite"),
        (([[0]],), "must be a vector"),
    ],
)
def test_a_subset_that_does_not_fit_is_refused_when_it_is_made(arguments, match):
    with pytest.raises(ValueError, match=match):
        Subset(*arguments)


def test_a_subset_of_another_data_set_is_refused_at_the_first_plan():
    with pytest.raises(ValueError, match=r"indices must be integers in 0\.\.99, got 100"):
        made(Subset([100]))


def test_a_subset_is_chosen_anew_every_r_epochs_and_resumes():
    engine = made(Reselect(lowest_third, every=3, start=2))
    kept, weights = [], []
    for epoch in engine.epochs():
        if epoch == 6:
            for batch in list(batches(iter(list(engine.sampler())[:10]), 5)):
                observe(engine, batch)
            resumed = made(Reselect(lowest_third, every=3, start=2))
            resumed.load_state_dict(through_disk(engine.state_dict()))
            assert resumed.plan.weights.tolist() == engine.plan.weights.tolist()
        kept.append(tuple(engine.plan.kept.tolist()))
        weights.append(float(engine.plan.weights.max()))
        serve(engine)
    assert [len(each) for each in kept] == [100, 100] + [33] * 10
    assert weights == [1, 1, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12]
    assert kept[2] == kept[4]


def test_ranks_that_choose_other_subsets_are_told():
    world = Ranks(2)

    def work(rank: int) -> None:
        def choose(epoch, scores):
            return [rank], None

        engine = made(Reselect(choose))
        serve(engine, align=20)
        engine.end_epoch()

    with pytest.raises(ValueError, match="the same subset on every rank"):
        world.run(work)


def test_alignment_without_a_reference_is_refused_before_the_first_batch():
    engine = made(AlignPrune())
    with pytest.raises(RuntimeError, match="clean reference"):
        engine.observe(torch.ones(1), torch.tensor([0]))
    engine.attach(pe.policies.CleanReference(lambda batch: batch.mean(), [torch.ones(3)]))
    engine.observe(torch.ones(1), torch.tensor([0]))
    assert engine.steps == 1


# --- what every score rule gets -----------------------------------------------------------------


def test_warm_up_epochs_are_full():
    counts, none, rare = [], [], []
    for policy, found in (
        (pe.Budget(0.4, delta=1.0, warmup=3), counts),
        (Proportional(0.6, delta=1.0, warmup=3), none),
        (RePB(0.7, warmup=3), rare),
    ):
        engine = made(policy)
        for _ in engine.epochs():
            found.append(engine.plan.num_kept)
            serve(engine)
    assert counts == [N] * 3 + [60] * 9
    for found in (none, rare):
        assert found[:3] == [N] * 3
        assert max(found[3:]) < N


def test_no_sample_weighs_more_than_the_cap():
    heavy, capped = (made(pe.Budget(0.7, 0.72, weight_cap=cap)) for cap in (None, 2.0))
    for engine in (heavy, capped):
        serve(engine)
        engine.end_epoch()
    assert heavy.plan.weights.max() > 3
    assert capped.plan.weights.max() == 2
    assert heavy.plan.kept.tolist() == capped.plan.kept.tolist(), "the same samples"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("first_epoch", "odd", ValueError),
        ("warmup", -1, ValueError),
        ("warmup", 0.5, TypeError),
        ("weight_cap", 0.5, ValueError),
        ("weight_cap", math.inf, ValueError),
        ("weight_cap", "3", TypeError),
    ],
)
def test_a_beginning_out_of_range_is_refused(field, value, error):
    made_of: list[Callable[..., pe.policies.Policy]] = [
        kind for kind in pe.policies.TABLE.values() if issubclass(kind, pe.policies.ScoreRule)
    ]
    made_of += [AlignPrune, ZeroVariance, partial(RCAP, PerSample(LABELS))]
    for make in made_of:
        with pytest.raises(error, match=rf"{field} must be .*got"):
            make(**{field: value})
    with pytest.raises(ValueError, match="warmup must be 0 where first_epoch is 'even'"):
        InfoBatch(first_epoch="even", warmup=1)


def test_a_state_of_before_these_parameters_still_fits():
    """A parameter that came later is not described where it has its default."""
    assert InfoBatch().describe() == {
        "policy": "InfoBatch",
        "prune_ratio": 0.5,
        "delta": 0.875,
        "sampling": "bernoulli",
    }
    assert InfoBatch(warmup=2).describe()["warmup"] == 2


def test_a_period_longer_than_the_run_is_said():
    with pytest.warns(UserWarning, match="period=10 is longer than the run of 4 epochs"):
        pe.PruneEngine(N, UCB(), num_epochs=4)
    pe.PruneEngine(N, UCB(), num_epochs=10)  # control: no warning, which would be an error


# --- states that were edited, and scores that are divided ----------------------------------------


def set_entry(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(memory: dict[str, Any]) -> None:
        memory[name] = value

    return edit


def put(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def edit(memory: dict[str, Any]) -> None:
        memory[name] = memory[name].clone()
        memory[name].flatten()[0] = value

    return edit


EDITS: list[tuple[pe.policies.Policy, Callable[[dict[str, Any]], None], str]] = [
    (RePB(), put("marks", -1), "memory.marks"),
    (RePB(), put("settled", 99 << 8), "memory.settled"),
    (RePB(), put("missed", 200), "memory.missed: expected at most 2 epochs, got 200"),
    (RePB(), set_entry("missed", torch.zeros(3, dtype=torch.uint8)), "memory.missed"),
    (RePB(), set_entry("epoch", -1), "memory.epoch"),
    (IES(), put("mastered", 2), "memory.mastered"),
    (IES(), set_entry("before", torch.zeros(N, dtype=torch.float64)), "memory.before"),
    (AlignPrune(window=3), set_entry("filled", 4), "memory.filled"),
    (AlignPrune(window=3), set_entry("ring", torch.zeros(2, N)), "memory.ring"),
    (ZeroVariance(), set_entry("chance_easy", 96), "memory.chance_easy"),
    (ZeroVariance(), put("easy", 2), "memory.easy"),
    (Reselect(lowest_third), put("chosen", 9), "memory.chosen"),
    (Reselect(lowest_third), put("table", 0.5), "memory.table"),
    (Reselect(lowest_third), set_entry("decided", 2), "memory.decided"),
]


@pytest.mark.parametrize(("policy", "edit", "words"), EDITS, ids=range(len(EDITS)))
def test_an_edited_memory_is_refused_and_changes_nothing(policy, edit, words):
    engine, other = made(policy), made(policy)
    for each in (engine, other):
        for _ in range(2):
            serve(each)
            each.end_epoch()
    state = engine.state_dict()
    before = other.state_dict()
    edit(state["memory"])
    with pytest.raises(pe.StateMismatchError, match=words):
        other.load_state_dict(state)
    assert through_disk(other.state_dict())["memory"].keys() == before["memory"].keys()
    assert other.plan.kept.tolist() == engine.plan.kept.tolist()
    other.load_state_dict(engine.state_dict())  # control: unedited it fits


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name][0].divisible])
def test_scores_that_must_be_whole_are_not_divided(name):
    with pytest.raises(ValueError, match="where the scores are divided"):
        made(CASES[name][0], shard_scores=True)


@pytest.mark.parametrize("name", ["RePB", "IES", "AlignPrune", "OrderDP", "RS2", "KAKURENBO"])
def test_a_data_set_that_grows_is_followed(name):
    engine = made(CASES[name][0])
    for _ in range(5):
        serve(engine)
        engine.end_epoch()
    engine.resize(N + 7)
    assert engine.plan.weights.shape == (N + 7,)
    for _ in range(2):
        serve(engine)
        engine.end_epoch()
    assert engine.plan.num_kept > 0
    engine.resize(N - 5)
    assert engine.plan.weights.shape == (N - 5,)
    serve(engine)
