# SPDX-License-Identifier: Apache-2.0
"""How many samples each cell of scores has."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import CELL_SHIFT, FIRST_CELL, LAST_CELL
from prune_engine.ops.checks import check_count, check_vector


def cells(records: Tensor, *, backend: str = "auto") -> Tensor:
    """Count the samples of each cell of scores, sixteen cells to an octave.

    The bin of a score is ``max(key >> 19, 4112) - 4112`` (SEMANTICS 3.12): zero, negative and
    subnormal scores share bin 0, and each further bin is a sixteenth of an octave of positive
    numbers. Counts of shards add up to those of the data set.

    Args:
        records: [N] int64.
        backend: which kernels.

    Returns:
        int64 [4096] on the same device, by bin; the last counts what was never seen.

    Raises:
        ValueError: a shape does not fit.
        TypeError: records are not int64.

    Example:
        >>> from prune_engine.epoch import ScoreBuffer
        >>> buffer = ScoreBuffer(3)
        >>> _ = buffer.observe(torch.tensor([1.0, 1.0]), torch.tensor([0, 2]))
        >>> counts = cells(buffer.records)
        >>> counts[2016].item(), counts[4095].item()
        (2, 1)
    """
    check_vector("records", records, (torch.int64,))
    check_count("records", records.shape[0])
    return backends.kernels_for(backend, records).cells(records.contiguous())


def cell_of(score: Tensor) -> Tensor:
    """Return the cell of one score, ``max(key >> 19, 4112)`` (SEMANTICS 3.12).

    Args:
        score: float32 [1]; what is not finite is of the first or the last cell of finite scores.

    Returns:
        int32 [1] on the same device.

    Example:
        >>> cell_of(torch.tensor([1.0])).tolist(), cell_of(torch.tensor([-1.0])).tolist()
        ([6128], [4112])
    """
    bits = score.view(torch.int32)
    # A positive float's key is its bits and 2^31; all others are of the first cell.
    cell = (bits >> CELL_SHIFT) + (1 << 31 - CELL_SHIFT)
    return torch.where(bits > 0, cell, FIRST_CELL).clamp(FIRST_CELL, LAST_CELL).to(torch.int32)
