# SPDX-License-Identifier: Apache-2.0
"""How every Triton kernel of the package is launched."""

from typing import Any

import torch
from torch import Tensor


def launch(
    kernel: Any, programs: int, on: Tensor, *arguments: object, warps: int, **constants: object
) -> None:
    """Launch on the device and the current stream of a tensor, with contraction off (SEMANTICS 5).

    Args:
        kernel: a ``triton.jit`` function.
        programs: how many, at least 1.
        on: a tensor of the device; Triton itself would take the current one.
        arguments: of the kernel, in its order.
        warps: per program.
        constants: the ``tl.constexpr`` arguments.
    """
    with torch.cuda.device_of(on):
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def blocks_of(count: int, block: int) -> int:
    """Return how many blocks cover a number of elements.

    Args:
        count: at least 0.
        block: at least 1.

    Returns:
        ``ceil(count / block)``.

    Example:
        >>> blocks_of(4097, 4096)
        2
    """
    return -(-count // block)
