# SPDX-License-Identifier: Apache-2.0
"""The plan as a vectorised torch user would write it: masks, nonzero, two randperms, gathers."""

from __future__ import annotations

import torch
from torch import Tensor


def plan(scores: Tensor, prune_ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keeps all samples not below the mean and floor((1 - r) n) of the n below it, shuffled.

    Args:
        scores: float32 [N].
        prune_ratio: r in [0, 1).
        generator: of both permutations.

    Returns:
        order int64 [num_kept], shuffled, and weights float32 [N].
    """
    low_mask = scores < scores.mean()
    low = low_mask.nonzero().squeeze(1)
    high = low_mask.logical_not_().nonzero().squeeze(1)
    num_low_kept = int((1.0 - prune_ratio) * low.shape[0])
    low_kept = low[torch.randperm(low.shape[0], generator=generator)[:num_low_kept]]
    weights = torch.ones_like(scores)
    weights[low_kept] = 1.0 / (1.0 - prune_ratio)
    kept = torch.cat((high, low_kept))
    return kept[torch.randperm(kept.shape[0], generator=generator)], weights
