# SPDX-License-Identifier: Apache-2.0
"""The mean threshold in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32
from prune_engine.bands import LIMBS

_LOWEST_BITS = 0xFF7FFFFF  # of -FLT_MAX
_SIGN = 1 << 31


def mean_threshold(score_sum: Tensor) -> Tensor:
    """The threshold below which a score is strictly below the mean.

    The smallest float32 x with ``x * seen >= sum``. A long division gives the two highest digits,
    of 32 bits, of ``|sum| / seen`` in units of 2^-149, and whether anything lies below them. The
    float32 of r dropped bits is ``(r << 23) + the 24 bits that stay``, in bits, for subnormals
    too; the next larger one is 1 more.

    Args:
        score_sum: [10] int64: nine limbs of 32 bits, number seen n in [0, 2^31).

    Returns:
        float32 [1] on the device of score_sum, which is not read on the host. The lowest finite
        float32 if nothing was seen. Never -0.0.

    Example:
        >>> from prune_engine.backends.reference.arithmetic import float_to_key
        >>> from prune_engine.backends.reference.observe import limb_sums
        >>> mean_threshold(limb_sums((1 << 32) | float_to_key(torch.tensor([1.0, 2.0, 6.0]))))
        tensor([3.])
    """
    seen = score_sum[LIMBS]
    digits, negative = _digits(score_sum)
    at, upper, lower, rest = _quotient(digits, seen.clamp(min=1))
    # The bit length; exact, for every number of 32 bits is a float64.
    length = torch.frexp(upper.to(torch.float64)).exponent.to(torch.int64)
    down = 8 + length  # places of the window upper : lower that a float has no room for
    down = torch.where(at <= 0, down.clamp(min=32), down)  # a subnormal has no digit below
    far, near = (down - 32).clamp(min=0), down.clamp(max=32)
    top = torch.where(down > 32, upper >> far, (upper << (32 - near)) | (lower >> near))
    one = torch.ones_like(down)
    lost = torch.where(down > 32, (upper & ((one << far) - 1)) | lower, lower & ((one << near) - 1))
    magnitude = ((32 * (at - 1) + down).clamp(min=0) << 23) + top
    up = ((lost | rest) != 0).to(torch.int64)
    towards_zero = torch.where(magnitude == 0, 0, magnitude | _SIGN)
    bits = torch.where(negative, towards_zero, magnitude + up)
    bits = torch.where(seen <= 0, _LOWEST_BITS, bits)
    return ((bits ^ _SIGN) - _SIGN).to(torch.int32).view(torch.float32).reshape(1)


def _digits(score_sum: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return |sum| in ten digits of 32 bits, the lowest first, and whether the sum is negative."""
    digits: list[Tensor] = []
    carry = torch.zeros_like(score_sum[0])
    for limb in score_sum[:LIMBS]:
        carried = limb + carry  # |carry| <= 2^31: no overflow for n < 2^31
        digits.append(carried & MASK32)
        carry = carried >> 32
    negative = carry < 0
    digits.append(carry & MASK32)
    flip, one = torch.where(negative, MASK32, 0), negative.to(torch.int64)
    for j, digit in enumerate(digits):
        flipped = (digit ^ flip) + one
        digits[j], one = flipped & MASK32, flipped >> 32
    return digits, negative


def _quotient(digits: list[Tensor], divisor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide: the place of the highest digit (-1: there is none), it, the next, what is left."""
    zero = torch.zeros_like(divisor)
    rest, first, following, sticky, at = zero, zero, zero, zero, zero - 1
    for j in range(len(digits) - 1, -1, -1):
        here = (rest << 32) | digits[j]  # below 2^63: rest < n < 2^31
        hit = (at < 0) & (here >= divisor)
        following = torch.where(at == j + 1, digits[j], following)
        sticky = torch.where(at > j + 1, sticky | digits[j], sticky)
        first = torch.where(hit, here, first)
        rest = torch.where((at < 0) & ~hit, here, rest)
        at = torch.where(hit, j, at)
    upper = torch.div(first, divisor, rounding_mode="floor")
    left = first - upper * divisor
    here = (left << 32) | following
    lower = torch.div(here, divisor, rounding_mode="floor")
    after = here - lower * divisor
    rest = torch.where(at < 0, rest, torch.where(at > 0, after, left))
    return at, upper, torch.where(at > 0, lower, 0), rest | sticky
