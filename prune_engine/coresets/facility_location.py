# SPDX-License-Identifier: Apache-2.0
"""Facility location: for every sample, one of the chosen that is like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prune_engine.coresets.graphcut import Similarity, check_similarity, similarities
from prune_engine.coresets.greedy import facilities
from prune_engine.coresets.method import Method, Pick, Samples


@dataclass(frozen=True)
class FacilityLocation(Method):
    """Greedy choice by ``f(S) = sum_i max_{j in S} s_ij``.

    Similarities as in ``GraphCut`` (Iyer et al., ALT 2021; within 1 - 1/e of the best: Nemhauser,
    Wolsey and Fisher 1978), lazily and exactly (Minoux 1978). O(n^2) time.

    Args:
        similarity: ``"gradients"`` of the last layer, or ``"features"``.

    Raises:
        ValueError: another similarity.

    Example:
        >>> import torch
        >>> h = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> FacilityLocation("features").pick(Samples(torch.arange(3), h), 2).order.tolist()
        [1, 2]
    """

    similarity: Similarity = "gradients"
    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def __post_init__(self) -> None:
        check_similarity(self.similarity)

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take k times what adds most."""
        return Pick(facilities(similarities(samples, self.similarity), k, samples.report))
