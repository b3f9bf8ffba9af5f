# SPDX-License-Identifier: Apache-2.0
"""A second, independent statement of the semantics, in Python integers and fractions.

Nothing here knows torch or numpy, and nothing is shared with the reference backend: the two were
written from the contract separately, so that a misreading has to happen twice to go unseen. It
is slow on purpose (one sample at a time) and exact everywhere: a score is a ``Fraction``, a float
its bit pattern.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

WORD = 1 << 32
SIGN = 1 << 31
FLT_MAX = (2.0 - 2.0**-23) * 2.0**127
INT64_MAX = (1 << 63) - 1
BLOCK = 4096


# --- float bits -----------------------------------------------------------------------------


def _pack(value: float, code: str) -> float:
    """Round a double to the nearest float of another width, ties to even, overflow to inf."""
    try:
        return struct.unpack(code, struct.pack(code, value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def f32(value: float) -> float:
    """Round to float32."""
    return _pack(value, "<f")


def f16(value: float) -> float:
    """Round to float16."""
    return _pack(value, "<e")


def bits_of(value: float) -> int:
    """Return the bit pattern of a float32 value."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def from_bits(bits: int) -> float:
    """Return the float32 value of a bit pattern."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bf16(value: float) -> float:
    """Round a float32 value to bfloat16: its upper 16 bits, nearest, ties to even."""
    if math.isnan(value):
        return value
    upper, lower = divmod(bits_of(value), 1 << 16)
    upper += lower > 0x8000 or (lower == 0x8000 and upper % 2 == 1)
    return from_bits(upper << 16)


# --- scores ---------------------------------------------------------------------------------


def key_of(score: float) -> int:
    """Map a finite float32 to a uint32 that orders the same way; both zeros share one key."""
    bits = bits_of(0.0 if score == 0.0 else score)
    return WORD - 1 - bits if bits & SIGN else bits + SIGN


def score_of(key: int) -> float:
    """Invert ``key_of``."""
    return from_bits(key - SIGN if key >= SIGN else WORD - 1 - key)


def record_of(score: float, epoch: int) -> int:
    """Return the 64-bit record of a score seen in an epoch."""
    return (epoch + 1) * WORD + key_of(score)


def limbs_of(score: float) -> list[int]:
    """Return what one score adds to the nine limbs of the exact sum.

    The last place of the score's significand lies in one limb. The low half of what is left of it
    stays there, the rest is the next limb's.
    """
    _, exponent = math.frexp(score)
    place = max(exponent - 24, -149) + 149 if score else 0
    at = place // 32
    value = Fraction(score) * 2**149 / 2 ** (32 * at)
    assert value.denominator == 1
    high, low = divmod(int(value), WORD)
    limbs = [0] * 9
    limbs[at] += low
    limbs[at + 1] += high
    return limbs


def sum_of_scores(scores: Sequence[float]) -> list[int]:
    """Return the score_sum of some scores: the sums of their limbs, and how many there are."""
    rows = [limbs_of(score) for score in scores]
    return [*(sum(row[j] for row in rows) for j in range(9)), len(rows)]


def sum_of_records(records: Sequence[int]) -> list[int]:
    """Return the score_sum of a whole buffer."""
    return sum_of_scores([score_of(r % WORD) for r in records if r])


def value_of(score_sum: Sequence[int]) -> Fraction:
    """Return the exact sum that nine limbs stand for."""
    units = sum(limb * WORD**j for j, limb in enumerate(score_sum[:9]))
    return Fraction(units, 2**149)


def mean_threshold(score_sum: Sequence[int]) -> float:
    """Return the smallest finite float32 that is not below the exact mean."""
    seen = score_sum[9]
    if seen == 0:
        return -FLT_MAX
    mean = value_of(score_sum) / seen
    key = key_of(f32(float(mean)))
    while Fraction(score_of(key)) < mean:
        key += 1
    while key > key_of(-FLT_MAX) and Fraction(score_of(key - 1)) >= mean:
        key -= 1
    return score_of(key) + 0.0  # no -0.0


@dataclass
class Buffer:
    """What ``observe`` mutates."""

    records: list[int]
    score_sum: list[int] = field(default_factory=lambda: [0] * 10)
    counters: list[int] = field(default_factory=lambda: [0, 0, 0, INT64_MAX, 0])


def observe(
    losses: Sequence[float],
    kind: str,
    indices: Sequence[int],
    scores: Sequence[float] | None,
    buffer: Buffer,
    weight_class: Sequence[int],
    weight_table: Sequence[float],
    epoch: int,
) -> tuple[list[float], list[float]]:
    """Record a batch whose indices are in range; return (rescaled, batch weights).

    ``kind`` is the dtype of the losses: "float16", "bfloat16", "float32" or "float64".
    """
    narrow = {"float16": f16, "bfloat16": bf16, "float32": f32, "float64": float}[kind]
    rescaled, weights = [], []
    for j, i in enumerate(indices):
        weight = f32(weight_table[weight_class[i]])
        product = losses[j] * weight  # 24 x 24 bits: exact in a double unless kind is float64
        rescaled.append(narrow(product if kind == "float64" else f32(product)))
        weights.append(weight)
        buffer.counters[0] += 1
        given = losses[j] if scores is None else scores[j]
        score = f32(given)
        if not math.isfinite(score):
            buffer.counters[1] += 1
            buffer.counters[4] += math.isfinite(given)
            continue
        buffer.records[i] = max(buffer.records[i], record_of(score, epoch))
    # Recomputed, not updated: that the two agree is what the tests want to know.
    buffer.score_sum = sum_of_records(buffer.records)
    return rescaled, weights


# --- Philox, the plan, the order ---------------------------------------------------------------


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al. 2011."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], WORD)
        high1, low1 = divmod(0xCD9E8D57 * c[2], WORD)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % WORD, (k[1] + 0xBB67AE85) % WORD]
    return c


def halves(value: int) -> list[int]:
    """Return [low 32 bits, high 32 bits]."""
    return [value % WORD, value // WORD]


def draws(count: int, seed: int, epoch: int) -> list[int]:
    """Return the 16-bit keep draws of samples 0 .. count - 1."""
    out: list[int] = []
    for group in range(-(-count // 8)):
        for word in philox([*halves(group), 0, epoch], halves(seed)):
            out += [word % 65536, word // 65536]
    return out[:count]


@dataclass(frozen=True)
class Fate:
    """What a plan does to one band."""

    cut: int
    weight_class: int
    keep: Fraction


def plan(
    records: Sequence[int],
    thresholds: Sequence[float],
    fates: Sequence[Fate],
    *,
    fixed: bool,
    unseen_band: int,
    seed: int,
    epoch: int,
) -> tuple[list[int], list[int]]:
    """Return (weight classes, block offsets)."""
    drawn = draws(len(records), seed, epoch)
    members: list[list[int]] = [[] for _ in fates]
    classes = [1] * len(records)
    for i, record in enumerate(records):
        if record:
            score = score_of(record % WORD)
            members[sum(score >= t for t in thresholds)].append(i)
        elif unseen_band >= 0:
            members[unseen_band].append(i)
    for fate, samples in zip(fates, members, strict=True):
        if fixed:
            size = math.floor(len(samples) * fate.keep)
            kept = set(sorted(samples, key=lambda i: (-drawn[i], i))[:size])
        else:
            kept = {i for i in samples if drawn[i] >= fate.cut}
        for i in samples:
            classes[i] = fate.weight_class if i in kept else 0
    return classes, block_offsets(classes)


def block_offsets(classes: Sequence[int]) -> list[int]:
    """Return the number kept before each block of 4096 samples, and the total last."""
    counts = (sum(map(bool, classes[s : s + BLOCK])) for s in range(0, len(classes), BLOCK))
    return list(accumulate(counts, initial=0))


def compact(classes: Sequence[int]) -> list[int]:
    """Return the kept indices, ascending."""
    return [i for i, c in enumerate(classes) if c]


def _mix(x: int, key: int) -> int:
    h = (x + key) % WORD
    h = (h ^ (h >> 16)) * 0x21F0AAAD % WORD
    h = (h ^ (h >> 15)) * 0xD35A2D97 % WORD
    return h ^ (h >> 15)


class Bijection:
    """The keyed permutation pi of range(n)."""

    def __init__(self, n: int, seed: int, epoch: int, keys: Sequence[int] = ()) -> None:
        """Derive the grid and the round keys, unless some are given."""
        self.n = n
        self.k = next(k for k in range(40) if 4**k >= n)
        self.columns = 2**self.k
        self.rows = -(-n // self.columns)
        rounds = 32 if n <= 65536 else 8
        self.keys = list(keys)
        for quad in range(0 if keys else rounds // 4):
            self.keys += philox([*halves(n), 1 + quad, epoch], halves(seed))

    def _feistel(self, p: int) -> int:
        row, column = divmod(p, self.columns)
        for r, key in enumerate(self.keys):
            if r % 2 == 0:
                column = (column + _mix(row, key) * self.columns // WORD) % self.columns
            else:
                row = (row + _mix(column, key) * self.rows // WORD) % self.rows
        return row * self.columns + column

    def __call__(self, p: int) -> int:
        """Return pi(p)."""
        p = self._feistel(p)
        while p >= self.n:
            p = self._feistel(p)
        return p


def order(kept: Sequence[int], positions: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Return kept[pi(p)] for each position p."""
    if not len(positions):
        return []
    pi = Bijection(len(kept), seed, epoch)
    return [kept[pi(p)] for p in positions]


def audit(records: Sequence[int], classes: Sequence[int], epoch: int) -> list[int]:
    """Return [nine limbs, seen, planned and recorded, missing, extra]."""
    now = [r // WORD == epoch + 1 for r in records]
    pairs = list(zip(now, map(bool, classes), strict=True))
    tally = [pairs.count(case) for case in ((True, True), (False, True), (True, False))]
    return [*sum_of_records(records), *tally]
