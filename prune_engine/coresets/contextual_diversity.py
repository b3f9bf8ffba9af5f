# SPDX-License-Identifier: Apache-2.0
"""Samples whose predictions differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prune_engine.coresets.greedy import Contest
from prune_engine.coresets.k_center import farthest_first
from prune_engine.coresets.method import Samples
from prune_engine.coresets.pairs import Divergences
from prune_engine.coresets.together import Contested


@dataclass(frozen=True)
class ContextualDiversity(Contested):
    """Farthest-first traversal over the symmetric divergence of predictions.

    ``d(i, j) = (KL(p_i || p_j) + KL(p_j || p_i)) / 2`` (Agarwal et al., "Contextual Diversity for
    Active Learning", ECCV 2020, eq. 3, of one prediction per image).

    Example:
        >>> import torch
        >>> z = torch.tensor([[5.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
        >>> ContextualDiversity().pick(Samples(torch.arange(3), logits=z), 2).order.tolist()
        [0, 2]
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def contest(self, samples: Samples, k: int) -> Contest:
        """Ask k - 1 times for the farthest."""
        return farthest_first(Divergences(samples.log_chances()), samples, k)
