# SPDX-License-Identifier: Apache-2.0
"""Record one batch's scores and weigh its losses."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.ops.checks import (
    ObserveState,
    check_batch,
    check_state,
    has_tangent,
    raise_index_error,
    state_of,
)
from prune_engine.ops.weights import rescale


def observe(
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
) -> tuple[Tensor, Tensor]:
    """Record the scores of one batch and weigh its losses, in one launch.

    ``records[i] = max(records[i], (epoch + 1) << 32 | key(score_i))``, ``rescaled = loss *
    weight_table[weight_class[i]]`` (InfoBatch, ICLR 2024, eq. 5; SEMANTICS 2). A max-register does
    not depend on the order of samples, batches or ranks. ``records``, ``score_sum``, ``counters``
    and ``step`` change; nothing else does.

    Args:
        losses: [B] float16 | bfloat16 | float32 | float64, per sample, unreduced.
        indices: [B] int64 | int32, dataset positions in 0..N-1.
        records: [N] int64, changed.
        score_sum: [10] int64, changed: nine limbs of the exact sum, number seen (SEMANTICS 3.1).
        counters: [5] int64, changed.
        step: [1] int64, changed: batches so far. On the device, so that a captured graph counts.
        weight_class: [N] uint8, this epoch's decision.
        weight_table: [256] float32: the weight of each class.
        epoch: in 0..2^31-2; an int64 [1] tensor on the device where a captured graph is replayed
            in later epochs.
        score: [B] floating, what is recorded; default the losses themselves, detached.
        advance: whether this call makes ``step`` grow by 1: once for each batch that is served,
            however often it is observed.
        backend: which kernels.

    Returns:
        ``rescaled`` [B] in the dtype of ``losses`` (its gradient is ``grad * batch_weights``) and
        ``batch_weights`` [B] float32, both in the order of the batch.

    Raises:
        TypeError: a dtype is not one of those.
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
        >>> rescaled, _ = observe(torch.tensor([0.5, 3.0]), torch.tensor([1, 2]), epoch=0, **state)
        >>> rescaled.tolist(), state["score_sum"][9].item()
        ([1.0, 3.0], 2)
    """
    state = state_of(records, score_sum, counters, step, weight_class, weight_table, epoch)
    try:
        kernels = backends.kernels_for(backend, records)
    except AttributeError:
        check_state(*state)
        raise
    checks = torch.compiler.is_compiling() or kernels.CHECKS_ARGUMENTS
    result = observe_state(losses, indices, score, state, kernels, advance=advance, checks=checks)
    # The compiled operators do not tell autograd what they changed; a tensor saved for a backward
    # pass must not be damaged unnoticed.
    torch.autograd.graph.increment_version(state[:4])
    return result


def observe_state(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: ObserveState,
    kernels: backends.Kernels,
    *,
    advance: bool,
    checks: bool,
) -> tuple[Tensor, Tensor]:
    """Do what ``observe`` does with a state and kernels that are known to fit: the hot path.

    Args:
        losses: [B], see ``observe``.
        indices: [B], see ``observe``.
        score: [B] or None, see ``observe``.
        state: records, score_sum, counters, step, weight_class, weight_table and epoch.
        kernels: of a backend that serves their device.
        advance: see ``observe``.
        checks: whether those kernels check their arguments themselves.

    Returns:
        ``rescaled`` and ``batch_weights``, see ``observe``.

    Raises:
        TypeError: a dtype is not one of those.
        ValueError: a shape or device does not fit.
        IndexError: an index is out of range.

    Example:
        >>> from prune_engine.epoch import ScoreBuffer
        >>> state = ScoreBuffer(2).observe_arguments
        >>> kernels = backends.load("reference")
        >>> batch = torch.ones(1), torch.tensor([1]), None
        >>> observe_state(*batch, state, kernels, advance=True, checks=False)[0].tolist()
        [1.0]
    """
    records = state[0]
    try:
        # A compiled operator checks everything before it writes anything, but not where tensors
        # of another kind (meta) are; its plain messages are said better below, and what is not
        # contiguous is converted there. A good call pays for nothing else.
        if not (checks and losses.device == indices.device == records.device) or (
            score is not None and score.device != records.device
        ):
            check_state(*state)
            check_batch(losses, indices, score, records.device)
        if score is not None:
            score = score.detach()
        result = kernels.observe(losses.detach(), indices, score, state, advance)
    except (AttributeError, RuntimeError, TypeError) as error:
        check_state(*state)
        check_batch(losses, indices, score, records.device)
        batch = (losses, indices) if score is None else (losses, indices, score)
        if all(tensor.is_contiguous() for tensor in batch):
            raise_index_error(error)
        losses, indices = losses.contiguous(), indices.contiguous()
        score = None if score is None else score.contiguous()
        return observe_state(losses, indices, score, state, kernels, advance=advance, checks=checks)
    if (losses.requires_grad and torch.is_grad_enabled()) or has_tangent(losses):
        # The same product once more, by an operator with a native gradient of any order: a tenth of
        # the host time of a Python autograd function.
        result = (rescale(losses, result[1]), result[1])
    return result
