# SPDX-License-Identifier: Apache-2.0
"""The reference backend's shares of a mean: part of the specification in :mod:`.reference`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine.backends.reference.observe import observe


def observe_mean(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: Sequence[Tensor],
    advance: bool,
) -> Tensor:
    """Record the scores of one batch and return the gradient of its weighed mean.

    Args:
        losses: [B] float32.
        indices: [B] int64 or int32, values in [0, N).
        score: [B] floating point, or None to score by the loss itself.
        state: of ``observe``, changed in place.
        advance: whether step grows by 1.

    Returns:
        ``float32(1 / B) * weight_table[weight_class[i]]``, rounded once, float32 [B].

    Raises:
        IndexError: an index is out of range and the tensors are on the cpu; nothing was written.

    Example:
        >>> records, score_sum = torch.zeros(3, dtype=torch.int64), torch.zeros(10).long()
        >>> counters, step = torch.tensor([0, 0, 0, 2**63 - 1, 0]), torch.tensor([7])
        >>> classes = torch.tensor([2, 1, 1], dtype=torch.uint8)
        >>> state = [records, score_sum, counters, step, classes]
        >>> state += [torch.arange(256.0), torch.tensor([0])]
        >>> observe_mean(torch.tensor([1.0, 4.0]), torch.tensor([2, 0]), None, state, True)
        tensor([0.5000, 1.0000])
    """
    part = torch.full_like(losses, 1 / max(1, losses.numel()), requires_grad=False)
    return observe(part, indices, losses if score is None else score, state, advance)[0]
