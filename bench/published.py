# SPDX-License-Identifier: Apache-2.0
"""The steps of the published InfoBatch planner, update and sampler, restated as a baseline.

Written from the list of steps and containers of NUS-HPC-AI-Lab/InfoBatch at 8bbb012 (single
process): float32 torch tensors for scores and weights, a Python list for the epoch's order. Only
what costs time is restated. Differences, on purpose:

- A `numpy.random.RandomState` is passed in where the published code reseeds and uses NumPy's global
  generator. Its methods `choice` and `shuffle` are the ones behind `np.random.choice` and
  `np.random.shuffle`: same algorithms, same draws for the same seed, same cost.
- `Sampler.__iter__` does not plan again. The published one does, and current torch calls it before
  every batch, so the published loop does not end (pytorch/pytorch#137423).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class Published:
    """Scores, weights and one epoch's order, kept as the published code keeps them."""

    def __init__(self, scores: Tensor, prune_ratio: float, random: np.random.RandomState) -> None:
        """Takes scores float32 [N] (not copied: `update` writes into them) and r in [0, 0.9]."""
        self.scores = scores
        self.weights = torch.ones(scores.shape[0])
        self.keep_ratio = 1.0 - prune_ratio
        self.random = random

    def plan(self) -> list[int]:
        """One epoch: all samples not below the mean and floor((1 - r) n) of the n below it.

        Returns:
            The shuffled order, a list of int and np.int64 mixed, as in the published code.
        """
        low_mask = (self.scores < self.scores.mean()).numpy()
        low = np.where(low_mask)[0]
        order: list[int] = np.where(~low_mask)[0].tolist()
        kept_low = self.random.choice(low, int(self.keep_ratio * len(low)), replace=False)
        self.weights[:] = 1
        if len(kept_low) > 0:
            self.weights[kept_low] = 1 / self.keep_ratio
            order.extend(kept_low)
        self.random.shuffle(order)
        return order

    def update(self, losses: Tensor, indices: Tensor) -> Tensor:
        """One step: records the losses, scales them IN PLACE, returns their mean.

        Args:
            losses: float32 [B]; changed; must not be a leaf that requires grad.
            indices: int64 [B].
        """
        device = losses.device
        batch_weights = self.weights[indices].to(device)
        indices = indices.to(device)
        observed = losses.detach().clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise RuntimeError("Published.update: expected a single process, got a process group")
        self.scores[indices.cpu().long()] = observed.cpu()
        losses.mul_(batch_weights)
        return losses.mean()


class Sampler:
    """Serves an order one index a `__next__` call, as the published sampler does."""

    def __init__(self, order: list[int]) -> None:
        """Keeps the order and starts at its first index."""
        self._order = order
        self._iterator = iter(order)

    def __iter__(self) -> Iterator[int]:
        """The object itself, where it stands."""
        return self

    def __next__(self) -> int:
        """The next index."""
        return next(self._iterator)

    def __len__(self) -> int:
        """The number of indices in the epoch."""
        return len(self._order)
