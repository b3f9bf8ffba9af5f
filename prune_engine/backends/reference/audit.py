# SPDX-License-Identifier: Apache-2.0
"""The audit in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.observe import limb_sums


def audit(records: Tensor, weight_class: Tensor, epoch: int) -> Tensor:
    """Recompute the score sum and compare what was planned with what was recorded.

    "Planned" is ``weight_class != 0``; "recorded in this epoch" is
    ``(record >> 32) == epoch + 1``.

    Args:
        records: [N] int64.
        weight_class: [N] uint8, the plan of this epoch.
        epoch: in [0, 2^31 - 2].

    Returns:
        int64 [13]: the ten entries of ``score_sum``, samples planned and recorded, planned but
        not recorded (missing), recorded though not planned (extra).

    Example:
        >>> from prune_engine.backends.reference.arithmetic import float_to_key
        >>> records = torch.cat([(2 << 32) | float_to_key(torch.ones(2)), torch.zeros(1).long()])
        >>> audit(records, torch.tensor([1, 0, 1], dtype=torch.uint8), epoch=1)[4:].tolist()
        [4194304, 0, 0, 0, 0, 2, 1, 1, 1]
    """
    planned = weight_class != 0
    recorded = (records >> 32) == epoch + 1
    coverage = [planned & recorded, planned & ~recorded, recorded & ~planned]
    return torch.cat([limb_sums(records), torch.stack([mask.sum() for mask in coverage])])
