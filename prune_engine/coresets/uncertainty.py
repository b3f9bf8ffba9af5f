# SPDX-License-Identifier: Apache-2.0
"""The samples that a model is least sure of (Coleman et al., ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_engine.coresets.method import Samples, Scored, needed
from prune_engine.losses import scores


@dataclass(frozen=True)
class LeastConfidence(Scored):
    """The largest ``1 - max_c p[c]`` (``pe.scores.least_confidence``).

    Example:
        >>> import torch
        >>> z = torch.tensor([[9.0, 0.0], [1.0, 0.0]])
        >>> LeastConfidence().score(Samples(torch.arange(2), logits=z)).argmax().item()
        1
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    alone: ClassVar[bool] = True

    def score(self, samples: Samples) -> Tensor:
        """Return one minus the largest probability."""
        return scores.least_confidence(needed(samples.logits, "logits"))


@dataclass(frozen=True)
class Entropy(Scored):
    """The largest ``-sum_c p[c] log p[c]`` (``pe.scores.entropy``).

    Example:
        >>> import torch
        >>> z = torch.tensor([[9.0, 0.0], [1.0, 0.0]])
        >>> Entropy().score(Samples(torch.arange(2), logits=z)).argmax().item()
        1
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    alone: ClassVar[bool] = True

    def score(self, samples: Samples) -> Tensor:
        """Return the entropy."""
        return scores.entropy(needed(samples.logits, "logits"))


@dataclass(frozen=True)
class Margin(Scored):
    """The smallest lead of the likeliest class: the largest ``pe.scores.margin``.

    Example:
        >>> import torch
        >>> z = torch.tensor([[9.0, 0.0], [1.0, 0.0]])
        >>> Margin().score(Samples(torch.arange(2), logits=z)).argmax().item()
        1
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    alone: ClassVar[bool] = True

    def score(self, samples: Samples) -> Tensor:
        """Return one minus the lead."""
        return scores.margin(needed(samples.logits, "logits"))
