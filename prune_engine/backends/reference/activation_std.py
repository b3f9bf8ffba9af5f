# SPDX-License-Identifier: Apache-2.0
"""The mean of standard deviations in plain torch: the specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine.backends.reference.moments import moments


def activation_std(
    tensors: Sequence[Tensor], out: Tensor, slot: Tensor | None, unbiased: bool, sample: int
) -> None:
    """Mean over the tensors of the standard deviation of each, into one slot.

    Args:
        tensors: L >= 1 dense floating tensors of any shape.
        out: [num_batches] float64, changed in one place.
        slot: int64 [1], which place; None for the first. Out of range, on a device: nothing is
            written.
        unbiased: whether to divide by count - 1.
        sample: see :func:`moments`.

    Raises:
        IndexError: slot is out of range and the tensors are on the cpu.

    Example:
        >>> out = torch.zeros(2, dtype=torch.float64)
        >>> activation_std([torch.tensor([1.0, 3.0])], out, torch.tensor([1]), False, 1)
        >>> out.tolist()
        [0.0, 1.0]
    """
    if slot is None:
        slot = torch.zeros(1, dtype=torch.int64, device=out.device)
    if slot.device.type == "cpu" and not 0 <= int(slot) < out.numel():
        raise IndexError(f"slot must be in 0..{out.numel() - 1}, got {int(slot)}")
    count, _, squares = moments(tensors, sample).unbind(1)
    freedom = (count - 1.0 if unbiased else count).clamp(min=0.0)
    value = (squares / freedom).sqrt().mean()
    places = torch.arange(out.numel(), device=out.device)
    out.copy_(torch.where(places == slot, value, out))
