# SPDX-License-Identifier: Apache-2.0
"""How many of each part, so that they add up."""

from __future__ import annotations

from collections.abc import Sequence


def quotas(sizes: Sequence[int], k: int) -> list[int]:
    """Share k among parts in proportion to their sizes, exactly.

    Each part has the whole of ``k n_c / N``; what is missing goes to the largest remainders, ties
    to the first (Hamilton's method), in integers.

    Args:
        sizes: n_c of each part.
        k: in 0..N.

    Returns:
        k_c of each part, at most its size; they add up to k.

    Example:
        >>> quotas([5, 3, 2], 4)
        [2, 1, 1]
    """
    total = sum(sizes)
    if not total:
        return [0] * len(sizes)
    whole = [k * size // total for size in sizes]
    by_rest = sorted(range(len(sizes)), key=lambda c: (-(k * sizes[c] % total), c))
    for c in by_rest[: k - sum(whole)]:
        whole[c] += 1
    return whole
