# SPDX-License-Identifier: Apache-2.0
"""The reference backend: plain eager torch, and the specification that the others must equal.

It runs wherever torch runs with int64 and float64, and favours reading over speed. The arithmetic
is in :mod:`prune_engine.backends.reference.arithmetic` and exported again from here. Arguments are
described here and checked in ``prune_engine.ops``; only what depends on their values, and on
nothing else, is checked here.

**Load-bearing roundings**, easy to "simplify" wrongly:

1. A score is rounded to float32 once, first of all. Whether it is finite, its key and its code are
   all read from that float32: a float64 loss of 1e300 is a non-finite score.
2. ``code`` rounds half up (``floor(v + 0.5)``), not half to even as ``torch.round`` does. They
   differ at 2^-41: code 1 and not 0.
3. The mean is never rounded: ``ceil(sum / seen)`` is an integer division, and the threshold is the
   smallest float32 whose code reaches it, found by search. A mean taken in floating point moves
   samples across the threshold.
4. ``rescaled`` of a float16, bfloat16 or float32 loss is one float32 product, then one rounding to
   the dtype of the loss. The weight is not rounded to that dtype first. For float64 the weight is
   widened, which is exact, and the product rounds once.
5. -0.0 counts as +0.0, in scores and in thresholds; subnormal scores keep their own keys.

**What may be asserted.** Everything, bitwise: records, sums, counters, thresholds, classes, kept
sets, orders, weights, rescaled losses. One exception: where a product is NaN, that it is NaN is
asserted but not its payload, which differs from processor to processor. And
``cross_entropy_observe`` makes its scores by a float softmax, which no two backends round alike:
its records are asserted bitwise given the score that it returns, the score within the tolerance
that its test states.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from prune_engine.backends.reference.arithmetic import (
    MASK32,
    bijection,
    float_to_key,
    hash32,
    inverse_bijection,
    keep_draw,
    key_to_float,
    philox4x32,
    score_code,
)
from prune_engine.backends.reference.cross_entropy_observe import (
    cross_entropy_grad,
    cross_entropy_observe,
)
from prune_engine.backends.reference.moments import (
    activation_std,
    gelu_moments,
    moments,
    relu_moments,
    relu_moments_,
)
from prune_engine.backends.reference.observe import limb_sums, observe
from prune_engine.backends.reference.select import select, top
from prune_engine.bands import PLAN_BLOCK

__all__ = [
    "activation_std",
    "audit",
    "bijection",
    "compact",
    "cross_entropy_grad",
    "cross_entropy_observe",
    "float_to_key",
    "gelu_moments",
    "hash32",
    "keep_draw",
    "key_to_float",
    "mean_threshold",
    "moments",
    "observe",
    "order",
    "philox4x32",
    "plan",
    "relu_moments",
    "relu_moments_",
    "score_code",
    "select",
    "shuffle",
    "top",
]

CHECKS_ARGUMENTS = False
_PIECE = 1 << 18  # elements at a time: what the arithmetic allocates stays in a processor's cache
_FLOAT32_MAX = torch.finfo(torch.float32).max


def mean_threshold(score_sum: Tensor) -> Tensor:
    """The threshold below which a score is strictly below the mean.

    The smallest finite float32 x with ``code(x) >= ceil(sum of codes / number seen)``: then
    ``score < x`` exactly where the code of the score is below the mean of the codes.

    Args:
        score_sum: [3] int64: sum of high limbs, sum of low limbs, number seen n in [0, 2^31).

    Returns:
        float32 [1] on the device of score_sum, which is not read on the host. The lowest finite
        float32 if nothing was seen. Never -0.0, as the code of -2^-41 is 0 already.

    Example:
        >>> codes = score_code(torch.tensor([1.0, 2.0, 6.0]))
        >>> mean_threshold(torch.stack([(codes >> 32).sum(), (codes & MASK32).sum(),
        ...                             torch.tensor(3)]))
        tensor([3.])
    """
    high, low, seen = score_sum.unbind()
    divisor = seen.clamp(min=1)
    # Schoolbook long division in base 2^32. Carrying brings the low limb below 2^32; the remainder
    # of the high limb is below n < 2^31, so remainder * 2^32 + low stays below 2^63.
    high = high + (low >> 32)
    low = low & MASK32
    high_quotient = torch.div(high, divisor, rounding_mode="floor")
    rest = ((high - high_quotient * divisor) << 32) + low
    low_quotient = torch.div(rest, divisor, rounding_mode="floor")
    ceiling = (rest > low_quotient * divisor).to(torch.int64)
    mean_code = (high_quotient << 32) + low_quotient + ceiling

    # Binary search over the keys of the finite floats: codes ascend with keys, the answer is never
    # outside [first, last], and 32 halvings leave one of fewer than 2^32 keys.
    bounds = score_sum.new_tensor([-_FLOAT32_MAX, _FLOAT32_MAX], dtype=torch.float32)
    lowest, last = float_to_key(bounds).unbind()
    first = lowest
    for _ in range(32):
        middle = (first + last) >> 1
        reached = score_code(key_to_float(middle)) >= mean_code
        first, last = torch.where(reached, first, middle + 1), torch.where(reached, middle, last)
    return key_to_float(torch.where(seen == 0, lowest, last)).reshape(1)


def plan(
    records: Tensor,
    thresholds: Tensor,
    cuts: list[int],
    classes: list[int],
    keep_num: list[int],
    keep_den: int,
    unseen_band: int,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    first: int = 0,
) -> Tensor:
    """Decide for every sample whether it is kept this epoch, and in which weight class.

    The thresholds cut the scores into T + 1 bands: ``band = number of thresholds t with
    score >= t``. In a band each sample is dropped by its own draw (``draw < cut``), or, where
    keep_den > 0, exactly ``floor(members * keep_num / keep_den)`` are kept: those with the largest
    draws, ties to the smaller index. See :func:`keep_draw` for the draw.

    Args:
        records: [N] int64, as left by :func:`observe`.
        thresholds: [T] float32, finite, ascending, T in 0..5.
        cuts: [T + 1], each in 0..65535; not used where keep_den > 0.
        classes: [T + 1], each in 1..7: the weight class of the kept members of a band.
        keep_num: [T + 1], each in 0..keep_den; not used where keep_den is 0.
        keep_den: 0 for independent draws, else in 1..2^31 - 1.
        unseen_band: in -1..T: the band of samples without a record; -1 keeps them in class 1.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].
        weight_class: [N] uint8, changed in place: 0 = dropped, in sample order.
        first: the number in the data set of the first record, a multiple of PLAN_BLOCK; above 0
            for a shard, and only where keep_den is 0: fixed counts are of the whole data set.

    Returns:
        block_offsets, int64 [ceil(N / PLAN_BLOCK) + 1], ascending: the number of samples kept
        before each block of PLAN_BLOCK samples, and last the number kept in all.

    Example:
        >>> records = (1 << 32) | float_to_key(torch.tensor([0.5, 3.0, 0.5, 2.0]))
        >>> half = torch.empty(4, dtype=torch.uint8)
        >>> keep_num, keep_den = [1, 2], 2
        >>> offsets = plan(
        ...     records, torch.tensor([1.0]), [0, 0], [2, 1], keep_num, keep_den, -1, 0, 1, half)
        >>> [int((half == k).sum()) for k in (0, 1, 2)], offsets.tolist()
        ([1, 2, 1], [0, 3])
    """
    num_samples = records.numel()
    keys = records & MASK32
    band = torch.zeros_like(records)
    for threshold_key in float_to_key(thresholds):
        band += keys >= threshold_key
    band = torch.where(records == 0, unseen_band, band)
    numbers = first + torch.arange(num_samples, device=records.device)
    draw = keep_draw(numbers, seed, epoch)

    # Class 1 stays for band -1 alone: unseen samples that no rule touches.
    weight_class.fill_(1)
    for b, (cut, kept_class, share) in enumerate(zip(cuts, classes, keep_num, strict=True)):
        members = (band == b).nonzero().flatten()
        drawn = draw[members]
        if keep_den == 0:
            kept = drawn >= cut
        else:
            # Members ascend, so that a stable sort leaves equal draws in the order of the index.
            ranking = torch.sort(drawn, descending=True, stable=True).indices
            kept = torch.zeros_like(drawn, dtype=torch.bool)
            kept[ranking[: members.numel() * share // keep_den]] = True
        weight_class[members] = torch.where(kept, kept_class, 0).to(torch.uint8)

    blocks = -(-num_samples // PLAN_BLOCK)
    kept_mask = (weight_class != 0).to(torch.int64)
    padded = pad(kept_mask, (0, blocks * PLAN_BLOCK - num_samples))
    per_block = padded.reshape(blocks, PLAN_BLOCK).sum(dim=1)
    return pad(per_block.cumsum(dim=0), (1, 0))


def compact(weight_class: Tensor, block_offsets: Tensor, num_kept: int) -> Tensor:
    """List the samples that were kept.

    Args:
        weight_class: [N] uint8, from :func:`plan`.
        block_offsets: [ceil(N / PLAN_BLOCK) + 1] int64, from the same call.
        num_kept: ``block_offsets[-1]``, as the caller read it.

    Returns:
        int32 [num_kept]: the indices with ``weight_class != 0``, ascending.

    Raises:
        ValueError: num_kept is not the last block offset, or not the number of kept samples.

    Example:
        >>> compact(torch.tensor([1, 0, 2, 0], dtype=torch.uint8), torch.tensor([0, 2]), 2)
        tensor([0, 2], dtype=torch.int32)
    """
    if num_kept != int(block_offsets[-1]):
        raise ValueError(
            f"num_kept: expected block_offsets[-1] = {int(block_offsets[-1])}, got {num_kept}"
        )
    kept = weight_class.nonzero().flatten().to(torch.int32)
    if kept.numel() != num_kept:
        raise ValueError(
            f"block_offsets: expected {kept.numel()} kept samples in all, as in weight_class, "
            f"got {num_kept}"
        )
    return kept


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


def shuffle(places: Tensor, n: int, inverse: bool, seed: int, epoch: int) -> Tensor:
    """Evaluate the keyed permutation of [0, n), or its inverse, without a list of n entries.

    Args:
        places: [M] int64, values in [0, n).
        n: in [0, 2^62].
        inverse: whether to go from ranks to positions.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].

    Returns:
        int64 [M]: see :func:`bijection`.

    Raises:
        IndexError: a place is out of range.

    Example:
        >>> ranks = shuffle(torch.arange(9), 9, False, seed=3, epoch=0)
        >>> shuffle(ranks, 9, True, seed=3, epoch=0).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    network = inverse_bijection if inverse else bijection
    result = torch.empty_like(places)
    for at in range(0, places.shape[0], _PIECE):
        result[at : at + _PIECE] = network(places[at : at + _PIECE], n, seed, epoch)
    return result


def audit(records: Tensor, weight_class: Tensor, epoch: int) -> Tensor:
    """Recompute the score sum and compare what was planned with what was recorded.

    "Planned" is ``weight_class != 0``; "recorded in this epoch" is
    ``(record >> 32) == epoch + 1``.

    Args:
        records: [N] int64.
        weight_class: [N] uint8, the plan of this epoch.
        epoch: in [0, 2^31 - 2].

    Returns:
        int64 [6]: the three entries of ``score_sum``, samples planned and recorded, planned but
        not recorded (missing), recorded though not planned (extra).

    Example:
        >>> records = torch.cat([(2 << 32) | float_to_key(torch.ones(2)), torch.zeros(1).long()])
        >>> audit(records, torch.tensor([1, 0, 1], dtype=torch.uint8), epoch=1).tolist()
        [512, 0, 2, 1, 1, 1]
    """
    planned = weight_class != 0
    recorded = (records >> 32) == epoch + 1
    coverage = [planned & recorded, planned & ~recorded, recorded & ~planned]
    return torch.cat([limb_sums(records), torch.stack([mask.sum() for mask in coverage])])
