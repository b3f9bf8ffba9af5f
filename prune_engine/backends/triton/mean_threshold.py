# SPDX-License-Identifier: Apache-2.0
"""mean_threshold in Triton: one program, O(1)."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import code_of_key, key_to_bits
from prune_engine.backends.triton.launch import launch


@triton.jit
def mean_threshold_kernel(score_sum, threshold):
    """Write the threshold of one score_sum (``mean_code_ceil`` and the search in C++)."""
    seen = tl.load(score_sum + 2)
    low = tl.load(score_sum + 1)
    high = tl.load(score_sum) + (low >> 32)
    count = tl.maximum(seen, 1)
    # Long division in base 2^32, on operands that are not negative: `//` rounds towards zero.
    quotient = tl.where(high < 0, -((-high - 1) // count) - 1, high // count)
    rest = ((high - quotient * count) << 32) | (low & 0xFFFFFFFF)
    mean_code = (quotient << 32) + (rest + count - 1) // count

    # Binary search over the keys of the finite floats; 32 halvings leave one.
    first = (seen * 0 + 0x00800000).to(tl.uint32)
    last = (seen * 0 + 0xFF7FFFFF).to(tl.uint32)
    lowest = first
    for _ in range(32):
        middle = first + ((last - first) >> 1)
        reached = code_of_key(middle) >= mean_code
        # Once first == last nothing may move: the answer may be the last key of all.
        first = tl.where(reached | (first == last), first, middle + 1)
        last = tl.where(reached, middle, last)
    key = tl.where(seen <= 0, lowest, last)
    tl.store(threshold, key_to_bits(key).to(tl.float32, bitcast=True))


def mean_threshold(score_sum: Tensor) -> Tensor:
    """Turn the running sum into the float32 mean threshold; see ``reference.mean_threshold``."""
    threshold = torch.empty(1, dtype=torch.float32, device=score_sum.device)
    launch(mean_threshold_kernel, 1, score_sum, score_sum, threshold, warps=1)
    return threshold
