# SPDX-License-Identifier: Apache-2.0
"""The mean threshold in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import (
    FLOAT32_MAX,
    MASK32,
    float_to_key,
    key_to_float,
    score_code,
)


def mean_threshold(score_sum: Tensor) -> Tensor:
    """The threshold below which a score is strictly below the mean.

    The smallest finite float32 x with ``code(x) >= ceil(sum of codes / number seen)``: then
    ``score < x`` exactly where the code of the score is below the mean of the codes.

    Args:
        score_sum: [3] int64: sum of high limbs, sum of low limbs, number seen n in [0, 2^31).

    Returns:
        float32 [1] on the device of score_sum, which is not read on the host. The lowest finite
        float32 if nothing was seen. Never -0.0, as the code of -2^-41 is 0 already.

    Example:
        >>> codes = score_code(torch.tensor([1.0, 2.0, 6.0]))
        >>> mean_threshold(torch.stack([(codes >> 32).sum(), (codes & MASK32).sum(),
        ...                             torch.tensor(3)]))
        tensor([3.])
    """
    high, low, seen = score_sum.unbind()
    divisor = seen.clamp(min=1)
    # Schoolbook long division in base 2^32. Carrying brings the low limb below 2^32; the remainder
    # of the high limb is below n < 2^31, so remainder * 2^32 + low stays below 2^63.
    high = high + (low >> 32)
    low = low & MASK32
    high_quotient = torch.div(high, divisor, rounding_mode="floor")
    rest = ((high - high_quotient * divisor) << 32) + low
    low_quotient = torch.div(rest, divisor, rounding_mode="floor")
    ceiling = (rest > low_quotient * divisor).to(torch.int64)
    mean_code = (high_quotient << 32) + low_quotient + ceiling

    # Binary search over the keys of the finite floats: codes ascend with keys, the answer is never
    # outside [first, last], and 32 halvings leave one of fewer than 2^32 keys.
    bounds = score_sum.new_tensor([-FLOAT32_MAX, FLOAT32_MAX], dtype=torch.float32)
    lowest, last = float_to_key(bounds).unbind()
    first = lowest
    for _ in range(32):
        middle = (first + last) >> 1
        reached = score_code(key_to_float(middle)) >= mean_code
        first, last = torch.where(reached, first, middle + 1), torch.where(reached, middle, last)
    return key_to_float(torch.where(seen == 0, lowest, last)).reshape(1)
