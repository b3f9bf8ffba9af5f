# SPDX-License-Identifier: Apache-2.0
"""Schedules of B-PAS that are known on the host: the published delta, and a budget of batches."""

from __future__ import annotations

import math


def delta_at(epoch: int, num_epochs: int, start: float, end: float) -> float:
    """Return the threshold of an epoch: from ``start`` to ``end``, in equal factors.

    ``delta_i = delta_start * exp(i / I * ln(delta_end / delta_start))`` (B-PAS, ICLR 2026).

    Args:
        epoch: i, in 1..I: 1-based, as published.
        num_epochs: I.
        start: positive.
        end: positive.

    Returns:
        delta_i.

    Example:
        >>> round(delta_at(5, 10, 1e-6, 1e-4), 12), delta_at(10, 10, 0.5, 2.0)
        (1e-05, 2.0)
    """
    return start * math.exp(epoch / num_epochs * math.log(end / start))


def planned_count(
    start: int, done: int, spent: int, now: int, total: int, dsi: float, least: int
) -> int:
    """Return how many batches the next epoch keeps so that a run saves a share of its data.

    ``DSI = 1 - sum_i n_i / (I n_1)``. From now on the number falls by a constant c per epoch,
    ``n_{i+k} = max(least, n_i - c k)``, with the smallest c that stays within what is left of the
    budget; every epoch solves it anew, so ties and rounding do not add up.

    Args:
        start: n_1.
        done: i, epochs that ended.
        spent: sum of n_1..n_i.
        now: n_i.
        total: I.
        dsi: the wanted share, in [0, 1).
        least: never below this, while it can be.

    Returns:
        n_{i+1}, in 0..now.

    Example:
        >>> planned_count(start=100, done=2, spent=200, now=100, total=10, dsi=0.36, least=0)
        90
    """
    left = total - done
    if left <= 0:
        return now
    budget = (1.0 - dsi) * total * start - spent

    def cost(fall: float) -> float:
        return sum(max(float(least), now - fall * k) for k in range(1, left + 1))

    low, high = 0.0, float(now)
    if cost(low) <= budget:
        return now
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= budget else (middle, high)
    # Rounded up: what was dropped too early cannot come back, what stays too long can still go.
    return min(now, max(min(least, now), math.ceil(now - high - 1e-9)))
