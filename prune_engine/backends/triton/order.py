# SPDX-License-Identifier: Apache-2.0
"""order in Triton: positions of the epoch -> samples, one launch for a batch or for all."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import feistel, steady
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import ROUNDS_LARGE, ROUNDS_LIMIT, ROUNDS_SMALL, STREAM_ORDER

BLOCK = 512
_MASK32 = 0xFFFFFFFF


def philox_words(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 (Salmon et al. 2011) in Python integers: four 32-bit words.

    Args:
        counter: four words.
        key: two words.

    Returns:
        Words 0 to 3.

    Example:
        >>> [f"{word:08x}" for word in philox_words((0, 0, 0, 0), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


@lru_cache(maxsize=8)  # an epoch asks for the same keys once per batch
def round_keys(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the ``steady`` round keys of the bijection of [0, n).

    Args:
        n: number of positions.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        ROUNDS_SMALL or ROUNDS_LARGE keys.

    Example:
        >>> len(round_keys(5, 0, 0)), len(round_keys(65537, 0, 0))
        (32, 8)
    """
    key = (seed & _MASK32, seed >> 32)
    rounds = ROUNDS_SMALL if n <= ROUNDS_LIMIT else ROUNDS_LARGE
    calls = range(STREAM_ORDER, STREAM_ORDER + rounds // 4)
    words = [philox_words((n & _MASK32, n >> 32, call, epoch), key) for call in calls]
    return steady(*(word for four in words for word in four))


@triton.jit(do_not_specialize=["start", "step", "count", "n", "bits"])
def order_kernel(
    kept,
    positions,
    samples,
    keys,
    start: tl.int64,
    step: tl.int64,
    count: tl.int64,
    n: tl.int64,
    bits: tl.int32,
    ROUNDS: tl.constexpr,
    IS_RANGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the samples of one block of positions."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    if IS_RANGE:
        position = start + place * step
    else:
        position = tl.load(positions + place, inside, other=0)
    valid = inside & (position >= 0) & (position < n)

    size = n.to(tl.uint32)
    shift = bits.to(tl.uint32)
    columns = ((n + (1 << bits.to(tl.int64)) - 1) >> bits).to(tl.uint32)
    # Cycle walking ends because the network permutes the grid; a position outside could walk for
    # ever, so it starts, and ends, as 0.
    y = feistel(tl.where(valid, position, 0).to(tl.uint32), keys, shift, columns, ROUNDS)
    while tl.max((y >= size).to(tl.int32)) != 0:
        y = tl.where(y >= size, feistel(y, keys, shift, columns, ROUNDS), y)
    sample = tl.load(kept + y.to(tl.int64), valid, other=-(2**31))
    tl.store(samples + place, sample, inside)


def order(
    kept: Tensor,
    positions: Tensor | None,
    start: int,
    step: int,
    count: int,
    seed: int,
    epoch: int,
) -> Tensor:
    """Read the shuffled training order at any positions; see ``reference.order``.

    A range is checked here; a position in a tensor that is out of range gives -2^31, because
    looking at it would make the host wait.
    """
    n = kept.numel()
    if positions is None:
        _check_range(start, start + (count - 1) * step, count, n)
    else:
        count = positions.numel()
    samples = torch.empty(count, dtype=torch.int32, device=kept.device)
    if count == 0:
        return samples
    if n == 0:
        raise IndexError("positions must be empty, for nothing is kept")
    bits = ((n - 1).bit_length() + 1) // 2  # the smallest with 4^bits >= n
    keys = round_keys(n, seed, epoch)
    launch(
        order_kernel,
        blocks_of(count, BLOCK),
        kept,
        kept,
        kept if positions is None else positions,
        samples,
        keys,
        start,
        step,
        count,
        n,
        bits,
        ROUNDS=len(keys),
        IS_RANGE=positions is None,
        BLOCK=BLOCK,
        warps=4,
    )
    return samples


def _check_range(first: int, last: int, count: int, n: int) -> None:
    """Refuse a range of positions that leaves [0, n)."""
    if count > 0 and not (0 <= first < n and 0 <= last < n):
        raise IndexError(f"positions must be in 0..{n - 1}, got {first}..{last}")
