# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the Triton kernels: keys, exact sums, draws and the shuffle.

The same functions as ``csrc/semantics.h``, ``exact_sum.h``, ``philox.h`` and ``bijection.h``.
Integers only: a float is its bits, so neither contraction nor flushing of subnormals can move a
decision.
"""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

_FLAG = 1 << 40  # makes every argument a 64-bit one


def steady(*values: int) -> tuple[int, ...]:
    """Encode numbers for a tuple argument so that their values never compile a kernel anew.

    Triton treats an integer in a tuple as a constant if it is 1 and as aligned if 16 divides it,
    and picks its width by its size; ``2^40 + 2 v + 1`` is odd and always takes 64 bits.

    Args:
        values: each in [0, 2^39).

    Returns:
        The tuple to pass; a kernel reads entry k as ``steady_value(values[k])``.

    Example:
        >>> steady(1, 16)
        (1099511627779, 1099511627809)
    """
    return tuple(_FLAG | value << 1 | 1 for value in values)


def seed_words(seed: int) -> tuple[int, ...]:
    """Return the two words of a Philox key, ``steady``: the low half of a seed, then the high.

    Args:
        seed: in 0..2^63-1.

    Returns:
        The tuple to pass.

    Example:
        >>> seed_words(1 << 32) == steady(0, 1)
        True
    """
    return steady(seed & 0xFFFFFFFF, seed >> 32)


@triton.jit
def steady_value(encoded):
    """Decode one number of ``steady``: int64."""
    return (encoded >> 1) & 0x7FFFFFFFFF


@triton.jit
def wrapping_add(a, b):
    """The sum modulo 2^32; the plain operator stops a debug build where it wraps."""
    return tl.add(a, b, sanitize_overflow=False)  # pyright: ignore[reportArgumentType]


@triton.jit
def wrapping_mul(a, b):
    """The product modulo 2^32."""
    return tl.mul(a, b, sanitize_overflow=False)  # pyright: ignore[reportArgumentType]


@triton.jit
def widen(x):
    """Round a floating tile to float32, or widen it exactly; nan stays nan."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Round a float32 tile to the dtype of a loss, to nearest even."""
    if dtype == tl.bfloat16:
        # In integers, because the interpreter's own conversion truncates.
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits >> 16) & 1
        rounded = wrapping_add(bits, even + 0x7FFF) >> 16
        # Rounding could carry a nan into infinity; a quiet one keeps its sign.
        quiet = (bits >> 16) | 0x0040
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return tl.where(is_nan, quiet, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def is_finite_bits(bits):
    """Whether float32 bits (uint32) are those of a finite number."""
    return (bits & 0x7F800000) != 0x7F800000


@triton.jit
def bits_to_key(bits):
    """float32 bits -> order-preserving key, both uint32; -0.0 takes the key of +0.0."""
    bits = tl.where(bits == 0x80000000, 0, bits).to(tl.uint32)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000).to(tl.uint32)


@triton.jit
def key_to_bits(key):
    """Key -> float32 bits, both uint32."""
    return tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def addend_of_key(key):
    """What a score adds to the exact sum: its group (int32) and value (int64), 0 for key 0.

    Its low 32 bits go to limb ``group``, ``value >> 32`` to the next; see ``Addend`` in C++.
    """
    bits = tl.where(key == 0, 0, key_to_bits(key)).to(tl.uint32)
    exponent = ((bits >> 23) & 0xFF).to(tl.int32)
    normal = tl.where(exponent != 0, 1, 0)
    place = exponent - normal
    mantissa = (bits & 0x7FFFFF).to(tl.int64) | (normal.to(tl.int64) << 23)
    value = mantissa << (place & 31).to(tl.int64)
    return place >> 5, tl.where((bits >> 31) != 0, -value, value)


@triton.jit
def limb_part(group, value, limb):
    """What addends put into a limb, or into each of several."""
    low = tl.where(group == limb, value & 0xFFFFFFFF, 0)
    return low + tl.where(group + 1 == limb, value >> 32, 0)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of Salmon et al. (2011) on uint32 words; returns words 0 to 3."""
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = wrapping_mul(c0, 0xD2511F53)
        low1 = wrapping_mul(c2, 0xCD9E8D57)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = wrapping_add(k0, 0x9E3779B9)
        k1 = wrapping_add(k1, 0xBB67AE85)
    return c0, c1, c2, c3


@triton.jit
def block_draws(start, key, epoch, BLOCK: tl.constexpr):
    """The 16-bit keep draws (int32) of samples start .. start + BLOCK - 1; BLOCK divides start.

    ``key`` is ``seed_words``. A block of groups never crosses a multiple of 2^32.
    """
    group = (start >> 3).to(tl.uint32) + tl.arange(0, BLOCK // 8).to(tl.uint32)
    zero = group & 0  # STREAM_KEEP
    w0, w1, w2, w3 = philox4x32(
        group,
        zero + (start >> 35).to(tl.uint32),
        zero,
        zero + epoch.to(tl.uint32),
        steady_value(key[0]).to(tl.uint32),
        steady_value(key[1]).to(tl.uint32),
    )
    # Word w of group g serves samples 8 g + 2 w (low half) and 8 g + 2 w + 1 (high half).
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.interleave(words & 0xFFFF, words >> 16).to(tl.int32)


@triton.jit
def stream_draws(index, key, epoch, stream, DRAW: tl.constexpr):
    """The 32-bit draws (uint32) of int64 indices in a stream; ``key`` is ``seed_words``.

    DRAW is STREAM_DRAW; stream and epoch are int64.
    """
    group = index >> 2
    zero = (group & 0).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        (group & 0xFFFFFFFF).to(tl.uint32),
        (group >> 32).to(tl.uint32),
        zero + (16 * stream + DRAW).to(tl.uint32),
        zero + epoch.to(tl.uint32),
        steady_value(key[0]).to(tl.uint32),
        steady_value(key[1]).to(tl.uint32),
    )
    low, high = tl.where((index & 1) != 0, w1, w0), tl.where((index & 1) != 0, w3, w2)
    return tl.where((index & 2) != 0, high, low)


@triton.jit
def hash32(x, key):
    """The round function of the bijection, uint32."""
    h = wrapping_add(x, key)
    h = h ^ (h >> 16)
    h = wrapping_mul(h, 0x21F0AAAD)
    h = h ^ (h >> 15)
    h = wrapping_mul(h, 0xD35A2D97)
    return h ^ (h >> 15)


@triton.jit
def feistel(position, keys, bits, columns, ROUNDS: tl.constexpr):
    """Permute the cells of the 2^bits x columns grid once (uint32); see ``csrc/bijection.h``."""
    mask = ((bits * 0 + 1) << bits) - 1
    row, column = network(position & mask, position >> bits, keys, mask, columns, ROUNDS)
    return (column << bits) | row


@triton.jit
def two_rounds(row, column, key0, key1, mask, columns):
    """An even and an odd round of the network, all uint32."""
    # umulhi by 2^bits takes the top bits, and none where bits is 0.
    row = wrapping_add(row, tl.umulhi(hash32(column, key0), mask + 1)) & mask
    column = column + tl.umulhi(hash32(row, key1), columns)
    return row, tl.where(column >= columns, column - columns, column)


@triton.jit
def network(row, column, keys, mask, columns, ROUNDS: tl.constexpr):
    """Permute cells given by row and column, all uint32: any n up to 2^62."""
    for r in tl.static_range(0, ROUNDS, 2):
        key0 = steady_value(keys[r]).to(tl.uint32)
        key1 = steady_value(keys[r + 1]).to(tl.uint32)
        row, column = two_rounds(row, column, key0, key1, mask, columns)
    return row, column


@triton.jit
def inverse_network(row, column, keys, mask, columns, ROUNDS: tl.constexpr):
    """Return the cells that ``network`` takes to these."""
    for r in tl.static_range(ROUNDS - 2, -1, -2):
        share = tl.umulhi(hash32(row, steady_value(keys[r + 1]).to(tl.uint32)), columns)
        column = tl.where(column < share, column + (columns - share), column - share)
        shift = tl.umulhi(hash32(column, steady_value(keys[r]).to(tl.uint32)), mask + 1)
        row = tl.sub(row, shift, sanitize_overflow=False) & mask  # pyright: ignore[reportArgumentType]
    return row, column
