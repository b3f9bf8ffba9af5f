# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import bijection


def order(
    kept: Tensor,
    positions: Tensor | None,
    start: int,
    step: int,
    count: int,
    seed: int,
    epoch: int,
) -> Tensor:
    """Read the shuffled training order at any positions.

    ``out[m] = kept[pi(p_m)]`` with pi the :func:`bijection` of [0, n).

    Args:
        kept: [n] int32, ascending.
        positions: [M] int64, values in [0, n); or None for ``p_m = start + m * step``, m < count.
        start: the first position; start, step and count are used only where positions is None.
        step: the distance between positions, such as the number of ranks.
        count: the number of positions.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].

    Returns:
        int32 [M] or [count], in the order of the positions.

    Raises:
        IndexError: a position is outside [0, n).

    Example:
        >>> kept = torch.tensor([3, 5, 8, 9], dtype=torch.int32)
        >>> whole = order(kept, None, 0, 1, 4, seed=0, epoch=0)
        >>> sorted(whole.tolist())
        [3, 5, 8, 9]
        >>> bool((order(kept, None, 1, 2, 2, seed=0, epoch=0) == whole[1::2]).all())
        True
    """
    if positions is None:
        positions = start + step * torch.arange(count, device=kept.device)
    return kept[bijection(positions, kept.numel(), seed, epoch)]
