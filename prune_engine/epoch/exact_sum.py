# SPDX-License-Identifier: Apache-2.0
"""The exact sum of scores as Python's integers, which no number of samples overflows."""

from __future__ import annotations

from collections.abc import Sequence

from prune_engine.bands import LIMBS

_UNIT = 149  # a unit is 2^-149: every finite float32 is a whole number of them
_MASK32 = 0xFFFFFFFF


def sum_in_units(score_sum: Sequence[int]) -> int:
    """Return the exact sum of a ``score_sum``, in units of 2^-149."""
    return sum(limb << (32 * j) for j, limb in enumerate(score_sum[:LIMBS]))


def exact_mean(units: int, seen: int) -> float:
    """Return the float64 nearest to a sum over its number of scores, nan where there is none."""
    return units / (seen << _UNIT) if seen else float("nan")  # rounded once, ties to even


def mean_as_sum(units: int, seen: int) -> list[int]:
    """Return a ``score_sum`` of one sample with the mean threshold of a sum of any size.

    Its value is the mean in units, rounded up: a float32 is a whole number of units, so it reaches
    the one exactly where it reaches the other (SEMANTICS 3.2), and the limbs of more than 2^31
    samples would overflow int64.

    Args:
        units: the exact sum of the scores, in units of 2^-149.
        seen: how many there are.

    Returns:
        Nine limbs, and 1; zeros where nothing is seen.

    Example:
        >>> mean_as_sum(3 << 149, 2)
        [0, 0, 0, 0, 3145728, 0, 0, 0, 0, 1]
    """
    mean = -(-units // seen) if seen else 0
    low = [mean >> (32 * j) & _MASK32 for j in range(LIMBS - 1)]
    return [*low, mean >> (32 * (LIMBS - 1)), min(seen, 1)]
