# SPDX-License-Identifier: Apache-2.0
"""Samples of a pool drawn at random: a fixed number of them, or each by itself."""

from __future__ import annotations

from torch import Tensor

from prune_engine import ops
from prune_engine.bands import Band, dropping_band, weight_table
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Rule


def select_fixed(
    buffer: ScoreBuffer,
    pool: Tensor,
    count: int,
    size: int,
    *,
    seed: int,
    epoch: int,
    weight_class: int = 1,
) -> Tensor:
    """Keep a fixed number of a pool's samples, drawn at random, and all others with weight 1.

    Those with the largest keep draws of the epoch stay, ties to the smaller index (SEMANTICS 3.3).

    Args:
        buffer: says which kernels.
        pool: bool [N].
        count: in 0..size, how many of the pool stay.
        size: how many are in the pool.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        weight_class: in 1..255, of those that stay.

    Returns:
        uint8 [N]: 0 = dropped, 1 = not in the pool.

    Example:
        >>> import torch
        >>> from prune_engine.epoch import ScoreBuffer
        >>> pool = torch.tensor([True, True, False, True])
        >>> select_fixed(ScoreBuffer(4), pool, 1, 3, seed=0, epoch=0, weight_class=2).tolist()
        [2, 0, 1, 0]
    """
    records = _pool_records(buffer, pool)
    band = Band(0, weight_class, count, max(1, size))
    nothing = Rule.keep_all(buffer.device).thresholds
    weights = weight_table(*[1.0] * (weight_class - 1))  # of which only the classes are wanted
    rule = Rule(nothing, (band,), weights, fixed=True)
    return ops.plan(records, rule, seed=seed, epoch=epoch, backend=buffer.backend)[0]


def drop_drawn(buffer: ScoreBuffer, pool: Tensor, share: float, *, seed: int, epoch: int) -> Tensor:
    """Drop each of a pool's samples with one probability, by its keep draw, and none of the others.

    Args:
        buffer: says which kernels.
        pool: bool [N].
        share: the probability, in [0, 1).
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        uint8 [N]: 0 = dropped, 1 = not.

    Example:
        >>> import torch
        >>> from prune_engine.epoch import ScoreBuffer
        >>> pool = torch.arange(4) < 2
        >>> drop_drawn(ScoreBuffer(4), pool, 0.9999, seed=0, epoch=0).tolist()
        [0, 0, 1, 1]
    """
    records = _pool_records(buffer, pool)
    nothing = Rule.keep_all(buffer.device).thresholds
    rule = Rule(nothing, (dropping_band(share, 1),), weight_table())
    return ops.plan(records, rule, seed=seed, epoch=epoch, backend=buffer.backend)[0]


def _pool_records(buffer: ScoreBuffer, pool: Tensor) -> Tensor:
    """Make the others samples never seen, which stay, and the pool one band of equal scores."""
    return pool.to(buffer.records.dtype) * ((1 << 32) | (1 << 31))
