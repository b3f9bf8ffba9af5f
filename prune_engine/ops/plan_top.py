# SPDX-License-Identifier: Apache-2.0
"""The largest scores of a random pool."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import MAX_SAMPLES
from prune_engine.ops.checks import check_count, check_int, check_seed_epoch, check_vector


def plan_top(
    records: Tensor,
    k: int,
    *,
    cut: int = 0,
    seed: int,
    epoch: int,
    out: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Keep the k largest scores of those whose keep draw is at least ``cut``, the unseen first.

    What ``plan`` does with a ``TopRule``: a pool drawn anew in each epoch, and of it the largest
    scores (OrderDP, ICLR 2026; SEMANTICS 3.13). Equal scores are ordered by a draw, never by index,
    so that samples never seen do not go in the order of the data set. By radix select or a guess
    that the counts confirm: no sort.

    Args:
        records: [N] int64.
        k: in 0..2^31-1; all of the pool where it has fewer.
        cut: in 0..65535; 0: everybody is in the pool.
        seed: in 0..2^63-1.
        epoch: the epoch being planned, in 0..2^31-2.
        out: [N] uint8 to write the weight classes into; default a fresh tensor.
        backend: which kernels.

    Returns:
        ``weight_class`` [N] uint8, 1 or 0, and ``block_offsets`` as ``plan`` returns them.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: records are not int64, or a number is no int.

    Example:
        >>> classes, offsets = plan_top(torch.zeros(9, dtype=torch.int64), 4, seed=0, epoch=1)
        >>> int(classes.sum()), offsets.tolist()
        (4, [0, 4])
    """
    check_vector("records", records, (torch.int64,))
    check_count("records", records.shape[0])
    k, cut = check_int("k", k, 0, MAX_SAMPLES), check_int("cut", cut, 0, 65535)
    seed, epoch = check_seed_epoch(seed, epoch)
    size, device = records.shape[0], records.device
    classes = torch.empty(records.shape, dtype=torch.uint8, device=device) if out is None else out
    changed = out is not None
    check_vector("out", classes, (torch.uint8,), size=size, device=device, changed=changed)
    kernels = backends.kernels_for(backend, records)
    block_offsets = kernels.plan_top(records.contiguous(), k, cut, seed, epoch, classes)
    torch.autograd.graph.increment_version(classes)
    return classes, block_offsets
