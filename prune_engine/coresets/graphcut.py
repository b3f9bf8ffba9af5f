# SPDX-License-Identifier: Apache-2.0
"""Graph cut: samples that are like all the others and unlike each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prune_engine.coresets.greedy import Contest
from prune_engine.coresets.method import Samples, needed
from prune_engine.coresets.pairs import Cosines, Dense, Products, feature_products, kept
from prune_engine.coresets.together import Contested

Similarity = Literal["gradients", "features"]
SIMILARITIES = ("gradients", "features")


@dataclass(frozen=True)
class GraphCut(Contested):
    """Greedy choice by the graph cut of similarities.

    ``f(S) = a sum_{i, j in S} s_ij - b sum_{i in S, j in S} s_ij`` with i over all samples in the
    first sum, so a sample adds ``a sum_i s_ij - b (2 sum_{i in S} s_ij + s_jj)`` (Iyer and Bilmes
    2013; as a coreset: Iyer et al., "Submodular combinatorial information measures", ALT 2021; a =
    b = 1 in DeepCore). ``s = 1/2 + 1/2 cos``, of last-layer gradients or of features. Column sums
    take O(n C d); each choice then moves every gain by one column, O(n).

    Args:
        a: what likeness to all counts.
        b: what likeness to the chosen costs.
        similarity: of what.

    Raises:
        ValueError: a parameter does not fit.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> GraphCut(similarity="features").pick(Samples(torch.arange(3), h), 2).order.tolist()
        [1, 2]
    """

    a: float = 1.0
    b: float = 1.0
    similarity: Similarity = "gradients"
    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def __post_init__(self) -> None:
        if not self.a >= 0 or not self.b >= 0:
            raise ValueError(f"a and b must be at least 0, got {self.a} and {self.b}")
        check_similarity(self.similarity)

    def contest(self, samples: Samples, k: int) -> Contest:
        """Ask k times for what adds most."""
        return cut(kept(similarities(samples, self.similarity)), self.a, self.b, k)


def cut(matrix: Cosines | Dense, a: float, b: float, k: int) -> Contest:
    """Ask k times for what adds most to a graph cut."""
    gains = a * matrix.sums() - b * matrix.diagonal()

    def less(values: Tensor, entries: Tensor) -> Tensor:
        return values - (2 * b) * entries.sum(dim=1, dtype=torch.float64)

    return Contest(matrix, gains, less, k)


def similarities(samples: Samples, of: Similarity) -> Cosines:
    """Return the similarities of a class's last-layer gradients, or of its features."""
    features = needed(samples.features, "features")
    if of == "features":
        return Cosines(feature_products(features))
    # A cosine knows no length, and the square of a sure sample's error may be too small a number.
    errors = samples.errors()
    largest = errors.abs().amax(dim=1, keepdim=True)
    errors = errors.div_(torch.where(largest > 0, largest, 1))
    return Cosines(Products((errors, features), (0.0, 1.0)))


def check_similarity(similarity: str) -> None:
    """Refuse what is no name of a similarity."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be 'gradients' or 'features', got {similarity!r}")
