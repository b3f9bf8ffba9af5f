# SPDX-License-Identifier: Apache-2.0
"""Dataset quantization: bins of like spread, and the same share of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.graphcut import Similarity, check_similarity, cut, similarities
from prune_engine.coresets.greedy import largest_first
from prune_engine.coresets.method import Method, Pick, Samples, quiet
from prune_engine.coresets.pairs import kept
from prune_engine.coresets.quotas import quotas


@dataclass(frozen=True)
class DatasetQuantization(Method):
    """Part the samples into bins, each a graph cut of what is left, and draw from all alike.

    Bin b is a ``GraphCut`` of n / bins samples among those of no bin yet, sums and all; the last
    has the rest. Of each the same share is drawn at random (Zhou et al., "Dataset Quantization",
    ICCV 2023, section 3.2; its last step, dropped patches, is no selection).

    Args:
        bins: how many, at least 1.
        similarity: as in ``GraphCut``.

    Raises:
        ValueError: a parameter does not fit.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> len(DatasetQuantization(2).pick(Samples(torch.arange(4), h), 2).order)
        2
    """

    bins: int = 10
    similarity: Similarity = "features"
    needs: ClassVar[tuple[str, ...]] = ("features",)

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, got {self.bins}")
        check_similarity(self.similarity)

    def pick(self, samples: Samples, k: int) -> Pick:
        """Draw from every bin."""
        found = self.binned(samples)
        chosen: list[Tensor] = []
        for members, count in zip(found, quotas([len(b) for b in found], k), strict=True):
            drawn = torch.argsort(samples.rank[members])[:count]
            chosen.append(members[drawn])
        samples.report(k)
        return Pick(torch.cat(chosen))

    def binned(self, samples: Samples) -> list[Tensor]:
        """Part the samples into the bins that ``pick`` draws from.

        Args:
            samples: with what the similarity needs.

        Returns:
            int64 positions, each in one bin, in the order of the graph cut; of fewer samples than
            bins there is one bin.

        Example:
            >>> samples = Samples(torch.arange(4), features=torch.eye(4))
            >>> [part.tolist() for part in DatasetQuantization(2).binned(samples)]
            [[0, 1], [2, 3]]
        """
        left = torch.arange(len(samples), device=samples.rank.device)
        matrix, size = kept(similarities(samples, self.similarity)), len(samples) // self.bins
        found: list[Tensor] = []
        for _ in range(self.bins - 1 if size else 0):
            members = largest_first(cut(matrix.take(left), 1.0, 1.0, size), quiet)
            found.append(left[members])
            rest = torch.ones(len(left), dtype=torch.bool, device=left.device)
            rest[members] = False
            left = left[rest]
        return [*found, left]
