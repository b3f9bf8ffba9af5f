# SPDX-License-Identifier: Apache-2.0
"""Reading numbers from a device, where the host waits."""

from __future__ import annotations

from typing import cast

from torch import Tensor


def host_ints(tensor: Tensor) -> list[int]:
    """Read an integer vector; on a device this is where the host waits.

    Args:
        tensor: [M] of an integer dtype.

    Returns:
        Python ints in the same order.

    Example:
        >>> import torch
        >>> host_ints(torch.tensor([1, 2]))
        [1, 2]
    """
    return cast("list[int]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]


def host_floats(tensor: Tensor) -> list[float]:
    """Read a floating vector; on a device this is where the host waits.

    Args:
        tensor: [M] of a floating dtype.

    Returns:
        Python floats in the same order, exactly the tensor's.

    Example:
        >>> import torch
        >>> host_floats(torch.tensor([0.5, 1.0]))
        [0.5, 1.0]
    """
    return cast("list[float]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]
