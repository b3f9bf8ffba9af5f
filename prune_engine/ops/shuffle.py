# SPDX-License-Identifier: Apache-2.0
"""The keyed shuffle by itself, for lists that no device holds whole. Part of ``ops``."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import MAX_INDEX
from prune_engine.ops.checks import check_int, check_seed_epoch, check_vector, raise_index_error


def shuffle(positions: Tensor, n: int, *, seed: int, epoch: int, backend: str = "auto") -> Tensor:
    """Turn positions of an epoch of n samples into ranks in its list of kept ones: ``pi(p)``.

    ``order(kept, p)`` is ``kept[shuffle(p, len(kept))]`` (SEMANTICS 3.7; after Mitchell et al.,
    "Bandwidth-Optimal Random Shuffling for GPUs", 2022), for any n and without the list.

    Args:
        positions: [M] int64, each in 0..n-1.
        n: in 0..2^62.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        backend: which kernels.

    Returns:
        int64 [M], in the order of ``positions``; distinct positions give distinct ranks.

    Raises:
        IndexError: a position is out of range (a GPU gives -1 for it).
        ValueError: a number is out of range.

    Example:
        >>> sorted(shuffle(torch.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    return _permute("positions", positions, n, False, seed, epoch, backend)


def unshuffle(ranks: Tensor, n: int, *, seed: int, epoch: int, backend: str = "auto") -> Tensor:
    """Say at which positions of an epoch its kept samples come: the inverse of ``shuffle``.

    Args:
        ranks: [M] int64, each in 0..n-1.
        n: in 0..2^62.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        backend: which kernels.

    Returns:
        int64 [M], in the order of ``ranks``.

    Raises:
        IndexError: a rank is out of range (a GPU gives -1 for it).
        ValueError: a number is out of range.

    Example:
        >>> ranks = shuffle(torch.arange(5), 5, seed=0, epoch=0)
        >>> unshuffle(ranks, 5, seed=0, epoch=0).tolist()
        [0, 1, 2, 3, 4]
    """
    return _permute("ranks", ranks, n, True, seed, epoch, backend)


def _permute(
    name: str, places: Tensor, n: int, inverse: bool, seed: int, epoch: int, backend: str
) -> Tensor:
    check_vector(name, places, (torch.int64,))
    seed, epoch = check_seed_epoch(seed, epoch)
    n = check_int("n", n, 0, MAX_INDEX, "0..2^62")
    kernels = backends.kernels_for(backend, places)
    try:
        return kernels.shuffle(places.contiguous(), n, inverse, seed, epoch)
    except RuntimeError as error:
        raise_index_error(error)
