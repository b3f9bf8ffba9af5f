# SPDX-License-Identifier: Apache-2.0
"""Ranks without sorting: percentiles, the k-th smallest, the k largest. Part of ``ops``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import MAX_SAMPLES, decimal_fraction
from prune_engine.ops.checks import check_int, check_values
from prune_engine.plain import plain

MAX_RANKS = 5  # of one call of the operator: the thresholds of a rule
MAX_DEN = 2**31 - 1


def select(
    values: Tensor,
    offsets: Sequence[int],
    shares: Sequence[int],
    den: int,
    *,
    backend: str = "auto",
) -> Tensor:
    """Find the scores at some ranks, by radix select: a few reads, no sort, no wait of the host.

    Rank ``ceil((seen - 1) * share / den) + offset`` of the seen in ascending order, counted from 0
    and kept within 0..seen-1. How many are seen only the device knows; the rank is made there.
    ``percentiles`` and ``kth`` say it in their words. The scores are compared as order-preserving
    32-bit keys (SEMANTICS 3.2), digit by digit: 2048 counts a rank are all the memory it takes.

    Args:
        values: [N] float32 scores, nan = never seen, or int64 records, 0 = never seen.
        offsets: [R] ints in -(2^31 - 1)..2^31 - 1.
        shares: [R] ints in 0..den.
        den: in 1..2^31-1.
        backend: which kernels.

    Returns:
        float32 [R] on the device of ``values``, in the order of the ranks; -FLT_MAX, below which
        nobody is, where nothing is seen. -0.0 is read as 0.0.

    Raises:
        ValueError: a number is out of range, or the lists are not of one length.
        TypeError: values are neither float32 nor int64, or a number is not an int.

    Example:
        >>> select(torch.tensor([3.0, 1.0, 2.0]), [0, -1], [0, 1], 1).tolist()
        [1.0, 2.0]
    """
    values = check_values(values)
    den = check_int("den", den, 1, MAX_DEN)
    if len(offsets) != len(shares):
        raise ValueError(
            f"offsets and shares must have one length, got {len(offsets)} and {len(shares)}"
        )
    offsets = [check_int("offsets", offset, -MAX_SAMPLES, MAX_SAMPLES) for offset in offsets]
    shares = [check_int("shares", share, 0, den) for share in shares]
    kernels = backends.kernels_for(backend, values)
    parts = [
        kernels.select(values, offsets[at : at + MAX_RANKS], shares[at : at + MAX_RANKS], den)
        for at in range(0, max(1, len(offsets)), MAX_RANKS)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def percentiles(values: Tensor, percents: Sequence[float], *, backend: str = "auto") -> Tensor:
    """Find exact percentiles of the seen scores, several at once.

    The smallest score whose rank is at least ``(seen - 1) * percent / 100``, percent read as its
    decimal: NumPy's ``method="higher"``, in exact arithmetic. Below it lie the same scores as below
    the interpolated percentile of NumPy's default, so a strict rule (InfoBatch, ICLR 2024, eq. 4)
    decides the same by either; and it is always a score, never rounded.

    Args:
        values: [N] float32 scores, nan = never seen, or int64 records, 0 = never seen.
        percents: [R], each in [0, 100].
        backend: which kernels.

    Returns:
        float32 [R] on the device of ``values``, in the order of ``percents``; -FLT_MAX where
        nothing is seen.

    Raises:
        ValueError: a percent is out of range.
        TypeError: values are neither float32 nor int64.

    Example:
        >>> percentiles(torch.tensor([4.0, 1.0, torch.nan, 3.0, 2.0]), [0, 50, 100]).tolist()
        [1.0, 3.0, 4.0]
    """
    percents = [plain(percent) for percent in percents]
    for percent in percents:
        if isinstance(percent, bool) or not isinstance(percent, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"percents must be numbers in [0, 100], got {percent!r}")
        if not 0 <= percent <= 100:
            raise ValueError(f"percents must be in [0, 100], got {percent!r}")
    exact = [decimal_fraction(percent) / 100 for percent in percents]
    den = math.lcm(*(share.denominator for share in exact))
    if den > MAX_DEN:  # nine digits of each are exact
        den = 10**9
    shares = [round(share * den) for share in exact]
    return select(values, [0] * len(shares), shares, den, backend=backend)


def kth(values: Tensor, k: int, *, backend: str = "auto") -> Tensor:
    """Find the k-th smallest of the seen scores.

    Args:
        values: [N] float32 scores, nan = never seen, or int64 records, 0 = never seen.
        k: in 1..2^31-1, counted from 1 as ``torch.kthvalue`` does; beyond the seen, the largest.
        backend: which kernels.

    Returns:
        float32 [1] on the device of ``values``; -FLT_MAX where nothing is seen.

    Raises:
        ValueError: k is out of range.
        TypeError: values are neither float32 nor int64, or k is not an int.

    Example:
        >>> kth(torch.tensor([3.0, 1.0, 2.0]), 2).item()
        2.0
    """
    k = check_int("k", k, 1, MAX_SAMPLES)
    return select(values, [k - 1], [0], 1, backend=backend)
