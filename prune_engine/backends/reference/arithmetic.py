# SPDX-License-Identifier: Apache-2.0
"""The arithmetic under the reference operators: score keys, exact sums, draws and the shuffle.

Everything here is elementwise integer arithmetic on int64 tensors. An unsigned 32-bit word is held
in an int64 whose upper half is zero, because torch has few operators for unsigned types.
``csrc/semantics.h``, ``exact_sum.h``, ``philox.h`` and ``bijection.h`` hold the same functions in
C++.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prune_engine.bands import (
    ROUNDS_LARGE,
    ROUNDS_LIMIT,
    ROUNDS_SMALL,
    STREAM_DRAW,
    STREAM_KEEP,
    STREAM_ORDER,
    STREAM_TIES,
)

__all__ = [
    "MASK32",
    "addends",
    "bijection",
    "float_to_key",
    "hash32",
    "inverse_bijection",
    "keep_draw",
    "key_to_float",
    "philox4x32",
]


MASK32 = 0xFFFFFFFF
PIECE = 1 << 18  # elements at a time: what the arithmetic allocates stays in a processor's cache
FLOAT32_MAX = torch.finfo(torch.float32).max
_SIGN = 0x80000000


Network = Callable[[Tensor, int, int, Tensor], Tensor]


_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIER_0 = 0xD2511F53
_PHILOX_MULTIPLIER_1 = 0xCD9E8D57
_PHILOX_WEYL_0 = 0x9E3779B9
_PHILOX_WEYL_1 = 0xBB67AE85


def float_to_key(x: Tensor) -> Tensor:
    """Map float32 values to unsigned integers that sort in the same order.

    With ``b`` the IEEE-754 bits of x: ``key = ~b`` if the sign bit is set, else ``b | 0x80000000``.
    -0.0 takes the key of +0.0. The zero is found in the bits, so that a process which flushes
    subnormal numbers to zero still tells them apart.

    Args:
        x: float32, any shape, finite.

    Returns:
        int64, the shape of x, values in [0, 2^32): ``x < y`` exactly where ``key(x) < key(y)``.

    Raises:
        TypeError: x is not float32.

    Example:
        >>> [f"{key:08x}" for key in float_to_key(torch.tensor([-1.0, -0.0, 0.0, 1.0])).tolist()]
        ['407fffff', '80000000', '80000000', 'bf800000']
    """
    if x.dtype != torch.float32:
        raise TypeError(f"x: expected dtype torch.float32, got {x.dtype}")
    bits = x.view(torch.int32).to(torch.int64) & MASK32
    bits = torch.where(bits == _SIGN, 0, bits)
    return torch.where(bits >= _SIGN, bits ^ MASK32, bits | _SIGN)


def key_to_float(key: Tensor) -> Tensor:
    """Decode the keys of :func:`float_to_key`.

    ``bits = key ^ 0x80000000`` if the top bit of the key is set, else ``~key``.

    Args:
        key: int64, any shape, values in [0, 2^32).

    Returns:
        float32, the shape of key; ``key_to_float(float_to_key(x))`` has the bits of x, except that
        -0.0 comes back as +0.0.

    Example:
        >>> key_to_float(float_to_key(torch.tensor([-1.5, -0.0, 3.0])))
        tensor([-1.5000,  0.0000,  3.0000])
    """
    bits = torch.where(key >= _SIGN, key ^ _SIGN, key ^ MASK32)
    # Flipping the top bit and subtracting it sign-extends bit 31, so the value fits an int32.
    return ((bits ^ _SIGN) - _SIGN).to(torch.int32).view(torch.float32)


def addends(records: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split scores into what each adds to the limbs of the exact sum (SEMANTICS 3.1).

    A finite float32 is ``(-1)^s * m * 2^(p - 149)`` with a whole ``m < 2^24`` and ``p`` in 0..253:
    a number of units of 2^-149. With ``g = p >> 5`` it is ``v * 2^(32 g)`` units, ``|v| < 2^55``,
    and v is split as two's complement into a low half and a high one.

    Args:
        records: int64 [M], none of them 0.

    Returns:
        int64 [M] three times: g; ``v & 0xffffffff``, which goes to limb g; ``v >> 32``, to g + 1.

    Example:
        >>> [t.item() for t in addends((1 << 32) | float_to_key(torch.tensor([-1.0])))]
        [3, 0, -2097152]
    """
    key = records & MASK32
    bits = torch.where(key >= _SIGN, key ^ _SIGN, key ^ MASK32)
    exponent = (bits >> 23) & 0xFF
    normal = (exponent != 0).to(torch.int64)
    place = exponent - normal
    value = ((bits & 0x7FFFFF) | (normal << 23)) << (place & 31)
    value = torch.where(bits >= _SIGN, -value, value)
    return place >> 5, value & MASK32, value >> 32


def _multiply32(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of the 64-bit product of two 32-bit words."""
    # The product can reach 2^64 - 2^33 + 1, past the 2^63 - 1 that an int64 holds. Splitting b
    # into 16-bit halves keeps each partial product below 2^48:
    #     a * b = upper * 2^16 + lower
    upper = a * (b >> 16)
    lower = a * (b & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & MASK32
    return high, low


def philox4x32(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10, the counter-based generator behind every random decision.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section
    3.3. Ten rounds of ``c0, c1, c2, c3 = hi(M1 * c2) ^ c1 ^ k0, lo(M1 * c2),
    hi(M0 * c0) ^ c3 ^ k1, lo(M0 * c0)``; between rounds the two key words grow by W0 and W1.

    Args:
        c0: int64, values in [0, 2^32): word 0 of the counter. All six broadcast together.
        c1: int64, word 1 of the counter.
        c2: int64, word 2 of the counter.
        c3: int64, word 3 of the counter.
        k0: int64, word 0 of the key.
        k1: int64, word 1 of the key.

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32): words 0 to 3.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [f"{int(w):08x}" for w in philox4x32(zero, zero, zero, zero, zero, zero)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    for _ in range(_PHILOX_ROUNDS):
        high0, low0 = _multiply32(c0, _PHILOX_MULTIPLIER_0)
        high1, low1 = _multiply32(c2, _PHILOX_MULTIPLIER_1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _PHILOX_WEYL_0) & MASK32
        k1 = (k1 + _PHILOX_WEYL_1) & MASK32
    return c0, c1, c2, c3


def word_of(value: int, device: torch.device) -> Tensor:
    """Return the low 32 bits of an integer as an int64 scalar on the device."""
    return torch.full((), value & MASK32, dtype=torch.int64, device=device)


def keep_draw(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """The 16-bit draw of each sample, a pure function of (seed, epoch, index).

    One Philox call serves eight samples: counter ``[lo32(i >> 3), hi32(i >> 3), STREAM_KEEP,
    epoch]``, key ``[lo32(seed), hi32(seed)]``, ``draw = (word[(i >> 1) & 3] >> (16 * (i & 1))) &
    0xffff``.

    Args:
        indices: int64, any shape, values >= 0.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].

    Returns:
        int64, the shape of indices, values in [0, 65536).

    Example:
        >>> keep_draw(torch.arange(4), seed=0, epoch=0).tolist()
        [59605, 26151, 50573, 57705]
    """
    device = indices.device
    group = indices >> 3
    words = philox4x32(
        group & MASK32,
        group >> 32,
        word_of(STREAM_KEEP, device),
        word_of(epoch, device),
        word_of(seed, device),
        word_of(seed >> 32, device),
    )
    lane = ((indices >> 1) & 3).unsqueeze(-1)
    word = torch.stack(words, dim=-1).gather(-1, lane).squeeze(-1)
    return (word >> (16 * (indices & 1))) & 0xFFFF


def stream_draw(indices: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """The 32-bit draw of each sample in a stream, a pure function of (seed, epoch, stream, index).

    One Philox call serves four samples: counter ``[lo32(i >> 2), hi32(i >> 2), 16 * stream +
    STREAM_DRAW, epoch]``, key ``[lo32(seed), hi32(seed)]``, word ``i & 3``.

    Args:
        indices: int64, any shape, values in [0, 2^62].
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].
        stream: in [0, 2^28).

    Returns:
        int64, the shape of indices, values in [0, 2^32).

    Example:
        >>> a, b = (stream_draw(torch.arange(4), 0, 0, stream) for stream in (0, 1))
        >>> bool((a == b).any()), bool((a == stream_draw(torch.arange(4), 0, 0, 0)).all())
        (False, True)
    """
    device = indices.device
    group = indices >> 2
    words = philox4x32(
        group & MASK32,
        group >> 32,
        word_of(16 * stream + STREAM_DRAW, device),
        word_of(epoch, device),
        word_of(seed, device),
        word_of(seed >> 32, device),
    )
    return torch.stack(words, dim=-1).gather(-1, (indices & 3).unsqueeze(-1)).squeeze(-1)


def tie_key(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Return what orders samples of equal scores: int64 in 1..2^31."""
    return 1 + (stream_draw(indices, seed, epoch, STREAM_TIES) >> 1)


def hash32(x: Tensor, key: Tensor) -> Tensor:
    """A 32-bit integer hash, the round function of :func:`bijection`.

    ``h = x + key; h ^= h >> 16; h *= 0x21f0aaad; h ^= h >> 15; h *= 0xd35a2d97; h ^= h >> 15``, all
    in unsigned 32-bit arithmetic (a finaliser of the "lowbias32" family).

    Args:
        x: int64, any shape, values in [0, 2^32).
        key: int64 scalar, value in [0, 2^32).

    Returns:
        int64, the shape of x, values in [0, 2^32); for a fixed key it is a bijection of x.

    Example:
        >>> hash32(torch.tensor([0, 1]), torch.tensor(0)).tolist()
        [0, 114555507]
    """
    h = (x + key) & MASK32
    h = h ^ (h >> 16)
    _, h = _multiply32(h, 0x21F0AAAD)
    h = h ^ (h >> 15)
    _, h = _multiply32(h, 0xD35A2D97)
    return h ^ (h >> 15)


def bijection(positions: Tensor, n: int, seed: int, epoch: int) -> Tensor:
    """The keyed permutation pi of [0, n), evaluated only where it is asked for.

    A Feistel network on a grid of ``b`` rows and ``2^k`` columns that covers [0, n), with cycle
    walking for the cells past n; after Mitchell, Stokes, Frank and Holmes, "Bandwidth-optimal
    random shuffling for GPUs", 2022. k is the smallest integer >= 0 with 4^k >= n, and
    ``b = ceil(n / 2^k)``. The key of round r is word ``r & 3`` of the Philox call with counter
    ``[lo32(n), hi32(n), STREAM_ORDER + (r >> 2), epoch]`` and key ``[lo32(seed), hi32(seed)]``.

    Args:
        positions: int64, any shape, values in [0, n).
        n: size of the permuted set, in [0, 2^62].
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].

    Returns:
        int64, the shape of positions, values in [0, n); element by element, so the order of the
        positions is the order of the result. Distinct positions give distinct values.

    Raises:
        IndexError: a position is outside [0, n).

    Example:
        >>> sorted(bijection(torch.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
        >>> whole = bijection(torch.arange(1000), 1000, seed=7, epoch=3)
        >>> bool(bijection(torch.tensor(123), 1000, seed=7, epoch=3) == whole[123])
        True
    """
    return permute(positions, n, _round_keys(n, seed, epoch, positions.device))


def inverse_bijection(ranks: Tensor, n: int, seed: int, epoch: int) -> Tensor:
    """The positions that :func:`bijection` takes to some values.

    Args:
        ranks: int64, any shape, values in [0, n).
        n: size of the permuted set, in [0, 2^62].
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].

    Returns:
        int64, the shape of ranks, values in [0, n), element by element.

    Raises:
        IndexError: a rank is outside [0, n).

    Example:
        >>> ranks = bijection(torch.arange(1000), 1000, seed=7, epoch=3)
        >>> bool((inverse_bijection(ranks, 1000, seed=7, epoch=3) == torch.arange(1000)).all())
        True
    """
    return _walk(_invert_feistel, ranks, n, _round_keys(n, seed, epoch, ranks.device))


def permute(positions: Tensor, n: int, keys: Tensor) -> Tensor:
    """Apply the permutation of [0, n) that some int64 [rounds] round keys make."""
    return _walk(_feistel, positions, n, keys)


def _walk(network: Network, places: Tensor, n: int, keys: Tensor) -> Tensor:
    """Apply a permutation of the grid until it leads back below n."""
    outside = places[(places < 0) | (places >= n)]
    if outside.numel() > 0:
        raise IndexError(f"positions: expected values in [0, {n}), got {int(outside.min())}")
    k = 0
    while 4**k < n:
        k += 1
    rows = -(-n // 2**k)
    y = network(places, k, rows, keys)
    # Cycle walking: F permutes the whole grid, so following its cycle from a cell below n must
    # lead back below n, and two starts never meet.
    while bool((outside := y >= n).any()):
        y[outside] = network(y[outside], k, rows, keys)
    return y


def _round_keys(n: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Return the int64 [rounds] round keys: four per Philox call, in word order."""
    # Few rounds are visibly unfair on small sets, where more of them cost nothing.
    rounds = ROUNDS_SMALL if n <= ROUNDS_LIMIT else ROUNDS_LARGE
    words = philox4x32(
        word_of(n, device),
        word_of(n >> 32, device),
        STREAM_ORDER + torch.arange(rounds // 4, device=device),
        word_of(epoch, device),
        word_of(seed, device),
        word_of(seed >> 32, device),
    )
    return torch.stack(words, dim=-1).flatten()


def _feistel(p: Tensor, k: int, rows: int, keys: Tensor) -> Tensor:
    """Permute the cells of the grid once: ``cell = (row << k) | column``."""
    column_mask = 2**k - 1
    column, row = p & column_mask, p >> k
    for r, key in enumerate(keys):
        if r % 2 == 0:
            # k == 0 is one column: the shift by 32 leaves 0, and so does the mask.
            column = (column + (hash32(row, key) >> (32 - k))) & column_mask
        else:
            row = row + ((hash32(column, key) * rows) >> 32)
            row = torch.where(row >= rows, row - rows, row)
    return (row << k) | column


def _invert_feistel(y: Tensor, k: int, rows: int, keys: Tensor) -> Tensor:
    """Return the cell that :func:`_feistel` takes to y."""
    column_mask = 2**k - 1
    column, row = y & column_mask, y >> k
    for r, key in reversed([*enumerate(keys)]):
        if r % 2 == 0:
            column = (column - (hash32(row, key) >> (32 - k))) & column_mask
        else:
            row = row - ((hash32(column, key) * rows) >> 32)
            row = torch.where(row < 0, row + rows, row)
    return (row << k) | column


def keys_of(values: Tensor) -> Tensor:
    """Return int64 [N], the keys of scores or records; 0 where never seen."""
    if values.dtype == torch.int64:
        return values & MASK32
    return torch.where(values.isnan(), 0, float_to_key(values))
