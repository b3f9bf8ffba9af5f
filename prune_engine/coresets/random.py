# SPDX-License-Identifier: Apache-2.0
"""A subset at random: what every other method is to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prune_engine.coresets.method import Method, Pick, Samples


@dataclass(frozen=True)
class Random(Method):
    """The k samples that come first in the draw, which is keyed by seed and index.

    Example:
        >>> Random().pick(Samples(torch.tensor([2, 0, 1])), 2).order.tolist()
        [1, 2]
    """

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take the k of the lowest rank."""
        samples.report(k)
        return Pick(torch.argsort(samples.rank)[:k])
