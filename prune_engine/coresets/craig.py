# SPDX-License-Identifier: Apache-2.0
"""CRAIG: samples whose gradients, weighed, stand for those of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.greedy import facilities
from prune_engine.coresets.method import Method, Pick, Samples
from prune_engine.coresets.pairs import Distances, slices


@dataclass(frozen=True)
class CRAIG(Method):
    """Facility location over distances of gradients, and how many samples each choice stands for.

    Greedy on ``sum_i max_{j in S} (c - || g_i - g_j ||)`` with the last layer's gradients; the
    weight of j is the number of samples that it is nearest to, so the weights of a class add up to
    its size (Mirzasoleiman, Bilmes and Leskovec, "Coresets for Data-efficient Training of Machine
    Learning Models", ICML 2020, algorithm 1). A chosen sample stands for itself. Divide the weights
    by their mean to keep the learning rate.

    Example:
        >>> h = torch.tensor([[0.0], [0.1], [9.0]])
        >>> z, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
        >>> pick = CRAIG().pick(Samples(torch.arange(3), h, z, y), 2)
        >>> pick.order.tolist(), pick.weights.tolist()
        ([1, 2], [2.0, 1.0])
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take k times what adds most, and count."""
        distances = Distances(samples.last_layer())
        # Any bound on all distances gives the same choices; this one needs no look at all pairs.
        bound = 2 * float(distances.squares.max().sqrt())
        order = facilities(_Nearness(distances), k, samples.report, floor=-bound)
        return Pick(order, _counts(distances, order))


@dataclass(frozen=True)
class _Nearness:
    """Distances below 0: a bound added to them would round the small ones away."""

    distances: Distances

    def __len__(self) -> int:
        """Return n."""
        return len(self.distances)

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        return self.distances.block(rows, columns).neg_()


def _counts(distances: Distances, order: Tensor) -> Tensor:
    """Return how many samples each of the chosen is nearest to, ties to the smaller index."""
    n, ascending = len(distances), torch.sort(order).values
    nearest = torch.cat(
        [
            ascending[distances.block(rows, ascending).argmin(dim=1)]
            for rows in slices(n, len(order))
        ]
    )
    nearest[order] = order
    return torch.bincount(nearest, minlength=n)[order].to(torch.float32)
