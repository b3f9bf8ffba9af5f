# SPDX-License-Identifier: Apache-2.0
"""Each method's formula once more, in the plainest way: dense gradients, loops, no shortcuts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
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
