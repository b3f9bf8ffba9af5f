# SPDX-License-Identifier: Apache-2.0
"""Samples that leave no other far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.greedy import Contest
from prune_engine.coresets.method import Samples, needed
from prune_engine.coresets.pairs import Distances, Matrix, centred_products, slices
from prune_engine.coresets.together import Contested


@dataclass(frozen=True)
class KCenter(Contested):
    """Farthest-first traversal: each choice is the sample farthest from the chosen.

    ``argmax_i min_{j chosen} || h_i - h_j ||``, from a first one at random (Sener and Savarese,
    "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm
    1; within twice the best radius: Gonzalez 1985). O(n) memory, and no n x n or k x n.

    Example:
        >>> h = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
        >>> KCenter().pick(Samples(torch.arange(4), features=h), 3).order.tolist()
        [0, 3, 2]
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)

    def contest(self, samples: Samples, k: int) -> Contest:
        """Ask k - 1 times for the farthest."""
        matrix = Distances(centred_products(needed(samples.features, "features")))
        return farthest_first(matrix, samples, k)


def farthest_first(matrix: Matrix, samples: Samples, k: int) -> Contest:
    """Take the first of the draw, and ask k - 1 times for the farthest from all before."""
    first = samples.rank.argmin()[None]
    nearest = torch.empty(len(matrix), dtype=matrix.block(first, first).dtype, device=first.device)
    for rows in slices(len(matrix), 64):
        nearest[rows] = matrix.block(rows, first)[:, 0]
    nearest.index_fill_(0, first, -torch.inf)
    samples.report(1)
    return Contest(matrix, nearest, _nearer, k - 1, first)


def _nearer(nearest: Tensor, entries: Tensor) -> Tensor:
    return torch.minimum(nearest, entries.amin(dim=1))
