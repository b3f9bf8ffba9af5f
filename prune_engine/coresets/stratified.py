# SPDX-License-Identifier: Apache-2.0
"""A choice from all strata of any score (CCS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.bands import check_fraction, decimal_fraction
from prune_engine.coresets.method import Method, Pick, Samples, needed


@dataclass(frozen=True)
class Stratified(Method):
    """Leave out the hardest, part the rest by score, and take about as many of each stratum.

    Strata have equal widths between the lowest and the highest score; the budget is filled from the
    smallest one on, each giving ``min(its size, what is left / strata left)``, at random within
    (Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023, algorithm
    1). Any score, low = easy; what is infinite is a stratum of its own.

    Args:
        beta: share of the samples, the hardest, that is left out, in [0, 1).
        strata: how many, at least 1.

    Raises:
        ValueError: a parameter does not fit, or fewer than k are left.

    Example:
        >>> scores = torch.tensor([0.0, 0.1, 0.2, 0.9])
        >>> pick = Stratified(strata=2).pick(Samples(torch.arange(4), scores=scores), 2)
        >>> sorted(pick.order.tolist())
        [0, 3]
    """

    beta: float = 0.0
    strata: int = 50
    needs: ClassVar[tuple[str, ...]] = ("scores",)

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta, zero=True, one=False)
        if self.strata < 1:
            raise ValueError(f"strata must be at least 1, got {self.strata}")

    def check_count(self, k: int, n: int) -> int:
        """Refuse more than ``beta`` leaves, of a data set or of a class.

        Args:
            k: how many are wanted.
            n: of how many.

        Returns:
            How many are left out.

        Raises:
            ValueError: k is above what is left.

        Example:
            >>> Stratified(beta=0.25).check_count(3, 4)
            1
        """
        hardest = int(decimal_fraction(self.beta) * n)
        if k > n - hardest:
            raise ValueError(
                f"k must be at most the {n - hardest} samples that beta={self.beta} leaves, got {k}"
            )
        return hardest

    def pick(self, samples: Samples, k: int) -> Pick:
        """Fill the budget from the smallest stratum on."""
        scores = needed(samples.scores, "scores").double()
        by_hardness = torch.sort(scores, stable=True, descending=True).indices
        rest = by_hardness[self.check_count(k, len(scores)) :]
        members = [part for part in self._parts(scores, torch.sort(rest).values) if len(part)]
        members.sort(key=len)
        chosen: list[Tensor] = []
        left = k
        for number, part in enumerate(members):
            count = min(len(part), left // (len(members) - number))
            chosen.append(part[torch.argsort(samples.rank[part])[:count]])
            left -= count
        samples.report(k)
        return Pick(torch.cat(chosen))

    def _parts(self, scores: Tensor, rest: Tensor) -> list[Tensor]:
        values = scores[rest]
        finite = torch.isfinite(values)
        parts = [rest[values == -torch.inf], rest[values == torch.inf]]
        if bool(finite.any()):
            low, high = values[finite].min(), values[finite].max()
            width = torch.where(high > low, high - low, 1.0)
            stratum = ((values - low) / width * self.strata).clamp(0, self.strata - 1).long()
            parts += [rest[finite & (stratum == number)] for number in range(self.strata)]
        return parts
