# SPDX-License-Identifier: Apache-2.0
"""The largest of any score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_engine.coresets.method import Samples, Scored, needed


@dataclass(frozen=True)
class Hardest(Scored):
    """The k largest scores: of ``pe.scores``, of ``TrainingDynamics``, of anything else.

    Example:
        >>> import torch
        >>> samples = Samples(torch.arange(3), scores=torch.tensor([1.0, 3.0, 2.0]))
        >>> Hardest().pick(samples, 2).order.tolist()
        [1, 2]
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    def score(self, samples: Samples) -> Tensor:
        """Return what was given."""
        return needed(samples.scores, "scores")
