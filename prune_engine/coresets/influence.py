# SPDX-License-Identifier: Apache-2.0
"""The samples that move the last layer most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.linear import lower_factor
from prune_engine.coresets.method import Samples, Scored, needed
from prune_engine.coresets.pairs import Products, slices, wide


@dataclass(frozen=True)
class Influence(Scored):
    """The largest ``|| H^-1 g_i ||``: how far the last layer moves when a sample gains in weight.

    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, eq. 1;
    as a score of pruning: Yang et al., ICLR 2023. H is the Gauss-Newton matrix of the last layer as
    a Kronecker product ``B (x) A`` (Martens and Grosse, ICML 2015): ``A = mean [h; 1][h; 1]^T + lam
    I``, ``B = mean (diag p - p p^T) + lam I``, so the norm is ``|| B^-1 e_i || || A^-1 [h_i; 1]
    ||``: O(d^3 + C^3 + N (d^2 + C^2)), of all samples together.

    Args:
        lam: what is added to both diagonals, above 0.

    Raises:
        ValueError: lam is not above 0.

    Example:
        >>> h = torch.tensor([[3.0], [1.0]])
        >>> z, y = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> Influence(lam=1.0).score(Samples(torch.arange(2), h, z, y)).argmax().item()
        0
    """

    lam: float = 0.01
    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def __post_init__(self) -> None:
        if not self.lam > 0:
            raise ValueError(f"lam must be above 0, got {self.lam}")

    def score(self, samples: Samples) -> Tensor:
        """Return the norm of each sample's influence."""
        return influences(samples, self.lam).diagonal().sqrt()


def influences(samples: Samples, lam: float) -> Products:
    """Return the products of ``H^-1 g_i``, factored: ``(B^-1 e_i) (x) (A^-1 [h_i; 1])``."""
    features, logits = needed(samples.features, "features"), needed(samples.logits, "logits")
    inner, outer = _feature_factor(features, lam), _output_factor(samples, lam)
    n, classes, width = len(samples), logits.shape[1], features.shape[1]
    # Into whole tensors: a list of parts and what they are joined to would be twice as much.
    left = wide(logits[:0]).new_empty(n, classes)
    right = wide(features[:0]).new_empty(n, width + 1)
    for rows in slices(n, classes + width):
        part = samples.take(rows)
        left[rows] = torch.cholesky_solve(part.errors().double().T, outer).T
        right[rows] = torch.cholesky_solve(_with_one(features[rows]).double().T, inner).T
    return Products((left, right), (0.0, 0.0))


def _with_one(features: Tensor) -> Tensor:
    ones = features.new_ones(len(features), 1)
    return wide(torch.cat((features, ones), dim=1))


def _feature_factor(features: Tensor, lam: float) -> Tensor:
    """Return the Cholesky factor of A, float64."""
    total: Tensor | None = None
    for rows in slices(len(features), features.shape[1]):
        part = _with_one(features[rows]).double()
        total = part.T @ part if total is None else total.add_(part.T @ part)
    assert total is not None
    return _damped(total / len(features), lam)


def _output_factor(samples: Samples, lam: float) -> Tensor:
    """Return the Cholesky factor of B, float64."""
    logits = needed(samples.logits, "logits")
    total = logits.new_zeros(logits.shape[1], logits.shape[1], dtype=torch.float64)
    for rows in slices(len(samples), logits.shape[1]):
        chances = samples.take(rows).log_chances().double().exp()
        total += torch.diag(chances.sum(0)) - chances.T @ chances
    return _damped(total / len(samples), lam)


def _damped(matrix: Tensor, lam: float) -> Tensor:
    return lower_factor(matrix + lam * torch.eye(len(matrix)).to(matrix))
