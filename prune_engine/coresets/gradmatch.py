# SPDX-License-Identifier: Apache-2.0
"""GradMatch: few gradients, weighed, that add up to those of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.linear import lower_factor, solve_lower
from prune_engine.coresets.method import Method, Pick, Samples
from prune_engine.coresets.pairs import Dense, kept
from prune_engine.ops.to_host import host_ints


@dataclass(frozen=True)
class GradMatch(Method):
    """Orthogonal matching pursuit of the sum of all gradients, with weights of at least 0.

    ``min_{w >= 0, |S| <= k} || sum_{i in S} w_i g_i - sum_i g_i ||^2 + lam || w ||^2`` with the
    last layer's gradients: take the largest ``<g_i, r>`` of the residual r, refit all weights,
    repeat (Killamsetty et al., "GRAD-MATCH", ICML 2021, algorithm 2). Exactly k are taken: one that
    no longer helps has weight 0.

    Args:
        lam: of the ridge, above 0.

    Raises:
        ValueError: lam is not above 0.

    Example:
        >>> h = torch.tensor([[3.0], [1.0], [1.0]])
        >>> z, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
        >>> GradMatch().pick(Samples(torch.arange(3), h, z, y), 1).order.tolist()
        [0]
    """

    lam: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def __post_init__(self) -> None:
        if not self.lam > 0:
            raise ValueError(f"lam must be above 0, got {self.lam}")

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take k times the largest product with the residual."""
        products = samples.last_layer()
        source, n = kept(products), len(samples)
        ones = torch.ones(n, dtype=torch.float64, device=samples.rank.device)
        target = products.along(products.total(ones))
        taken, weights = torch.zeros_like(ones), torch.zeros_like(ones)
        whole = source.entries.double() if isinstance(source, Dense) else None
        fit = _Fit(k, self.lam, ones.device)
        order = torch.empty(k, dtype=torch.int64, device=ones.device)
        for step in range(k):
            if whole is not None:
                match = target - whole @ weights
            else:
                match = products.along(products.total(1 - weights))
            best = (match + taken).argmax()
            taken.index_fill_(0, best[None], -torch.inf)
            order[step] = best
            chosen = order[: step + 1]
            column = source.block(chosen, best[None])[:, 0].double()
            weights = torch.zeros_like(ones)
            weights[chosen] = fit.add(column, target[best])
            samples.report(1)
        return Pick(order, weights[order].to(torch.float32))


class _Fit:
    """Least squares with a ridge and no negative weight, as columns come one by one.

    Active sets after Lawson and Hanson (1974, chapter 23), from the last solution on; the factor of
    Cholesky grows by a row per column.
    """

    def __init__(self, size: int, lam: float, device: torch.device) -> None:
        self.lam, self.count = lam, 0
        self.gram = torch.zeros((size, size), dtype=torch.float64, device=device)
        self.target = torch.zeros(size, dtype=torch.float64, device=device)
        self.factor = torch.zeros((size, size), dtype=torch.float64, device=device)
        self.active: list[int] = []
        self.weights = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, column: Tensor, target: Tensor) -> Tensor:
        """Take one more column of the Gram matrix; return the weights of all so far."""
        new = self.count
        self.count += 1
        self.gram[: self.count, new] = column
        self.gram[new, : self.count] = column
        self.gram[new, new] += self.lam
        self.target[new] = target
        entering: int | None = new
        tolerance = 1e-10 * float(self.gram[new, new]) * max(1.0, float(self.weights.max()))
        tolerance = max(tolerance, 1e-10 * float(self.target[: self.count].abs().max()))
        for _ in range(3 * self.count):
            size = self.count
            slope = self.target[:size] - self.gram[:size, :size] @ self.weights[:size]
            if self.active:
                slope[torch.tensor(self.active, device=slope.device)] = -torch.inf
            best = int(slope.argmax()) if entering is None else entering
            entering = None
            if float(slope[best]) <= tolerance:
                break
            self._enter(best)
            self._settle()
        return self.weights[: self.count]

    def _enter(self, index: int) -> None:
        size = len(self.active)
        if size:
            part = self.gram[index, torch.tensor(self.active, device=self.gram.device)]
            known = self.factor[:size, :size]
            row = solve_lower(known, part)
            self.factor[size, :size] = row
            rest = self.gram[index, index] - row.square().sum()
        else:
            rest = self.gram[index, index]
        self.factor[size, size] = rest.clamp(min=self.lam * 1e-6).sqrt()
        self.active.append(index)

    def _settle(self) -> None:
        """Solve for the active ones; while one is negative, go as far as 0 and let it go."""
        while True:
            rows = torch.tensor(self.active, device=self.gram.device)
            size = len(self.active)
            solved = torch.cholesky_solve(
                self.target[rows][:, None], self.factor[:size, :size], upper=False
            )[:, 0]
            if bool((solved > 0).all()):
                self.weights.zero_()
                self.weights[rows] = solved
                return
            before = self.weights[rows]
            falling = solved <= 0
            reach = torch.where(falling, before / (before - solved).clamp(min=1e-300), torch.inf)
            step = float(reach.min())
            moved = before + step * (solved - before)
            stays = ~(falling & (reach <= step))
            self.weights.zero_()
            self.weights[rows] = torch.where(stays, moved, 0)
            self.active = host_ints(rows[stays])
            if not self.active:
                return
            rows = rows[stays]
            size = len(self.active)
            self.factor[:size, :size] = lower_factor(self.gram[rows][:, rows])
