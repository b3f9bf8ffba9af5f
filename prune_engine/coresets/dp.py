# SPDX-License-Identifier: Apache-2.0
"""Dataset pruning: leave out what together moves the last layer least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.influence import influences
from prune_engine.coresets.method import Method, Pick, Samples
from prune_engine.coresets.pairs import Products, kept, slices
from prune_engine.ops.to_host import host_ints


@dataclass(frozen=True)
class DatasetPruning(Method):
    """Prune N - k samples whose influences add up to the shortest vector that greed and swaps find.

    ``min || sum_{i pruned} S_i ||`` with ``S_i = -H^-1 g_i / N`` (Yang et al., "Dataset Pruning:
    Reducing Training Data by Examining Generalization Influence", ICLR 2023, eq. 4). The paper's
    boolean programme has no open solver of this size: here one sample after the other whose
    influence leaves the sum shortest, then exchanges of a pruned for a kept one, each the best of
    its pruned sample, until none shortens it. H as in ``Influence``.

    Args:
        lam: as in ``Influence``, above 0.
        sweeps: over all pruned samples at most, in search of exchanges; 0: greed alone.

    Raises:
        ValueError: a number is too small.

    Example:
        >>> h = torch.tensor([[1.0], [1.0], [4.0]])
        >>> z, y = torch.zeros(3, 2), torch.tensor([0, 1, 0])
        >>> DatasetPruning().pick(Samples(torch.arange(3), h, z, y), 1).order.tolist()
        [2]
    """

    lam: float = 0.01
    sweeps: int = 20
    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def __post_init__(self) -> None:
        if not self.lam > 0 or self.sweeps < 0:
            raise ValueError(
                f"lam must be above 0 and sweeps at least 0, got {self.lam} and {self.sweeps}"
            )

    def prepare(self, samples: Samples) -> Samples:
        """Invert the matrix of all samples once."""
        return replace(samples, gradients=influences(samples, self.lam))

    def pick(self, samples: Samples, k: int) -> Pick:
        """Prune n - k, and keep the rest: those of the largest influences first."""
        products = samples.last_layer()
        lengths = products.diagonal().double()
        pruned = _greedy(products, lengths, len(samples) - k)
        if 0 < k < len(samples):
            _exchange(products, lengths, pruned, self.sweeps)
        order = torch.sort(lengths, stable=True, descending=True).indices
        samples.report(k)
        return Pick(order[~pruned[order]])


def _greedy(products: Products, lengths: Tensor, count: int) -> Tensor:
    """Return a mask of ``count`` samples, each the one that leaves the shortest sum."""
    matrix, n = kept(products), len(lengths)
    along = torch.zeros_like(lengths)  # <sum of the pruned, S_j>
    taken = torch.zeros_like(lengths)
    for _ in range(count):
        best = (lengths + 2 * along + taken).argmin()[None]
        taken.index_fill_(0, best, torch.inf)
        along += matrix.block(slice(0, n), best)[:, 0]
    return torch.isinf(taken)


def _exchange(products: Products, lengths: Tensor, pruned: Tensor, sweeps: int) -> None:
    """Swap pruned and kept samples while that shortens the sum; change the mask."""
    matrix, n = kept(products), len(lengths)
    along = products.along(products.total(pruned.double()))
    least = 1e-9 * float(lengths.mean())  # what rounding alone may give
    by_length = torch.sort(lengths, stable=True, descending=True).indices
    for _ in range(sweeps):
        swapped = False
        outside = by_length[pruned[by_length]]
        for part in slices(len(outside), n):
            entries = matrix.block(outside[part], slice(0, n))
            for i, row in zip(host_ints(outside[part]), entries, strict=True):
                # | s - S_i + S_j |^2 - | s |^2
                change = lengths + lengths[i] + 2 * (along - along[i] - row)
                change = torch.where(pruned, torch.inf, change)
                j = int(change.argmin())
                if float(change[j]) >= -least:
                    continue
                pruned[i], pruned[j] = False, True
                column = matrix.block(slice(0, n), torch.tensor([j], device=row.device))
                along += column[:, 0] - row
                swapped = True
        if not swapped:
            return
