# SPDX-License-Identifier: Apache-2.0
"""Herding: samples whose mean follows the mean of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.method import Method, Pick, Samples, needed
from prune_engine.coresets.pairs import Dense, Matrix, Products, centred_products, kept


@dataclass(frozen=True)
class Herding(Method):
    """Each choice brings the mean of the chosen nearest to the mean of all.

    With mu the mean feature and s the sum of the chosen, the t-th is the
    ``argmin_j || t mu - s - h_j ||`` (Welling, "Herding dynamical weights to learn", ICML 2009,
    eq. 8, where features have one length; Rebuffi et al., "iCaRL", CVPR 2017, algorithm 4).

    Args:
        published: take the farthest instead, ``argmax``, as the public code does that most tables
            come from (DeepCore): to reproduce its Herding row, and for nothing else.

    Example:
        >>> h = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> samples = Samples(torch.arange(4), features=h)
        >>> Herding().pick(samples, 1).order.tolist()
        [2]
        >>> Herding(published=True).pick(samples, 1).order.tolist()
        [3]
    """

    published: bool = False
    needs: ClassVar[tuple[str, ...]] = ("features",)

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take one by one what leaves the smallest distance."""
        # mu is taken from all features at once: t of them are in t mu, and t in s + h.
        products = centred_products(needed(samples.features, "features"))
        n = len(samples)
        uniform = torch.full((n,), 1 / n, dtype=torch.float64, device=samples.rank.device)
        pull = products.along(products.total(uniform))  # mu . h_j
        lengths = products.diagonal().double()
        chosen, taken = torch.zeros_like(pull), torch.zeros_like(pull)
        source = kept(products)
        order: list[Tensor] = []
        for t in range(1, k + 1):
            # || t mu - s - h ||^2 is this, up to what all j share.
            far = lengths - 2 * (t * pull - chosen)
            best = (far - taken).argmax() if self.published else (far + taken).argmin()
            order.append(best)
            chosen = chosen + _row(source, products, best)
            taken.index_fill_(0, best[None], torch.inf)
            samples.report(1)
        return Pick(torch.stack(order))


def _row(source: Matrix, products: Products, best: Tensor) -> Tensor:
    """Return h_best . h_j of all j: of the matrix where it is kept, else in one pass."""
    if isinstance(source, Dense):
        return source.entries.index_select(0, best[None])[0].double()
    return products.along(products.rows(best[None])[0].T)
