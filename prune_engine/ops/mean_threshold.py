# SPDX-License-Identifier: Apache-2.0
"""The threshold below which a score is strictly below the mean."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.ops.checks import check_vector


def mean_threshold(score_sum: Tensor, *, backend: str = "auto") -> Tensor:
    """Turn the exact running sum into the mean threshold, in O(1) on the device.

    ``T = ceil(sum of codes / number seen)``; the threshold is the smallest float32 x with
    ``code(x) >= T``, so ``score < threshold`` is exactly ``code(score) < mean code`` (InfoBatch,
    ICLR 2024, eq. 4; SEMANTICS 3.2). With nothing seen it is -FLT_MAX: nobody is below.

    Args:
        score_sum: [3] int64: high limb, low limb, number seen.
        backend: which kernels.

    Returns:
        float32 [1] on the same device.

    Raises:
        ValueError: not a vector of three.
        TypeError: not int64.

    Example:
        >>> mean_threshold(torch.tensor([1 << 8, 0, 2])).item()  # code 2^40 is score 1.0
        0.5
    """
    check_vector("score_sum", score_sum, (torch.int64,), size=3)
    return backends.kernels_for(backend, score_sum).mean_threshold(score_sum.contiguous())
