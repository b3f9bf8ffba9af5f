# SPDX-License-Identifier: Apache-2.0
"""mean_threshold in Triton: one program, O(1)."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.launch import launch


@triton.jit
def bit_length(x):
    """Of an int64 in [0, 2^32)."""
    length = x * 0
    for k in tl.static_range(5):
        step = 16 >> k
        high = x >> step
        length = tl.where(high != 0, length + step, length)
        x = tl.where(high != 0, high, x)
    return length + x


@triton.jit
def digit_of(score_sum, j: tl.constexpr, flip, one):
    """Digit j of |sum|: all ones to flip and 1 to add where the sum is negative, else 0."""
    carry = one * 0
    digit = one * 0
    for i in tl.static_range(10):
        if i <= j:
            if i < 9:
                carried = tl.load(score_sum + i) + carry
            else:
                carried = carry
            carry = carried >> 32
            flipped = ((carried & 0xFFFFFFFF) ^ flip) + one
            digit = flipped & 0xFFFFFFFF
            one = flipped >> 32
    return digit


@triton.jit
def quotient(score_sum, negative, divisor):
    """Divide |sum|: the place of the highest digit, it, the next, what is left (``csrc``)."""
    zero = divisor * 0
    flip = tl.where(negative, 0xFFFFFFFF, 0).to(tl.int64)
    one = tl.where(negative, 1, 0).to(tl.int64)
    at = zero - 1
    rest = zero
    first = zero
    following = zero
    sticky = zero
    for below in tl.static_range(10):
        j = 9 - below
        digit = digit_of(score_sum, 9 - below, flip, one)
        here = (rest << 32) | digit
        hit = (at < 0) & (here >= divisor)
        following = tl.where(at == j + 1, digit, following)
        sticky = tl.where(at > j + 1, sticky | digit, sticky)
        first = tl.where(hit, here, first)
        rest = tl.where((at < 0) & (hit == 0), here, rest)
        at = tl.where(hit, j, at)
    upper = first // divisor  # no operand is negative
    left = first - upper * divisor
    here = (left << 32) | following
    lower = here // divisor
    rest = tl.where(at < 0, rest, tl.where(at > 0, here - lower * divisor, left))
    return at, upper, tl.where(at > 0, lower, 0), rest | sticky


@triton.jit
def mean_threshold_kernel(score_sum, threshold):
    """Write the threshold of one score_sum (``mean_threshold_bits`` in C++)."""
    seen = tl.load(score_sum + 9)
    carry = seen * 0
    for j in tl.static_range(9):
        carry = (tl.load(score_sum + j) + carry) >> 32
    negative = carry < 0
    at, upper, lower, rest = quotient(score_sum, negative, tl.maximum(seen, 1))
    down = 8 + bit_length(upper)
    down = tl.where(at <= 0, tl.maximum(down, 32), down)  # a subnormal has no digit below
    far = tl.maximum(down - 32, 0)
    near = tl.minimum(down, 32)
    one = seen * 0 + 1
    top = tl.where(down > 32, upper >> far, (upper << (32 - near)) | (lower >> near))
    lost = tl.where(down > 32, (upper & ((one << far) - 1)) | lower, lower & ((one << near) - 1))
    magnitude = (tl.maximum(32 * (at - 1) + down, 0) << 23) + top
    up = tl.where((lost | rest) != 0, 1, 0).to(tl.int64)
    towards_zero = tl.where(magnitude == 0, 0, magnitude | 0x80000000)
    bits = tl.where(negative, towards_zero, magnitude + up)
    bits = tl.where(seen <= 0, 0xFF7FFFFF, bits)
    tl.store(threshold, bits.to(tl.uint32).to(tl.float32, bitcast=True))


def mean_threshold(score_sum: Tensor) -> Tensor:
    """Turn the running sum into the float32 mean threshold; see ``reference.mean_threshold``."""
    threshold = torch.empty(1, dtype=torch.float32, device=score_sum.device)
    launch(mean_threshold_kernel, 1, score_sum, score_sum, threshold, warps=1)
    return threshold
