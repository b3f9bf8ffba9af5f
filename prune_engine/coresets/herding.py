# SPDX-License-Identifier: Apache-2.0
"""Herding: samples whose mean follows the mean of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.method import Pick, Report, Samples, needed
from prune_engine.coresets.pairs import Products, centred_products, few
from prune_engine.coresets.stack import chosen_of, rows_of, stacked, stacked_entries
from prune_engine.coresets.together import Together


@dataclass(frozen=True)
class Herding(Together):
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
        products = centred_products(needed(samples.features, "features"))
        if few(len(products)):
            return self._choose([products], [k], samples.report)[0]

        def row(best: Tensor) -> Tensor:  # in one pass
            return products.along(products.rows(best)[0].T)[None]

        return self._follow([products], row, [k], samples.report)[0]

    def pick_each(self, parts: Sequence[Samples], counts: Sequence[int]) -> list[Pick]:
        """Take of each class in turn what leaves the smallest distance, of all at once."""
        products = [centred_products(needed(part.features, "features")) for part in parts]
        return self._choose(products, counts, parts[0].report)

    def _choose(
        self, products: Sequence[Products], counts: Sequence[int], report: Report
    ) -> list[Pick]:
        """Choose where the products of all pairs are kept."""
        entries = stacked_entries(products)
        lanes = torch.arange(len(products), device=entries.device)

        def row(best: Tensor) -> Tensor:
            return rows_of(entries, lanes, best).double()

        return self._follow(products, row, counts, report)

    def _follow(
        self,
        products: Sequence[Products],
        row: Callable[[Tensor], Tensor],
        counts: Sequence[int],
        report: Report,
    ) -> list[Pick]:
        """Choose; row gives the products of a sample of each class with all others, [G, n]."""
        own = [each.diagonal().double() for each in products]
        lengths = stacked(own, 0.0)
        taken = stacked([torch.zeros_like(each) for each in own], torch.inf)
        pull = stacked([_pull(each) for each in products], 0.0)  # mu . h_j
        chosen = torch.zeros_like(pull)
        order: list[Tensor] = []
        for t in range(1, max(counts) + 1):
            # || t mu - s - h ||^2 is this, up to what all j share.
            far = lengths - 2 * (t * pull - chosen)
            best = (far - taken).argmax(1) if self.published else (far + taken).argmin(1)
            order.append(best)
            chosen = chosen + row(best)
            taken.scatter_(1, best[:, None], torch.inf)
            report(sum(t <= count for count in counts))
        lanes = torch.arange(len(products), device=pull.device)
        return [Pick(each) for each in chosen_of(order, counts, lanes)]


def _pull(products: Products) -> Tensor:
    """Return the product of the mean feature with each, of all features at once."""
    # t of them are in t mu, and t in s + h.
    n = len(products)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64, device=products.factors[0].device)
    return products.along(products.total(uniform))
