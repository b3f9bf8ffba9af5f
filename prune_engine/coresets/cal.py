# SPDX-License-Identifier: Apache-2.0
"""Contrastive choice: samples that are predicted otherwise than their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.method import Method, Pick, Samples, needed
from prune_engine.coresets.pairs import Distances, centred_products, slices


@dataclass(frozen=True)
class CAL(Method):
    """The largest mean divergence of the nearest neighbours' predictions from one's own.

    ``s_i = mean over the neighbours j of KL(p_j || p_i)``, neighbours by the distance of features
    (Margatina et al., "Active Learning by Acquiring Contrastive Examples", EMNLP 2021, algorithm 1;
    within a class where the choice is balanced). A sample is never its own neighbour, nor do equal
    ones hide each other. O(n^2 d) time, by blocks.

    Args:
        neighbours: at most, where there are so many others.
        published: take the smallest instead, as the public code does that most tables come from
            (DeepCore): to reproduce its row, and for nothing else.

    Raises:
        ValueError: no neighbours.

    Example:
        >>> h = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> z = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> CAL(1).pick(Samples(torch.arange(4), h, z), 2).order.tolist()
        [2, 3]
    """

    neighbours: int = 10
    published: bool = False
    needs: ClassVar[tuple[str, ...]] = ("features", "logits")

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take the k first by the divergence."""
        found = divergence_of_neighbours(samples, self.neighbours)
        order = torch.sort(found, stable=True, descending=not self.published).indices
        samples.report(k)
        return Pick(order[:k])


def divergence_of_neighbours(samples: Samples, neighbours: int) -> Tensor:
    """Return the mean KL(p_j || p_i) over each sample's neighbours, float64 [n]."""
    n, logs = len(samples), samples.log_chances()
    count = min(neighbours, n - 1)
    if count == 0:
        return torch.zeros(n, dtype=torch.float64, device=logs.device)
    distances = Distances(centred_products(needed(samples.features, "features")))
    chances = logs.exp()
    negentropy = (chances * logs).sum(dim=1, dtype=torch.float64)
    found: list[Tensor] = []
    for rows in slices(n, max(n, count * logs.shape[1])):
        near = _nearest(distances.block(rows, slice(0, n)), rows.start, count)
        own = negentropy[near].mean(dim=1)
        crossed = (chances[near].mean(dim=1) * logs[rows]).sum(dim=1, dtype=torch.float64)
        found.append(own - crossed)
    return torch.cat(found)


def _nearest(distances: Tensor, first: int, count: int) -> Tensor:
    """Return the positions [r, count] of the smallest, ties to the smaller, never the row's own."""
    rows = torch.arange(len(distances), device=distances.device)
    distances[rows, rows + first] = torch.inf
    bound = distances.topk(count, dim=1, largest=False).values[:, -1:]
    nearer, equal = distances < bound, distances == bound
    room = count - nearer.sum(dim=1, keepdim=True)
    taken = nearer | (equal & (equal.cumsum(dim=1) <= room))
    return taken.nonzero()[:, 1].view(-1, count)
