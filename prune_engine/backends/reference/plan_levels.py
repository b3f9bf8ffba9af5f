# SPDX-License-Identifier: Apache-2.0
"""The plan by levels in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import keep_draw
from prune_engine.backends.reference.cells import cells_of
from prune_engine.backends.reference.plan import offsets_of
from prune_engine.bands import NUM_CLASSES


def plan_levels(
    records: Tensor,
    top: Tensor,
    cut: Tensor,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    first: int = 0,
    unseen: Tensor | None = None,
) -> Tensor:
    """Decide for every sample whether it is kept this epoch, in the class of its cell.

    The class is ``top + 1 - cell`` within 1..255, for what was never seen that of the cell
    ``unseen``; the sample is dropped iff ``draw < cut[class]``, with the draw of :func:`plan`.

    Args:
        records: [N] int64.
        top: [1] int32, in 4112..8448.
        cut: [256] int32, each in 0..65536.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].
        weight_class: [N] uint8, changed in place: 0 = dropped.
        first: the number in the data set of the first record, a multiple of PLAN_BLOCK.
        unseen: [1] int32, in 4112..8448, the cell of what was never seen; None: ``top``, so that it
            stays.

    Returns:
        block_offsets, int64 [ceil(N / PLAN_BLOCK) + 1], as of :func:`plan`.

    Example:
        >>> classes, cut = torch.empty(3, dtype=torch.uint8), torch.zeros(256, dtype=torch.int32)
        >>> top = torch.tensor([6128], dtype=torch.int32)
        >>> plan_levels(torch.zeros(3).long(), top, cut, 0, 0, classes).tolist(), classes.tolist()
        ([0, 3], [1, 1, 1])
    """
    cells = torch.where(records == 0, top if unseen is None else unseen, cells_of(records))
    level = (top.to(torch.int64) + 1 - cells).clamp(1, NUM_CLASSES - 1)
    numbers = first + torch.arange(records.numel(), device=records.device)
    dropped = keep_draw(numbers, seed, epoch) < cut[level]
    weight_class.copy_(torch.where(dropped, 0, level))
    return offsets_of(weight_class)
