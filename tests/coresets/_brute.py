# SPDX-License-Identifier: Apache-2.0
"""Each method's formula once more, in the plainest way: dense gradients, loops, no shortcuts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from _data import Data
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def gradients(data: Data) -> Array:
    """Return d nll / d (W, b) of each sample, dense, [n, C (d + 1)]."""
    p, h = softmax(data.logits.numpy()), data.features.numpy()
    rows = []
    for i, label in enumerate(data.targets.tolist()):
        error = p[i].copy()
        error[label] -= 1
        rows.append(np.outer(error, np.append(h[i], 1.0)).ravel())
    return np.array(rows)


def cosines(vectors: Array) -> Array:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return 0.5 + 0.5 * unit @ unit.T


def distances(vectors: Array) -> Array:
    return np.array([[np.linalg.norm(a - b) for b in vectors] for a in vectors])


def divergence(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def greedy(n: int, k: int, value: Callable[[list[int]], float], start: list[int]) -> list[int]:
    """Add k - len(start) times the sample with which the value is largest."""
    found = list(start)
    while len(found) < k:
        rest = [j for j in range(n) if j not in found]
        found.append(max(rest, key=lambda j: (value([*found, j]), -j)))
    return found


def is_greedy(found: list[int], n: int, value: Callable[[list[int]], float]) -> bool:
    """Say whether each choice was one of the best; several may be, and rounding settles which."""
    for t in range(len(found)):
        before = found[:t]
        best = max(value([*before, j]) for j in range(n) if j not in before)
        if value(found[: t + 1]) < best - 1e-9 * max(1.0, abs(best)):
            return False
    return True


def herding(features: Array, k: int, sign: float = -1.0) -> list[int]:
    """Bring the mean of the chosen nearest to the mean, or with sign 1 farthest."""
    mean = features.mean(axis=0)

    def value(chosen: list[int]) -> float:
        return sign * float(np.linalg.norm(len(chosen) * mean - features[chosen].sum(axis=0)))

    return greedy(len(features), k, value, [])


def traversal(between: Array, k: int, first: int) -> list[int]:
    return greedy(
        len(between), k, lambda chosen: float(between[chosen[-1], chosen[:-1]].min()), [first]
    )


def graph_cut(s: Array, a: float, b: float) -> Callable[[list[int]], float]:
    return lambda chosen: float(a * s[:, chosen].sum() - b * s[np.ix_(chosen, chosen)].sum())


def facility(s: Array) -> Callable[[list[int]], float]:
    return lambda chosen: float(s[:, chosen].max(axis=1).sum())


def kronecker(data: Data, lam: float) -> Array:
    """Return H^-1 g_i of each sample with the dense matrix of C (d + 1) rows."""
    p, h = softmax(data.logits.numpy()), data.features.numpy()
    h = np.hstack([h, np.ones((len(h), 1))])
    a = np.mean([np.outer(x, x) for x in h], axis=0) + lam * np.eye(h.shape[1])
    b = np.mean([np.diag(q) - np.outer(q, q) for q in p], axis=0) + lam * np.eye(p.shape[1])
    return np.linalg.solve(np.kron(b, a), gradients(data).T).T


def nonnegative(columns: Array, target: Array, lam: float) -> Array:
    """Return argmin_{w >= 0} |columns w - target|^2 + lam |w|^2, by trying every active set."""
    k = columns.shape[1]
    best, least = np.zeros(k), np.inf
    for mask in range(2**k):
        active = [j for j in range(k) if mask >> j & 1]
        w = np.zeros(k)
        if active:
            part = columns[:, active]
            w[active] = np.linalg.solve(part.T @ part + lam * np.eye(len(active)), part.T @ target)
        value = np.sum((columns @ w - target) ** 2) + lam * np.sum(w**2)
        if (w >= 0).all() and value < least:
            best, least = w, value
    return best


def pursuit(g: Array, k: int, lam: float, target: Array | None = None) -> tuple[list[int], Array]:
    """Match the sum of all, or another target, by one more gradient at a time."""
    total = g.sum(axis=0) if target is None else target
    found, residual, weights = [], total, np.zeros(0)
    for _ in range(k):
        match = g @ residual
        match[found] = -np.inf
        found.append(int(match.argmax()))
        weights = nonnegative(g[found].T, total, lam)
        residual = total - g[found].T @ weights
    return found, weights


def glister(
    g: Array, judges: Data, k: int, lr: float, rounds: int, share: float = 1.0
) -> list[int]:
    """Take the largest gains in the judges' loss, after steps of lr times the share of the sum."""
    classes = judges.logits.shape[1]
    theta = np.zeros(g.shape[1])
    h = np.hstack([judges.features.numpy(), np.ones((len(judges.targets), 1))])
    found: list[int] = []
    for turn in range(rounds):
        z = judges.logits.numpy() + h @ theta.reshape(classes, -1).T
        moved = judges._replace(logits=torch.from_numpy(z))
        gain = g @ gradients(moved).mean(axis=0)
        gain[found] = -np.inf
        count = k * (turn + 1) // rounds - k * turn // rounds
        fresh = np.argsort(-gain, kind="stable")[:count].tolist()
        found += fresh
        theta = theta - lr * share * g[fresh].sum(axis=0)
    return found


def contrast(features: Array, p: Array, neighbours: int) -> list[float]:
    """Return the mean KL(p_j || p_i) over each sample's nearest others."""
    found = []
    for i in range(len(p)):
        far = [(np.linalg.norm(features[i] - features[j]), j) for j in range(len(p)) if j != i]
        near = [j for _, j in sorted(far)[:neighbours]]
        found.append(float(np.mean([divergence(p[j], p[i]) for j in near])))
    return found


def bins(features: Array, sizes: list[int], stale: bool = False) -> list[list[int]]:
    """Part samples into graph cuts of what is left; stale: by the sums over all, as at first."""
    s = cosines(features)
    left, found = list(range(len(features))), []
    for size in sizes[:-1]:
        counted = list(range(len(features))) if stale else left

        def value(chosen: list[int], counted: list[int] = counted) -> float:
            return float(s[np.ix_(counted, chosen)].sum() - s[np.ix_(chosen, chosen)].sum())

        places = greedy(len(left), size, lambda c, left=left: value([left[j] for j in c]), [])
        found.append([left[j] for j in places])
        left = [i for i in left if i not in found[-1]]
    return [*found, left]


def strata(scores: Array, k: int, beta: float, count: int) -> dict[int, int]:
    """Return how many of each stratum of CCS."""
    kept = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = kept[int(beta * len(scores)) :]
    values = [scores[i] for i in kept]
    low, width = min(values), (max(values) - min(values)) / count
    sizes: dict[int, int] = {}
    for value in values:
        place = min(count - 1, int((value - low) / width)) if width else 0
        sizes[place] = sizes.get(place, 0) + 1
    given, left = {}, k
    for number, place in enumerate(sorted(sizes, key=lambda place: (sizes[place], place))):
        given[place] = min(sizes[place], left // (len(sizes) - number))
        left -= given[place]
    return given
