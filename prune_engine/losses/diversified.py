# SPDX-License-Identifier: Apache-2.0
"""DivBS: a choice within a batch that stands for its mean gradient without saying a thing twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prune_engine.errors import StateMismatchError
from prune_engine.losses.checks import check_number
from prune_engine.losses.scores import check_last_layer

NOTHING = 1e-9  # of a sum or a square: what is left of it below this share is rounding in float64


class DivBS:
    """By what each adds to the batch's mean gradient beside those chosen before it.

    Diversified Batch Selection (Hong et al., ICML 2024, arXiv 2406.04872): with g the gradients of
    the last, linear layer, ``(p - onehot(y)) (h, 1)^T``, and r their mean, choose the largest
    ``|<g, r>|``, take the direction of its part orthogonal to those chosen before out of r, and go
    on, k times. Choose with ``pick(rule="top")``; no weights, so the gradient is biased. Ours: the
    largest is chosen where the published code draws in proportion to it; what is left once r is
    used up comes in the order of the batch; gradients are never made, their products are (float64,
    O(B^2 (C + D + k)) in all), in k steps, none of which waits for the device. Rounding may decide
    between equals, so backends agree but for ties.

    Args:
        k: how many are chosen of a batch.
        bias: whether the last layer has one.

    Raises:
        TypeError: k is no int.
        ValueError: k is out of range.

    Example:
        >>> logits, targets = torch.zeros(3, 2), torch.tensor([0, 0, 1])
        >>> features = torch.tensor([[3.0], [3.0], [0.5]])  # the first two are the same sample
        >>> DivBS(k=2).values(logits, targets, features).tolist()
        [2.0, 0.0, 1.0]
    """

    def __init__(self, k: int, *, bias: bool = True) -> None:
        self.k = check_number("k", k, 1)
        self.bias = bias

    def values(self, logits: Tensor, targets: Tensor, features: Tensor) -> Tensor:
        """Return what to pick a batch by, with ``rule="top"``.

        Args:
            logits: [B, C] floating; no gradient flows through any of these.
            targets: [B] int64 in 0..C-1.
            features: [B, D], what the last layer was given.

        Returns:
            float32 [B]: k for the first that is chosen, k - 1 for the second, ...; 0 for the
            others, nan where a sample's numbers are not finite.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: a shape does not fit.
        """
        check_last_layer(logits, targets, features)
        products, finite = self._products(logits.detach(), targets, features.detach())
        taken, values = ~finite, torch.zeros_like(finite, dtype=torch.float32)
        steps, places = min(self.k, taken.shape[0]), torch.arange(len(taken), device=taken.device)
        onto = products.sum(dim=1) / max(1, len(taken))  # <g, r>
        least = NOTHING * onto.abs().sum()
        basis = products.new_zeros((steps, len(taken)))  # <g, e> of each direction taken so far
        for step in range(steps):
            size = torch.where(onto.abs() > least, onto.abs(), 0.0)
            at = torch.where(taken, -1.0, size).argmax().view(1)
            here = (places == at) & ~taken
            values = torch.where(here, float(self.k - step), values)
            taken = taken | here
            along, length = _direction(products, basis[:step], at)
            basis[step] = along
            # What r has of the new direction is what the chosen one has of r, over its length.
            share = torch.where(length > 0, onto.index_select(0, at) / length, 0.0)
            onto = onto - along * share
        return torch.where(finite, values, torch.nan)

    def _products(self, logits: Tensor, targets: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return every <g_i, g_j>, and which samples are finite; those that are not are 0."""
        finite = logits.isfinite().all(dim=1) & features.isfinite().all(dim=1)
        wide = torch.where(finite[:, None], logits, 0.0).to(torch.float64).softmax(dim=1)
        hot = torch.nn.functional.one_hot(targets.to(torch.int64), logits.shape[1])
        error = torch.where(finite[:, None], wide - hot, 0.0)
        given = torch.where(finite[:, None], features, 0.0).to(torch.float64)
        return (error @ error.T) * (given @ given.T + float(self.bias)), finite

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a batch is chosen by itself."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            StateMismatchError: it is something.
        """
        if state:
            raise StateMismatchError(f"the state does not fit: expected none, got {sorted(state)}")


def _direction(products: Tensor, basis: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return every <g, e> of a sample's new direction e, and the length of its orthogonal part."""
    own = basis.index_select(1, at)
    rest = products.index_select(0, at)[0] - (own * basis).sum(dim=0)
    square = rest.index_select(0, at)
    whole = products.diagonal().index_select(0, at)
    length = torch.where(square > NOTHING * whole, square, 0.0).sqrt()
    return torch.where(length > 0, rest / length, 0.0), length
