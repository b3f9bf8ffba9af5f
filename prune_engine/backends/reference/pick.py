# SPDX-License-Identifier: Apache-2.0
"""A fixed number of a batch's elements in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32, keys_of, permute, philox4x32, word_of
from prune_engine.bands import ROUNDS_LARGE, ROUNDS_SMALL, STREAM_PICK, WALK_LIMIT

TOP, RANDOM, PROPORTIONAL = range(3)
_KEY_OF_MINUS_INFINITY = 0x007FFFFF
_KEY_OF_FLOAT32_MAX = 0xFF7FFFFF
_KEY_OF_ZERO = 0x80000000


def pick(
    values: Tensor,
    k: int,
    rule: int,
    floor: int,
    seed: int,
    epoch: Tensor,
    step: Tensor,
    rank: int,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose min(k, B) of B elements, each with a probability that is known exactly.

    Systematic sampling (Madow 1949) along a keyed walk, with sizes in integers; SEMANTICS 3.11 has
    the formulas.

    Args:
        values: [B] float32; nan and -inf are not eligible, +inf counts as the largest float.
        k: in [0, 2^31).
        rule: 0 the largest, 1 all alike, 2 in proportion to the value.
        floor: of rule 2, in 65536ths of the mean size, in [0, 65536].
        seed: in [0, 2^63).
        epoch: int64 [1], its low 32 bits count.
        step: int64 [1], its low 32 bits count.
        rank: in [0, 2^31).
        site: in [0, 2^27): tells several picks of a step apart.

    Returns:
        ``indices`` int32 [min(k, B)], ascending; ``weights`` float32, the inverse of each one's
        probability, 0 where fewer were eligible; ``eligible`` int64 [1], how many those are.

    Example:
        >>> one = torch.ones(1, dtype=torch.int64)
        >>> values = torch.tensor([2.0, 5.0, 2.0, torch.nan])
        >>> pick(values, 2, TOP, 0, 0, one, one, 0, 0)[0]
        tensor([0, 1], dtype=torch.int32)
    """
    size = min(k, values.numel())
    keys = _eligible_keys(values)
    eligible = keys != 0
    count = int(eligible.sum())
    chosen = torch.zeros_like(eligible)
    weights = eligible.to(torch.float32)
    if rule == TOP or count <= size:
        # A stable sort: ties, and those that fill up, go by index.
        chosen[torch.sort(keys, descending=True, stable=True).indices[:size]] = True
    elif size > 0:
        sizes = eligible.to(torch.int64) if rule == RANDOM else _sizes(keys, count, k, floor)
        area, left = _caps(sizes, k)
        certain = sizes > area // left
        words = _words(seed, epoch, step, rank, site)
        order = permute(
            torch.arange(values.numel(), device=values.device),
            values.numel(),
            words[: ROUNDS_SMALL if values.numel() <= WALK_LIMIT else ROUNDS_LARGE],
        )
        ends = torch.where(certain, 0, sizes)[order].cumsum(0)
        points = _points(area, left, _start(area, words), values.device)
        chosen[order[torch.searchsorted(ends, points, right=True)]] = True
        chosen |= certain
        # Tensor by tensor: eager torch multiplies by the reciprocal of a number.
        whole = torch.full_like(sizes, area).to(torch.float32)
        weights = torch.where(certain, 1.0, whole / (left * sizes).to(torch.float32))
    indices = chosen.nonzero().flatten()
    return indices.to(torch.int32), weights[indices], eligible.sum().reshape(1)


def _eligible_keys(values: Tensor) -> Tensor:
    """Return int64 [B] keys of the eligible, 0 for the others."""
    keys = keys_of(values)
    return torch.where(keys <= _KEY_OF_MINUS_INFINITY, 0, keys.clamp(max=_KEY_OF_FLOAT32_MAX))


def _sizes(keys: Tensor, count: int, k: int, floor: int) -> Tensor:
    """Return the values in fixed point relative to the largest, none below the floor."""
    places = min(46, 62 - keys.numel().bit_length())  # the sum of all stays below 2^62
    exponent = (keys >> 23) & 0xFF
    normal = (exponent != 0).to(torch.int64)
    mantissa = (keys & 0x7FFFFF) | normal << 23
    positive = keys > _KEY_OF_ZERO
    place = torch.where(positive, exponent - normal, 0)
    shifted = (mantissa << (places - 24)) >> (place.max() - place).clamp(max=63)
    sizes = torch.where(keys != 0, torch.where(positive, shifted, 0).clamp(min=1), 0)
    if floor == 0:
        return sizes
    area, left = _caps(sizes, k)
    mean = k * -(-area // left) // count
    return torch.where(keys != 0, sizes.clamp(min=max(1, mean * floor >> 16)), 0)


def _caps(sizes: Tensor, k: int) -> tuple[int, int]:
    """Return the sum of the sizes that are not certain, and how many of those are chosen."""
    falling = torch.sort(sizes, descending=True).values
    rest = falling.flip(0).cumsum(0).flip(0)  # of what is not among the first
    left = k - torch.arange(k, device=sizes.device)
    certain = int((falling[:k] > rest[:k] // left).sum())
    return int(rest[certain]), k - certain


def _words(seed: int, epoch: Tensor, step: Tensor, rank: int, site: int) -> Tensor:
    """Return the int64 [36] words of nine Philox calls: 32 round keys, then the start."""
    device = step.device
    words = philox4x32(
        step & MASK32,
        word_of(rank, device),
        STREAM_PICK * (site + 1) + torch.arange(9, device=device),
        epoch & MASK32,
        word_of(seed, device),
        word_of(seed >> 32, device),
    )
    return torch.stack(words, dim=-1).flatten()


def _start(area: int, words: Tensor) -> int:
    """Return a number in [0, area): 62 random bits times it, in products below 2^63."""
    low, high = (int(word) >> 1 for word in words[32:34])
    upper, lower = area >> 31, area & 0x7FFFFFFF
    return high * upper + ((high * lower + low * upper + (low * lower >> 31)) >> 31)


def _points(area: int, left: int, start: int, device: torch.device) -> Tensor:
    """Return ``floor((t * area + start) / left)`` for t < left, without a number above 2^63."""
    t = torch.arange(left, device=device)
    return t * (area // left) + start // left + (t * (area % left) + start % left) // left
