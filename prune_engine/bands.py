# SPDX-License-Identifier: Apache-2.0
"""Bands of scores and their weights, as integers: the ground that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

PLAN_BLOCK = 4096  # samples per entry of block_offsets, on every backend
SAMPLE_BLOCK = 256  # neighbouring elements that a sampled statistic takes or leaves together
NUM_CLASSES = 256  # of a byte; class 0 is "dropped", class 1 is "kept, weight 1"
MAX_BANDS = 6  # of a rule
DRAWS = 65536  # values of a keep draw
CELLS = 4096  # bins of a count of cells of scores: 16 to an octave
CELL_SHIFT = 19  # from a key to its cell
FIRST_CELL = 4112  # of zero, negative and subnormal scores, and of the smallest normal ones
LAST_CELL = 8175  # of the largest finite scores
UNSEEN_CELL = CELLS - 1  # the bin of what was never seen
LOWEST_THETA, HIGHEST_THETA = 1 << 23, 271 << 23  # of a threshold of levels, as float bits
MAX_LEVEL_SAMPLES = 2**46  # 65536 times as many is an int64
SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-149, (2.0 - 2.0**-23) * 2.0**127  # positive float32
STREAM_KEEP = 0  # Philox counter word 2 of the keep draw
STREAM_ORDER = 1  # ... and of the first four round keys of the order; 1..8 are taken by it
STREAM_DRAW = 15  # ... and of a draw by itself, of stream 0; 16 more per stream: pick has 0 to 8
STREAM_PICK = 16  # ... and of a pick at site 0: 16 to 23 its walk, 24 its start; 16 more per site
ROUNDS_SMALL = 32  # tiny sets need many rounds: 12 fail a chi-square over permutations at n = 5
ROUNDS_LARGE = 8
ROUNDS_LIMIT = 65536  # sets up to this size take ROUNDS_SMALL
WALK_LIMIT = 1024  # the same of a pick: with 8 rounds neighbours are uneven at 100, not at 256
MAX_STREAM = 2**28 - 1  # 16 * stream + 15 is one word
STREAM_TIES = 2**27  # of draw: who stays among equal scores; streams from here on are the package's
MAX_SITE = 2**27 - 1  # 16 * (site + 1) + 8 is one word
LIMBS = 9  # of 32 bits, of an exact sum in units of 2^-149
SUM_WORDS = LIMBS + 1  # of score_sum: the limbs, then the number seen
AUDIT_WORDS = SUM_WORDS + 3  # of an audit: score_sum, planned and seen, missing, extra
COUNTERS = 5  # observed, not finite, out of range, the smallest such index, saturated
MAX_SAMPLES = 2**31 - 1  # of one device: kept indices are int32
MAX_INDEX = 2**62  # of a data set divided among ranks; draws and shuffle are exact up to it
MAX_EPOCH = 2**31 - 2  # epoch + 1 is the high half of a record
MAX_SEED = 2**63 - 1
INT64_MAX = 2**63 - 1


def decimal_fraction(value: float) -> Fraction:
    """Read a float as the decimal it prints as, so that 0.1 means one tenth.

    Args:
        value: a finite float.

    Returns:
        The exact fraction of its shortest decimal form.

    Example:
        >>> decimal_fraction(0.875), decimal_fraction(0.1)
        (Fraction(7, 8), Fraction(1, 10))
    """
    return Fraction(str(float(value)))


@dataclass(frozen=True)
class Band:
    """What happens to the samples of one score band.

    Args:
        cut: in 0..65535; with independent draws a sample is dropped iff its 16-bit draw < cut.
        weight_class: in 1..255; the class of its kept samples.
        keep_num: with fixed counts, floor(n * keep_num / keep_den) of the n samples stay.
        keep_den: in 1..2^31 - 1, the same for all bands of a rule.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> Band(cut=32768, weight_class=2, keep_num=1, keep_den=2).cut
        32768
    """

    cut: int
    weight_class: int
    keep_num: int = 1
    keep_den: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.cut <= 65535:
            raise ValueError(f"cut must be in 0..65535, got {self.cut}")
        if not 1 <= self.weight_class < NUM_CLASSES:
            raise ValueError(f"weight_class must be in 1..255, got {self.weight_class}")
        if not 1 <= self.keep_den < 2**31:
            raise ValueError(f"keep_den must be in 1..2147483647, got {self.keep_den}")
        if not 0 <= self.keep_num <= self.keep_den:
            raise ValueError(f"keep_num must be in 0..keep_den, got {self.keep_num}")


def weighed_classes(table: tuple[float, ...]) -> int:
    """Return how many classes a table weighs: zeros at its end stand for no weight."""
    count = len(table)
    while count > 2 and table[count - 1] == 0:
        count -= 1
    return count


def check_weight_table(table: tuple[float, ...]) -> None:
    """Refuse a table with a class that a sample could be kept in without a weight.

    Args:
        table: must be 2 to 256 numbers that start 0.0, 1.0 and go on positive and finite, as
            float32; zeros at the end are of classes that nothing may be in.

    Raises:
        ValueError: it is not.
        TypeError: it is no tuple.

    Example:
        >>> check_weight_table(weight_table(2.0))
    """
    if not isinstance(table, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"weight_table must be a tuple, got {type(table).__name__}")
    if not 2 <= len(table) <= NUM_CLASSES or table[:2] != (0.0, 1.0):
        raise ValueError(
            f"weight_table must have 2 to {NUM_CLASSES} entries that start 0.0, 1.0, got {table}"
        )
    for k, weight in enumerate(table[2 : weighed_classes(table)], 2):
        if not SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT:  # nan is not either
            raise ValueError(
                f"weight_table must be positive and finite as float32, got {weight} for class {k}"
            )


def weight_table(*weights: float) -> tuple[float, ...]:
    """Return the table whose classes 2, 3, ... carry the given weights.

    Args:
        weights: up to 254 weights, for classes 2..255.

    Returns:
        ``(0.0, 1.0, *weights)``.

    Raises:
        ValueError: more than 254 weights.

    Example:
        >>> weight_table(2.0)
        (0.0, 1.0, 2.0)
    """
    if len(weights) > NUM_CLASSES - 2:
        raise ValueError(f"weights must be at most {NUM_CLASSES - 2} numbers, got {len(weights)}")
    return (0.0, 1.0, *(float(w) for w in weights))


def check_fraction(name: str, value: object, *, zero: bool, one: bool) -> None:
    """Refuse a number outside the unit interval; never clamp (edge case 10).

    Args:
        name: the argument's name.
        value: what came.
        zero: whether 0 is allowed.
        one: whether 1 is allowed.

    Raises:
        TypeError: not a real number.
        ValueError: outside.

    Example:
        >>> check_fraction("prune_ratio", 0.5, zero=True, one=False)
    """
    interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number in {interval}, got {value!r}")
    inside = (0 < value < 1) or (zero and value == 0) or (one and value == 1)
    if not inside:
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_positive(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is no finite number above 0.

    Args:
        name: the argument's name.
        value: what came.
        zero: whether 0 is allowed.

    Raises:
        TypeError: not a real number.
        ValueError: out of range.

    Example:
        >>> check_positive("coefficient", 0.5)
    """
    words = "finite and at least 0" if zero else "finite and above 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, {words}, got {value!r}")
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise ValueError(f"{name} must be {words}, got {value!r}")


def check_weight_cap(cap: object) -> None:
    """Refuse a largest weight that is no finite number of at least 1.

    Args:
        cap: what came; None: no cap.

    Raises:
        TypeError: not a real number.
        ValueError: out of range.

    Example:
        >>> check_weight_cap(3.0)
    """
    if cap is None:
        return
    if isinstance(cap, bool) or not isinstance(cap, int | float):
        raise TypeError(f"weight_cap must be a number or None, got {cap!r}")
    if not 1 <= cap < float("inf"):
        raise ValueError(f"weight_cap must be finite and at least 1, got {cap!r}")


def keep_share(prune_ratio: float) -> tuple[int, int]:
    """Return 1 - prune_ratio as a fraction whose parts fit 31 bits.

    Args:
        prune_ratio: in [0, 1), read as its decimal: exact to nine digits.

    Returns:
        Numerator and denominator.

    Example:
        >>> keep_share(0.9)
        (1, 10)
    """
    share = Fraction(1) - decimal_fraction(prune_ratio)
    share = share.limit_denominator(2**31 - 1)
    return share.numerator, share.denominator


def dropping_band(prune_ratio: float, weight_class: int) -> Band:
    """Return the band that drops a share of its samples.

    ``cut = min(65535, floor(r * 65536 + 0.5))`` (SEMANTICS 3.3).

    Args:
        prune_ratio: r, in [0, 1).
        weight_class: the class of the kept ones.

    Returns:
        A band for independent draws and for fixed counts alike.

    Example:
        >>> dropping_band(0.5, 2).cut
        32768
    """
    cut = min(65535, int(prune_ratio * 65536 + 0.5))
    return Band(cut, weight_class, *keep_share(prune_ratio))


def kept_weight(band: Band, *, fixed: bool) -> float:
    """Return the weight that makes a band's kept samples stand for all of them.

    Independent draws: ``65536 / (65536 - cut)``, exact for the ratio used. Fixed counts:
    ``1 / (1 - r)``, as in the published code; floor((1 - r) n) of n are kept, so it is unbiased to
    within 1 / ((1 - r) n).

    Args:
        band: the band.
        fixed: which of the two.

    Returns:
        The weight.

    Example:
        >>> kept_weight(dropping_band(0.5, 2), fixed=False)
        2.0
    """
    return band.keep_den / band.keep_num if fixed else 65536 / (65536 - band.cut)


def check_sampling(sampling: str) -> None:
    """Refuse an unknown way of drawing.

    Args:
        sampling: ``"bernoulli"`` or ``"fixed"``.

    Raises:
        ValueError: any other.

    Example:
        >>> check_sampling("fixed")
    """
    if sampling not in ("bernoulli", "fixed"):
        raise ValueError(f"sampling must be 'bernoulli' or 'fixed', got {sampling!r}")
