# SPDX-License-Identifier: Apache-2.0
"""The count of cells in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32
from prune_engine.bands import CELL_SHIFT, CELLS, FIRST_CELL, UNSEEN_CELL


def cells_of(records: Tensor) -> Tensor:
    """Return each sample's cell: sixteen to an octave, zero and below in the first (int64)."""
    return ((records & MASK32) >> CELL_SHIFT).clamp(min=FIRST_CELL)


def cells(records: Tensor) -> Tensor:
    """Count the samples of each cell of scores.

    The cell of a score is ``max(key >> 19, 4112)``: sixteen to an octave of positive normal
    numbers; zero, negative and subnormal scores share the first. Its bin is ``cell - 4112``.

    Args:
        records: [N] int64.

    Returns:
        int64 [4096]: by bin; the last counts what was never seen.

    Example:
        >>> from prune_engine.backends.reference.arithmetic import float_to_key
        >>> records = torch.cat([(1 << 32) | float_to_key(torch.ones(2)), torch.zeros(1).long()])
        >>> counts = cells(records)
        >>> counts[2016].item(), counts[-1].item(), counts.sum().item()
        (2, 1, 3)
    """
    bins = torch.where(records == 0, UNSEEN_CELL, cells_of(records) - FIRST_CELL)
    return torch.bincount(bins, minlength=CELLS)
