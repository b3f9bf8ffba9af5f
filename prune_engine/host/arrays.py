# SPDX-License-Identifier: Apache-2.0
"""What NumPy users pass to ``prune_engine.host``, checked and converted; no torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prune_engine.bands import INT64_MAX, MAX_EPOCH, MAX_SAMPLES, MAX_SEED

Integers: TypeAlias = NDArray[np.integer[Any]] | Sequence[int] | range


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return a Python int within bounds; NumPy's integers are welcome.

    Args:
        name: the argument's name, for the message.
        value: what came.
        low: smallest allowed.
        high: largest allowed.

    Returns:
        The same number.

    Raises:
        TypeError: not an integer.
        ValueError: out of bounds.

    Example:
        >>> integer("epoch", np.int32(3), 0, 9)
        3
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {number}")
    return number


def seed_epoch(seed: object, epoch: object) -> tuple[int, int]:
    """Check the two numbers that key every draw.

    Args:
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.

    Returns:
        Both, as Python ints.

    Raises:
        TypeError: not an integer.
        ValueError: out of bounds.

    Example:
        >>> seed_epoch(np.int64(1), 2)
        (1, 2)
    """
    return integer("seed", seed, 0, MAX_SEED), integer("epoch", epoch, 0, MAX_EPOCH)


def float32(name: str, value: object) -> np.float32:
    """Round a number to float32 and refuse what is not finite there.

    Args:
        name: the argument's name, for the message.
        value: what came.

    Returns:
        The nearest float32.

    Raises:
        TypeError: not a real number.
        ValueError: nan, or beyond float32.

    Example:
        >>> float(float32("threshold", 0.5))
        0.5
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    with np.errstate(over="ignore"):
        number = np.float32(float(value))
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite in float32, got {value!r}")
    return number


def score_vector(values: object) -> NDArray[np.float32]:
    """Return scores as contiguous float32: the array itself where it is that already.

    Args:
        values: [N] float16 | float32 | float64, N < 2^31.

    Returns:
        float32 [N]; what overflows is inf.

    Raises:
        TypeError: another dtype.
        ValueError: not a vector, or too long.

    Example:
        >>> score_vector(np.ones(2)).dtype
        dtype('float32')
    """
    array = _vector("scores", values)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"scores must be float32, float16 or float64, got {array.dtype}")
    if len(array) > MAX_SAMPLES:
        raise ValueError(
            f"scores must have at most {MAX_SAMPLES} elements, got {len(array)}: shard the data set"
        )
    with np.errstate(over="ignore"):  # the caller refuses inf by name
        return np.require(array, np.float32, ["C", "A"])


def int64_vector(name: str, values: Integers) -> NDArray[np.int64]:
    """Return integers as a contiguous int64 vector: the array itself where it is that already.

    Args:
        name: the argument's name, for the message.
        values: [M] integers that int64 can hold whatever their values, or a range.

    Returns:
        int64 [M], in the same order.

    Raises:
        IndexError: a range leaves 0..2^63-1.
        TypeError: another dtype.
        ValueError: not a vector.

    Example:
        >>> int64_vector("indices", range(0, 9, 4)).tolist()
        [0, 4, 8]
    """
    if isinstance(values, range):
        if not values:
            return np.empty(0, dtype=np.int64)
        if min(values[0], values[-1]) < 0 or max(values[0], values[-1]) > INT64_MAX:
            raise IndexError(f"{name} must be in 0..2^63-1, got {values}")
        step = values.step if values[1:] else 0  # the step of one element may be of any size
        return values[0] + step * np.arange(len(values), dtype=np.int64)
    array = _vector(name, values)
    if not isinstance(values, np.ndarray) and not len(array):
        return np.empty(0, dtype=np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise TypeError(f"{name} must be integers that fit int64, got {array.dtype}")
    return np.require(array, np.int64, ["C", "A"])


def bool_vector(name: str, values: object, size: int) -> NDArray[np.bool_]:
    """Return booleans as a contiguous vector.

    Args:
        name: the argument's name, for the message.
        values: [M] bool.
        size: M.

    Returns:
        bool [M], the array itself where it is contiguous.

    Raises:
        TypeError: another dtype.
        ValueError: not a vector of this size.

    Example:
        >>> bool_vector("low", [True, False], 2).tolist()
        [True, False]
    """
    array = _vector(name, values)
    if len(array) != size:
        raise ValueError(f"{name} must have {size} elements, got {len(array)}")
    if array.dtype != np.bool_ and size:
        raise TypeError(f"{name} must be bool, got {array.dtype}")
    return np.require(array, np.bool_, ["C"])


def _vector(name: str, values: object) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {array.shape}")
    return array
