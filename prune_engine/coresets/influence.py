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
    errors, features = samples.errors(), needed(samples.features, "features")
    inner, outer = _feature_factor(features, lam), _output_factor(samples.log_chances(), lam)
    moved = torch.cholesky_solve(errors.double().T, outer).T.to(errors.dtype)
    parts: list[Tensor] = []
    for rows in slices(len(features), features.shape[1]):
        part = torch.cholesky_solve(_with_one(features[rows]).double().T, inner).T
        parts.append(part.to(wide(features[:0]).dtype))
    return Products((moved, torch.cat(parts)), (0.0, 0.0))


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


def _output_factor(log_chances: Tensor, lam: float) -> Tensor:
    """Return the Cholesky factor of B, float64."""
    chances = log_chances.double().exp()
    return _damped((torch.diag(chances.sum(0)) - chances.T @ chances) / len(chances), lam)


def _damped(matrix: Tensor, lam: float) -> Tensor:
    return lower_factor(matrix + lam * torch.eye(len(matrix)).to(matrix))
