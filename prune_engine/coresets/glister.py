# SPDX-License-Identifier: Apache-2.0
"""GLISTER: samples whose gradients lower the loss of a validation set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_engine.coresets.method import Method, Pick, Samples, needed
from prune_engine.coresets.pairs import wide


@dataclass(frozen=True)
class Glister(Method):
    """Greedy choice by the first-order gain in validation loss, renewed in rounds.

    A step on the chosen moves the last layer to ``theta_S = theta - lr sum_{i in S} g_i``; the next
    share of k are the largest ``<g_i, grad L_V(theta_S)>`` (Killamsetty et al., "GLISTER", AAAI
    2021, algorithm 2 with a Taylor approximation). Without a validation set the samples are their
    own.

    Args:
        lr: of that step.
        rounds: in which k is taken; the gradient of the validation loss is renewed between them.
        published: never renew it, as the public code does that most tables come from (DeepCore): to
            reproduce its row, and for nothing else.

    Raises:
        ValueError: a number is too small.

    Example:
        >>> h = torch.tensor([[3.0], [1.0]])
        >>> z, y = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)
        >>> Glister().pick(Samples(torch.arange(2), h, z, y), 1).order.tolist()
        [0]
    """

    lr: float = 0.01
    rounds: int = 15
    published: bool = False
    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.rounds < 1:
            raise ValueError(
                f"lr must be above 0 and rounds at least 1, got {self.lr} and {self.rounds}"
            )

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take k in rounds."""
        products = samples.last_layer()
        judges = samples if samples.validation is None else samples.validation
        taken = torch.zeros(len(samples), dtype=torch.float64, device=samples.rank.device)
        order: list[Tensor] = []
        for turn in range(self.rounds):
            count = k * (turn + 1) // self.rounds - k * turn // self.rounds
            if not count:
                continue
            if order and not self.published:
                picked = products.take(order[-1])
                judges = _moved(
                    judges, self.lr * picked.total(torch.ones_like(taken[: len(picked)]))
                )
            share = torch.full((len(judges),), 1 / len(judges), device=judges.rank.device)
            gains = products.along(judges.last_layer().total(share))
            best = torch.sort(gains + taken, stable=True, descending=True).indices[:count]
            taken[best] = -torch.inf
            order.append(best)
            samples.report(count)
        return Pick(torch.cat(order))


def _moved(judges: Samples, step: Tensor) -> Samples:
    """Return samples as the last layer sees them after a step [C, d + 1]."""
    features = wide(needed(judges.features, "features"))
    step = step.to(features.dtype)
    logits = wide(needed(judges.logits, "logits")) - (features @ step[:, :-1].T + step[:, -1])
    return Samples(judges.rank, features, logits, judges.targets)
