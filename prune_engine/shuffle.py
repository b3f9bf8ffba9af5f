# SPDX-License-Identifier: Apache-2.0
"""The keyed shuffle by itself, for lists that no device holds whole. Part of ``ops``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prune_engine.backends import reference_arithmetic as arithmetic
from prune_engine.checks import check_seed_epoch, check_vector
from prune_engine.types import MAX_INDEX

PIECE = 1 << 18  # elements at a time: what the arithmetic allocates stays in a processor's cache


def shuffle(positions: Tensor, n: int, *, seed: int, epoch: int) -> Tensor:
    """Turn positions of an epoch of n samples into ranks in its list of kept ones: ``pi(p)``.

    ``order(kept, p)`` is ``kept[shuffle(p, len(kept))]`` (DESIGN 3.7; after Mitchell et al.,
    "Bandwidth-Optimal Random Shuffling for GPUs", 2022), for any n and without the list. Plain
    torch on the device of the positions.

    Args:
        positions: [M] int64, each in 0..n-1.
        n: in 0..2^62.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        int64 [M], in the order of ``positions``; distinct positions give distinct ranks.

    Raises:
        IndexError: a position is out of range.
        ValueError: a number is out of range.

    Example:
        >>> sorted(shuffle(torch.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    return _by_pieces(arithmetic.bijection, "positions", positions, n, seed, epoch)


def unshuffle(ranks: Tensor, n: int, *, seed: int, epoch: int) -> Tensor:
    """Say at which positions of an epoch its kept samples come: the inverse of ``shuffle``.

    Args:
        ranks: [M] int64, each in 0..n-1.
        n: in 0..2^62.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        int64 [M], in the order of ``ranks``.

    Raises:
        IndexError: a rank is out of range.
        ValueError: a number is out of range.

    Example:
        >>> ranks = shuffle(torch.arange(5), 5, seed=0, epoch=0)
        >>> unshuffle(ranks, 5, seed=0, epoch=0).tolist()
        [0, 1, 2, 3, 4]
    """
    return _by_pieces(arithmetic.inverse_bijection, "ranks", ranks, n, seed, epoch)


def _by_pieces(
    network: Callable[[Tensor, int, int, int], Tensor],
    name: str,
    places: Tensor,
    n: int,
    seed: int,
    epoch: int,
) -> Tensor:
    check_vector(name, places, (torch.int64,))
    check_seed_epoch(seed, epoch)
    if not 0 <= n <= MAX_INDEX:
        raise ValueError(f"n must be in 0..2^62, got {n}")
    out = torch.empty_like(places)
    for at in range(0, places.shape[0], PIECE):
        out[at : at + PIECE] = network(places[at : at + PIECE], n, seed, epoch)
    return out
