# SPDX-License-Identifier: Apache-2.0
"""The samples with the longest error vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_engine.coresets.method import Samples, Scored, needed
from prune_engine.losses import scores


@dataclass(frozen=True)
class EL2N(Scored):
    """The largest ``|| p - onehot(y) ||`` (``pe.scores.el2n``; Paul et al., NeurIPS 2021).

    The paper averages over several models early in their training: pass ``scores=pe.scores.mean(
    runs)``.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[9.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])
        >>> EL2N().score(Samples(torch.arange(2), logits=z, targets=y)).argmax().item()
        1
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "targets")
    alone: ClassVar[bool] = True

    def score(self, samples: Samples) -> Tensor:
        """Return the length of the error."""
        return scores.el2n(needed(samples.logits, "logits"), needed(samples.targets, "targets"))
