# SPDX-License-Identifier: Apache-2.0
"""The threshold below which a score is strictly below the mean."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import SUM_WORDS
from prune_engine.ops.checks import check_vector


def mean_threshold(score_sum: Tensor, *, backend: str = "auto") -> Tensor:
    """Turn the exact running sum into the mean threshold, in O(1) on the device.

    The smallest float32 x with ``x >= sum / number seen``: for every float32 score, ``score <
    threshold`` says exactly ``score < mean`` (InfoBatch, ICLR 2024, eq. 4; SEMANTICS 3.2). With
    nothing seen it is -FLT_MAX: nobody is below.

    Args:
        score_sum: [10] int64: nine limbs of 32 bits in units of 2^-149, number seen.
        backend: which kernels.

    Returns:
        float32 [1] on the same device.

    Raises:
        ValueError: not a vector of ten.
        TypeError: not int64.

    Example:
        >>> one = 1 << 149 - 4 * 32  # limb 4 of the score 1.0
        >>> mean_threshold(torch.tensor([0, 0, 0, 0, one, 0, 0, 0, 0, 2])).item()
        0.5
    """
    check_vector("score_sum", score_sum, (torch.int64,), size=SUM_WORDS)
    return backends.kernels_for(backend, score_sum).mean_threshold(score_sum.contiguous())
