# SPDX-License-Identifier: Apache-2.0
"""ReLU and its moments in plain torch: the specification."""

from __future__ import annotations

from torch import Tensor

from prune_engine.backends.reference.moments import moments_of


def relu_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """ReLU of x, and the moments of the result.

    Args:
        x: dense floating tensor of any shape.

    Returns:
        The shape, dtype and layout of x; float64 [3].

    Example:
        >>> import torch
        >>> relu_moments(torch.tensor([-1.0, 4.0]))
        (tensor([0., 4.]), tensor([2., 2., 8.], dtype=torch.float64))
    """
    y = x.relu()
    return y, moments_of(y, 1)


def relu_moments_(x: Tensor) -> Tensor:
    """ReLU of x in place, and the moments of the result.

    Args:
        x: dense floating tensor of any shape, changed.

    Returns:
        float64 [3].

    Example:
        >>> import torch
        >>> relu_moments_(torch.tensor([-1.0, 4.0])).tolist()
        [2.0, 2.0, 8.0]
    """
    return moments_of(x.relu_(), 1)
