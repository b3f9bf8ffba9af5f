# SPDX-License-Identifier: Apache-2.0
"""A weight class for every sample of an epoch, by levels of its score."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import NUM_CLASSES
from prune_engine.ops.cells import cell_of
from prune_engine.ops.checks import check_count, check_first, check_seed_epoch, check_vector


def plan_levels(
    records: Tensor,
    top: Tensor,
    cut: Tensor,
    *,
    seed: int,
    epoch: int,
    unseen: Tensor | None = None,
    out: Tensor | None = None,
    first: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Decide every sample's weight class by its level and count the kept ones by block.

    The class is ``top + 1 - cell`` of its score, within 1..255; where it was never seen that of
    ``unseen``, or 1. It is dropped iff ``draw(seed, epoch, index) < cut[class]``, with the draws of
    ``plan`` (SEMANTICS 3.12).

    Args:
        records: [N] int64.
        top: [1] int32, of ``solve_levels``.
        cut: [256] int32, likewise.
        seed: in 0..2^63-1.
        epoch: the epoch being planned, in 0..2^31-2.
        unseen: float32 [1] on the device of the records, the score that the never seen count as, as
            for ``solve_levels``; None: they stay.
        out: [N] uint8 to write the weight classes into; default a fresh tensor.
        first: the number in the data set of ``records[0]``, where these are a shard's: a multiple
            of 4096.
        backend: which kernels.

    Returns:
        ``weight_class`` [N] uint8 in dataset order, and ``block_offsets`` [ceil(N / 4096) + 1]
        int64, as of ``plan``.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: a dtype does not fit.

    Example:
        >>> from prune_engine.ops import cells, solve_levels
        >>> records = torch.zeros(3, dtype=torch.int64)
        >>> levels = solve_levels(cells(records), 2)
        >>> classes, offsets = plan_levels(records, levels.top, levels.cut, seed=0, epoch=0)
        >>> classes.tolist(), offsets.tolist()
        ([1, 1, 1], [0, 3])
    """
    check_vector("records", records, (torch.int64,))
    check_count("records", records.shape[0])
    device = records.device
    check_vector("top", top, (torch.int32,), size=1, device=device)
    check_vector("cut", cut, (torch.int32,), size=NUM_CLASSES, device=device)
    seed, epoch = check_seed_epoch(seed, epoch)
    first = check_first(first, fixed=False)
    weight_class = (
        torch.empty(records.shape, dtype=torch.uint8, device=device) if out is None else out
    )
    size = records.shape[0]
    check_vector(
        "out", weight_class, (torch.uint8,), size=size, device=device, changed=out is not None
    )
    cell = None
    if unseen is not None:
        cell = cell_of(check_vector("unseen", unseen, (torch.float32,), size=1, device=device))
    block_offsets = backends.kernels_for(backend, records).plan_levels(
        *(records.contiguous(), top.contiguous(), cut.contiguous()),
        *(seed, epoch, weight_class, first, cell),
    )
    torch.autograd.graph.increment_version(weight_class)
    return weight_class, block_offsets
