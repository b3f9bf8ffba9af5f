# SPDX-License-Identifier: Apache-2.0
"""GELU and its moments in plain torch: the specification."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu

from prune_engine.backends.reference.moments import moments_of


def gelu_moments(x: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """GELU of x, and the moments of the result as it is stored.

    Args:
        x: dense floating tensor of any shape.
        tanh: whether to take the tanh approximation.

    Returns:
        The shape, dtype and layout of x; float64 [3].

    Example:
        >>> import torch
        >>> gelu_moments(torch.zeros(2), False)[0]
        tensor([0., 0.])
    """
    y = gelu(x, approximate="tanh" if tanh else "none")
    return y, moments_of(y, 1)
