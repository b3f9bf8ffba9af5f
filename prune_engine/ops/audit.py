# SPDX-License-Identifier: Apache-2.0
"""What was seen in an epoch beside what was planned."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.ops.checks import check_seed_epoch, check_vector


def audit(records: Tensor, weight_class: Tensor, *, epoch: int, backend: str = "auto") -> Tensor:
    """Recompute the exact sum and compare what was seen in an epoch with what was planned.

    Args:
        records: [N] int64.
        weight_class: [N] uint8, the epoch's decision.
        epoch: the epoch being audited, in 0..2^31-2.
        backend: which kernels.

    Returns:
        int64 [13]: nine limbs of the sum, number seen (``score_sum``), planned and recorded in the
        epoch, planned but not recorded (missing), recorded though not planned (extra).

    Raises:
        ValueError: a shape, device or number does not fit.

    Example:
        >>> classes = torch.tensor([1, 0], dtype=torch.uint8)
        >>> audit(torch.zeros(2, dtype=torch.int64), classes, epoch=0)[9:].tolist()
        [0, 0, 1, 0]
    """
    check_vector("records", records, (torch.int64,))
    size, device = records.shape[0], records.device
    check_vector("weight_class", weight_class, (torch.uint8,), size=size, device=device)
    _, epoch = check_seed_epoch(0, epoch)
    return backends.kernels_for(backend, records).audit(
        records.contiguous(), weight_class.contiguous(), epoch
    )
