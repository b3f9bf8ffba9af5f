# SPDX-License-Identifier: Apache-2.0
"""A keyed draw by itself: what a policy draws with where no rule draws for it."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import MAX_STREAM
from prune_engine.ops.checks import check_int, check_seed_epoch, check_vector, raise_index_error


def draw(
    indices: Tensor, *, seed: int, epoch: int, stream: int = 0, backend: str = "auto"
) -> Tensor:
    """Draw 32 bits for each index: a pure function of (seed, epoch, stream, index).

    Philox4x32-10 (Salmon et al., SC 2011; SEMANTICS 3.3): the same on every backend, rank and
    thread count, and independent of the draws that rules, orders and picks make. ``draw >= r *
    2^32`` keeps an index with probability 1 - r; to break ties at random, order by it.

    Args:
        indices: [M] int64, each in 0..2^62, such as the numbers of samples.
        seed: in 0..2^63-1, such as ``progress.seed``.
        epoch: in 0..2^31-2.
        stream: in 0..2^28-1: tells several draws of one index apart. Those from 2^27 on are this
            package's own.
        backend: which kernels.

    Returns:
        int64 [M], each in 0..2^32-1, in the order of ``indices``.

    Raises:
        IndexError: an index is out of range (a GPU gives -1 for it).
        ValueError: a number is out of range.
        TypeError: indices are not int64.

    Example:
        >>> import torch
        >>> numbers = draw(torch.arange(1000), seed=7, epoch=3)
        >>> bool((numbers[:4] == draw(torch.arange(4), seed=7, epoch=3)).all())
        True
    """
    indices = check_vector("indices", indices, (torch.int64,))
    seed, epoch = check_seed_epoch(seed, epoch)
    stream = check_int("stream", stream, 0, MAX_STREAM)
    kernels = backends.kernels_for(backend, indices)
    try:
        return kernels.draw(indices.contiguous(), seed, epoch, stream)
    except RuntimeError as error:
        raise_index_error(error)
