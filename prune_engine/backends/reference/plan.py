# SPDX-License-Identifier: Apache-2.0
"""The plan in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prune_engine.backends.reference.arithmetic import MASK32, float_to_key, keep_draw
from prune_engine.bands import PLAN_BLOCK


def offsets_of(weight_class: Tensor) -> Tensor:
    """Count the kept samples before each block of PLAN_BLOCK, and last in all (int64)."""
    num_samples = weight_class.numel()
    blocks = -(-num_samples // PLAN_BLOCK)
    kept = (weight_class != 0).to(torch.int64)
    padded = pad(kept, (0, blocks * PLAN_BLOCK - num_samples))
    per_block = padded.reshape(blocks, PLAN_BLOCK).sum(dim=1)
    return pad(per_block.cumsum(dim=0), (1, 0))


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
        thresholds: [T] float32, ascending, T in 0..5; finite, but infinity, which no score
            reaches, may be the last.
        cuts: [T + 1], each in 0..65535; not used where keep_den > 0.
        classes: [T + 1], each in 1..255: the weight class of the kept members of a band.
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

    return offsets_of(weight_class)
