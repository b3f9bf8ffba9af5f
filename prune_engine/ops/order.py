# SPDX-License-Identifier: Apache-2.0
"""The samples at some positions of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.ops.checks import check_seed_epoch, check_vector, raise_index_error


def order(
    kept: Tensor, positions: Tensor | range, *, seed: int, epoch: int, backend: str = "auto"
) -> Tensor:
    """Turn positions of an epoch into samples: ``kept[pi(position)]``.

    ``pi`` is a keyed Feistel bijection of [0, len(kept)) with cycle walking (after Mitchell et al.,
    "Bandwidth-Optimal Random Shuffling for GPUs", 2022; SEMANTICS 3.7): a pure function of (seed,
    epoch, len(kept)), so a batch, a rank's share or everything is random access.

    Args:
        kept: [n] int32, from ``compact``.
        positions: [M] int64, or a range; each in 0..n-1.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        backend: which kernels.

    Returns:
        int32 [M], in the order of ``positions``.

    Raises:
        IndexError: a position is out of range.
        TypeError: positions are neither int64 nor a range.

    Example:
        >>> kept = torch.arange(5, dtype=torch.int32)
        >>> sorted(order(kept, range(5), seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    check_vector("kept", kept, (torch.int32,))
    seed, epoch = check_seed_epoch(seed, epoch)
    given, start, step, count = None, 0, 1, 0
    if isinstance(positions, range):
        ends, size = (positions[0], positions[-1]) if positions else (), kept.shape[0]
        if ends and not size:
            raise IndexError("positions must be empty, for nothing is kept")
        if wrong := [end for end in ends if not 0 <= end < size]:
            raise IndexError(f"positions must be in 0..{size - 1}, got {wrong[0]}")
        count = len(positions)
        if count:  # a step that is not taken may be of any size
            start, step = positions[0], positions.step if count > 1 else 1
    else:
        check_vector("positions", positions, (torch.int64,), device=kept.device)
        given = positions.contiguous()
    try:
        return backends.kernels_for(backend, kept).order(
            kept.contiguous(), given, start, step, count, seed, epoch
        )
    except RuntimeError as error:
        raise_index_error(error)
