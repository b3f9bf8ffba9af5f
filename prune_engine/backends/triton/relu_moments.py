# SPDX-License-Identifier: Apache-2.0
"""relu_moments in Triton, also in place: one launch writes and measures, one adds up."""

import torch
from torch import Tensor

from prune_engine.backends.triton.moments import RELU, written


def relu_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """ReLU and its moments; see ``reference.relu_moments``."""
    y = torch.empty_like(x)
    return y, written(x, y, RELU)


def relu_moments_(x: Tensor) -> Tensor:
    """ReLU in place and its moments; see ``reference.relu_moments_``."""
    return written(x, x, RELU)
