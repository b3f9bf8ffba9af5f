# SPDX-License-Identifier: Apache-2.0
"""The reference backend's records: part of the specification in :mod:`.reference`."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import addends, float_to_key
from prune_engine.bands import LIMBS, SUM_WORDS


def observe(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: Sequence[Tensor],
    advance: bool,
) -> tuple[Tensor, Tensor]:
    """Record the scores of one batch and weight its losses.

    ``records[i] = max(records[i], ((epoch + 1) << 32) | key(score))``: a max-register, so neither
    order nor repetition matters. Where the record grew, the limbs of ``score_sum`` grow by what
    the new score adds to them less what the old one did. ``rescaled = loss *
    weight_table[weight_class[i]]``.

    Args:
        losses: [B] float16, bfloat16, float32 or float64. Differentiable.
        indices: [B] int64 or int32, values in [0, N).
        score: [B] floating point, or None to score by the loss itself.
        state: records [N] int64, changed in place; score_sum [10] int64, changed in place: nine
            limbs, number seen; counters [5] int64, changed in place: samples observed, non-finite
            scores, indices out of range, the smallest of those (2^63 - 1 if none), float64 scores
            that only rounding to float32 made infinite; step [1] int64, changed in place;
            weight_class [N] uint8; weight_table [256] float32, entry 0 being 0;
            epoch [1] int64, in [0, 2^31 - 2].
        advance: whether step grows by 1.

    Returns:
        rescaled, [B] in the dtype of losses, and batch_weights, [B] float32, in batch order.

    Raises:
        IndexError: an index is out of range and the tensors are on the cpu; nothing was written.

    Example:
        >>> from prune_engine.backends.reference.arithmetic import MASK32, key_to_float
        >>> records, score_sum = torch.zeros(3, dtype=torch.int64), torch.zeros(10).long()
        >>> counters, step = torch.tensor([0, 0, 0, 2**63 - 1, 0]), torch.tensor([7])
        >>> classes = torch.tensor([2, 1, 1], dtype=torch.uint8)
        >>> state = [records, score_sum, counters, step, classes]
        >>> state += [torch.arange(256.0), torch.tensor([0])]
        >>> observe(torch.tensor([1.0, 4.0]), torch.tensor([2, 0]), None, state, True)
        (tensor([1., 8.]), tensor([1., 2.]))
        >>> key_to_float(records & MASK32)[records != 0]
        tensor([4., 1.])
        >>> score_sum[4:].tolist(), step.item()   # 5 * 2^149 = 5 * 2^21 * 2^128 units, 2 samples
        ([10485760, 0, 0, 0, 0, 2], 8)
    """
    records, score_sum, counters, step, weight_class, weight_table, epoch = state
    indices = indices.to(torch.int64)
    in_range = (indices >= 0) & (indices < records.numel())
    outside = indices[~in_range]
    reject_on_cpu(outside, records.numel())

    # 1. An empty batch changes nothing: every step below is a no-op on zero elements.
    # 2. Out of range, on a device: counted; the loss passes with weight 1; nothing is recorded.
    # 3. A non-finite score: counted; the loss is weighted all the same; nothing is recorded.
    # 4. A sample more than once in the batch: its largest score competes with the record.
    batch_weights = torch.ones(losses.shape, dtype=torch.float32, device=losses.device)
    batch_weights[in_range] = weight_table[weight_class[indices[in_range]].to(torch.int64)]
    product_dtype = torch.float64 if losses.dtype == torch.float64 else torch.float32
    rescaled = losses.to(product_dtype) * batch_weights.to(product_dtype)

    given = (losses if score is None else score).detach()
    scores = given.to(torch.float32)
    recordable = in_range & torch.isfinite(scores)
    new = ((epoch + 1) << 32) | float_to_key(scores[recordable])
    samples, slot = cast(  # torch leaves the result of unique untyped
        "tuple[Tensor, Tensor]",
        torch.unique(indices[recordable], return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    best = torch.zeros_like(samples).scatter_reduce(0, slot, new, "amax")

    old = records[samples]
    grew = best > old
    records[samples] = torch.maximum(old, best)
    score_sum += limb_sums(best[grew]) - limb_sums(old[grew])
    counters[0] += in_range.sum()
    counters[1] += (in_range & ~recordable).sum()
    counters[2] += (~in_range).sum()
    # The appended element leaves a minimum to take where no index is out of range.
    counters[3] = torch.cat([counters[3:4], outside]).min()
    counters[4] += (in_range & torch.isfinite(given) & ~torch.isfinite(scores)).sum()
    step += int(advance)
    return rescaled.to(losses.dtype), batch_weights


def reject_on_cpu(outside: Tensor, size: int, name: str = "indices") -> None:
    """Raise for indices out of range where looking at them costs no synchronisation.

    Args:
        outside: those that are.
        size: what they must be below.
        name: of the argument.

    Raises:
        IndexError: there are some, on the cpu.
    """
    if outside.device.type == "cpu" and outside.numel() > 0:
        raise IndexError(f"{name}: expected values in [0, {size}), got {int(outside.min())}")


def limb_sums(records: Tensor) -> Tensor:
    """Sum some scores exactly (SEMANTICS 3.1).

    Args:
        records: [M] int64; zeros (never seen) count nothing.

    Returns:
        int64 [10], their ``score_sum``.
    """
    seen = records[records != 0]
    group, low, high = addends(seen)
    total = records.new_zeros(SUM_WORDS)
    total.index_add_(0, group, low)  # integers: the order does not show
    total.index_add_(0, group + 1, high)
    total[LIMBS] = seen.numel()
    return total
