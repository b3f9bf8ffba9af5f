# SPDX-License-Identifier: Apache-2.0
"""gelu_moments in Triton: one launch writes and measures, one adds up."""

import torch
from torch import Tensor

from prune_engine.backends.triton.moments import GELU, GELU_TANH, written


def gelu_moments(x: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """GELU and its moments; see ``reference.gelu_moments``."""
    y = torch.empty_like(x)
    return y, written(x, y, GELU_TANH if tanh else GELU)
