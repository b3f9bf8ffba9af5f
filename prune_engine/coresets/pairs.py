# SPDX-License-Identifier: Apache-2.0
"""Matrices of all pairs of n samples that are computed by the block and never whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from prune_engine.losses.reduce import wide_dtype

ENTRIES = 2**22  # of a block: 16 MiB of float32
SMALL = 4096  # up to as many samples the matrix is kept: at most 64 MiB of float32


class Matrix(Protocol):
    """A symmetric matrix [n, n]."""

    def __len__(self) -> int:
        """Return n."""
        ...

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        ...


def slices(n: int, width: int) -> Iterator[slice]:
    """Cut n rows into runs whose blocks of a width have a bounded number of entries."""
    step = max(16, ENTRIES // max(1, width))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


@dataclass(frozen=True)
class Dense:
    """A small matrix, computed once."""

    entries: Tensor

    def __len__(self) -> int:
        """Return n."""
        return len(self.entries)

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        if isinstance(rows, Tensor) and isinstance(columns, Tensor):
            return self.entries[rows[:, None], columns]  # and not whole rows first
        return self.entries[rows][:, columns]

    def take(self, positions: Tensor) -> Dense:
        """Return the matrix of some samples."""
        return Dense(self.block(positions, positions))

    def sums(self) -> Tensor:
        """Return the sums of the columns, float64 [n]."""
        return self.entries.sum(dim=0, dtype=torch.float64)

    def diagonal(self) -> Tensor:
        """Return the entry of each sample with itself, float64 [n]."""
        return self.entries.diagonal().double()


M = TypeVar("M", bound=Matrix)


def few(n: int) -> bool:
    """Return whether the matrix of so many samples is kept."""
    return n <= SMALL


def kept(matrix: M) -> M | Dense:
    """Return the matrix itself, or its entries where they are few."""
    if not few(len(matrix)) or isinstance(matrix, Dense):
        return matrix
    return Dense(matrix.block(slice(0, len(matrix)), slice(0, len(matrix))))


@dataclass(frozen=True)
class Products:
    """Inner products of outer products: ``K_ij = prod_f (x_fi . x_fj + b_f)``.

    Of last-layer gradients ``g_i = e_i (x) [h_i; 1]``: ``(e_i . e_j)(h_i . h_j + 1)``.

    Args:
        factors: one or two of [n, width] each.
        biases: b of each.
        centre: [width], what is taken from each row of the first factor as it is read.
    """

    factors: tuple[Tensor, ...]
    biases: tuple[float, ...]
    centre: Tensor | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.factors[0])

    @property
    def dtype(self) -> torch.dtype:
        """float64 where a factor is that, else float32."""
        double = any(factor.dtype == torch.float64 for factor in self.factors)
        return torch.float64 if double else torch.float32

    def take(self, positions: Tensor | slice) -> Products:
        """Return the products of some samples."""
        factors = tuple(factor[positions] for factor in self.factors)
        return Products(factors, self.biases, self.centre)

    def rows(self, positions: Tensor | slice) -> list[Tensor]:
        """Return each factor of some samples, wide enough to compute with."""
        found = [factor[positions].to(self.dtype) for factor in self.factors]
        if self.centre is not None:
            found[0] = found[0] - self.centre
        return found

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        result: Tensor | None = None
        for left, right, bias in zip(self.rows(rows), self.rows(columns), self.biases, strict=True):
            product = left @ right.T
            product = product.add_(bias) if bias else product
            result = product if result is None else result.mul_(product)
        assert result is not None
        return result

    def diagonal(self) -> Tensor:
        """Return K_ii, [n]."""
        # Into one tensor: small ones kept between large blocks leave no room to use again.
        found = self.factors[0].new_ones(len(self), dtype=self.dtype)
        for rows in slices(len(self), self.width):
            for factor, bias in zip(self.rows(rows), self.biases, strict=True):
                found[rows] *= factor.square().sum(dim=1) + bias
        return found

    @property
    def width(self) -> int:
        """Of both factors together."""
        return sum(factor.shape[1] for factor in self.factors)

    def total(self, weights: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` [widths of the factors and their biases], for ``along``."""
        total: Tensor | None = None
        for rows in slices(len(self), self.width):
            left, right = self._sides(rows)
            part = (left * weights[rows, None].to(self.dtype)).T @ right
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def along(self, total: Tensor) -> Tensor:
        """Return ``<g_i, total>`` of every sample, float64 [n]."""
        found = self.factors[0].new_empty(len(self), dtype=torch.float64)
        for rows in slices(len(self), self.width):
            left, right = self._sides(rows)
            found[rows] = ((left @ total) * right).sum(dim=1, dtype=torch.float64)
        return found

    def _sides(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return both factors with a column for their bias; a single one has a partner of ones."""
        sides: list[Tensor] = []
        for factor, bias in zip(self.rows(rows), self.biases, strict=True):
            root = torch.full_like(factor[:, :1], bias**0.5)
            sides.append(torch.cat((factor, root), dim=1) if bias else factor)
        if len(sides) == 1:
            sides.append(torch.ones_like(sides[0][:, :1]))
        return sides[0], sides[1]


class Cosines:
    """Similarities ``1/2 + 1/2 cos(g_i, g_j)``, in 0..1; a g of length 0 has a cosine of 0."""

    def __init__(self, products: Products) -> None:
        self.products = products
        squares = products.diagonal()
        self.scale = torch.where(squares > 0, squares, torch.inf).rsqrt()

    def __len__(self) -> int:
        """Return n."""
        return len(self.products)

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        cosines = self.products.block(rows, columns).mul_(self.scale[rows, None])
        return cosines.mul_(self.scale[columns]).mul_(0.5).add_(0.5)

    def take(self, positions: Tensor) -> Cosines:
        """Return the similarities of some samples."""
        return Cosines(self.products.take(positions))

    def sums(self) -> Tensor:
        """Return the sums of the columns, float64 [n]: O(n C d), not O(n^2)."""
        along = self.products.along(self.products.total(self.scale))
        return 0.5 * len(self) + 0.5 * self.scale * along

    def diagonal(self) -> Tensor:
        """Return the similarity of each sample to itself: 1, or 1/2 where its g is 0."""
        return 0.5 + 0.5 * (self.scale > 0).to(torch.float64)


class Distances:
    """Euclidean distances ``|g_i - g_j|``."""

    def __init__(self, products: Products) -> None:
        self.products = products
        self.squares = products.diagonal()

    def __len__(self) -> int:
        """Return n."""
        return len(self.products)

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        squares = self.products.block(rows, columns).mul_(-2)
        squares.add_(self.squares[rows, None]).add_(self.squares[columns])
        return squares.clamp_(min=0).sqrt_()


class Divergences:
    """Symmetric divergences of predictions: ``(KL(p_i || p_j) + KL(p_j || p_i)) / 2``.

    With ``l = log p`` and ``a_i = p_i . l_i`` it is ``(a_i + a_j - p_i . l_j - p_j . l_i) / 2``:
    two products, no quotient of chances, and finite for all finite logits.
    """

    def __init__(self, log_chances: Tensor) -> None:
        self.logs = log_chances
        self.chances = log_chances.exp()
        self.negentropy = (self.chances * self.logs).sum(dim=1)

    def __len__(self) -> int:
        """Return n."""
        return len(self.logs)

    def block(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return the entries of some rows and columns."""
        crossed = self.chances[rows] @ self.logs[columns].T
        crossed.add_(self.logs[rows] @ self.chances[columns].T).neg_()
        crossed.add_(self.negentropy[rows, None]).add_(self.negentropy[columns])
        return crossed.mul_(0.5).clamp_(min=0)


def feature_products(features: Tensor) -> Products:
    """Return the inner products of features by themselves."""
    return Products((features,), (0.0,))


def centred_products(features: Tensor) -> Products:
    """Return those of features less their mean, for what depends on differences alone.

    Of float32 features far from 0, as some networks have them, the products would be large numbers
    whose differences are rounding.
    """
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    for rows in slices(len(features), features.shape[1]):
        total += features[rows].sum(dim=0, dtype=torch.float64)
    centre = (total / max(1, len(features))).to(wide_dtype(features.dtype))
    return Products((features,), (0.0,), centre)


def wide(values: Tensor) -> Tensor:
    """Return values in float32, or float64 as they came."""
    return values.to(wide_dtype(values.dtype))
