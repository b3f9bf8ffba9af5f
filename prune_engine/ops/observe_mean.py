# SPDX-License-Identifier: Apache-2.0
"""Record one batch's scores and say what each of its losses weighs in their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.ops.checks import (
    check_batch,
    check_state,
    check_vector,
    raise_index_error,
    state_of,
)


def observe_mean(
    losses: Tensor,
    indices: Tensor,
    *,
    records: Tensor,
    score_sum: Tensor,
    counters: Tensor,
    step: Tensor,
    weight_class: Tensor,
    weight_table: Tensor,
    epoch: int | Tensor,
    score: Tensor | None = None,
    advance: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Record the scores of one batch and return the gradient of its weighed mean, in one launch.

    The state changes as in ``observe``. What comes back is ``fl32(w_i * fl32(1 / B))``, with w_i =
    ``weight_table[weight_class[i]]``: ``losses.dot`` of it is the mean that is trained (InfoBatch,
    ICLR 2024, eq. 9; SEMANTICS 3.6), with one result and one pass where ``observe`` has two.

    Args:
        losses: [B] float32, per sample, unreduced.
        indices: [B] int64 | int32, dataset positions in 0..N-1.
        records: [N] int64, changed; see ``observe``.
        score_sum: [10] int64, changed; see ``observe``.
        counters: [5] int64, changed; see ``observe``.
        step: [1] int64, changed; see ``observe``.
        weight_class: [N] uint8, this epoch's decision.
        weight_table: [256] float32: the weight of each class.
        epoch: in 0..2^31-2, or an int64 [1] tensor on the device.
        score: [B] floating, what is recorded; default the losses themselves, detached.
        advance: whether this call makes ``step`` grow by 1.
        backend: which kernels.

    Returns:
        float32 [B], in the order of the batch; it has no gradient of its own.

    Raises:
        TypeError: losses are not float32, or another dtype does not fit.
        ValueError: a shape or device does not fit.
        IndexError: an index is out of range (on the cpu; nothing is written then).

    Example:
        >>> state = dict(
        ...     records=torch.zeros(4, dtype=torch.int64),
        ...     score_sum=torch.zeros(10, dtype=torch.int64),
        ...     counters=torch.tensor([0, 0, 0, 2**63 - 1, 0]),
        ...     step=torch.zeros(1, dtype=torch.int64),
        ...     weight_class=torch.tensor([1, 2, 1, 0], dtype=torch.uint8),
        ...     weight_table=torch.arange(256.0),
        ... )
        >>> losses = torch.tensor([0.5, 3.0])
        >>> shares = observe_mean(losses, torch.tensor([1, 2]), epoch=0, **state)
        >>> shares.tolist(), losses.dot(shares).item()
        ([1.0, 0.5], 2.0)
    """
    state = state_of(records, score_sum, counters, step, weight_class, weight_table, epoch)
    check_state(*state)
    check_batch(losses, indices, score, records.device)
    check_vector("losses", losses, (torch.float32,))
    if score is not None:
        score = score.detach().contiguous()
    kernels = backends.kernels_for(backend, records)
    try:
        batch = losses.detach().contiguous(), indices.contiguous(), score
        shares = kernels.observe_mean(*batch, state, advance)
    except RuntimeError as error:
        raise_index_error(error)
    # The compiled operators do not tell autograd what they changed (see observe).
    torch.autograd.graph.increment_version(state[:4])
    return shares
