# SPDX-License-Identifier: Apache-2.0
"""The samples that were forgotten most often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.method import Pick, Samples, Scored, needed


@dataclass(frozen=True)
class Forgetting(Scored):
    """The most forgetting events; never learned is more than any number of them.

    ``scores=pe.scores.forgetting_events(engine.scores())`` of a training that recorded
    ``score="forgetting"``; inf is never learned (Toneva et al., "An Empirical Study of Example
    Forgetting", ICLR 2019, section 3). Nothing else can give them: a single pass has no events.

    Args:
        published: never learned counts as never forgotten, as in the public code that most tables
            come from (DeepCore): to reproduce its row, and for nothing else.

    Example:
        >>> events = torch.tensor([0.0, 3.0, torch.inf])
        >>> samples = Samples(torch.arange(3), scores=events)
        >>> Forgetting().pick(samples, 1).order.tolist()
        [2]
        >>> Forgetting(published=True).pick(samples, 1).order.tolist()
        [1]
    """

    published: bool = False
    needs: ClassVar[tuple[str, ...]] = ("scores",)

    def score(self, samples: Samples) -> Tensor:
        """Return what was recorded."""
        return needed(samples.scores, "scores")

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take the k most forgotten."""
        if not self.published:
            return super().pick(samples, k)
        events = self.score(samples)
        events = torch.where(torch.isinf(events), 0, events)
        samples.report(k)
        return Pick(torch.sort(events, stable=True, descending=True).indices[:k])
