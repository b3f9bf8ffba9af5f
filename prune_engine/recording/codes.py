# SPDX-License-Identifier: Apache-2.0
"""Scores in a byte: 8 steps to an octave, so that a code is the top of a record's key."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHIFT = 20  # from an order-preserving key to its cell: sign, exponent and 3 bits of the mantissa
CELLS = 1 << (32 - SHIFT)
STEPS = 8  # cells of an octave
FLOOR = 110  # the exponent field of 2^-17, below which a score counts as zero
UNSEEN, ZERO, POSITIVE = 0, 33, 34  # 1..32 are octaves of negative scores, the lowest first
CODES = 256


def code_table() -> NDArray[np.uint8]:
    """Return the code of every cell, uint8 [4096]; the codes never fall as the scores rise."""
    cell: Any = np.arange(CELLS)
    positive = (cell - CELLS // 2 - STEPS * FLOOR + POSITIVE).clip(ZERO, CODES - 1)
    octave = (CELLS // 2 - 1 - cell) // STEPS - FLOOR
    negative = ZERO - (octave + 1).clip(0, ZERO - 1)
    codes = np.empty(CELLS, np.uint8)
    codes[: CELLS // 2], codes[CELLS // 2 :] = negative[: CELLS // 2], positive[CELLS // 2 :]
    return codes


def lower_bounds() -> NDArray[np.float64]:
    """Return the smallest score of each positive code, float64 [222], from 2^-17 on."""
    bits: Any = (np.arange(CODES - POSITIVE, dtype=np.uint32) + STEPS * FLOOR) << SHIFT
    return bits.view(np.float32).astype(np.float64)


def code_values() -> NDArray[np.float32]:
    """Return what each code stands for, float32 [256]: the middle of its scores, nan for unseen.

    A positive score from 2^-17 to 1,700 is within 1/16 of it, a negative one within a half. What
    is smaller counts as zero, what is larger as the largest.

    Returns:
        By code.

    Example:
        >>> values = code_values()
        >>> int(code_table()[0xBF800000 >> SHIFT]), values[170], values[33]
        (170, np.float32(1.0625), np.float32(0.0))
    """
    values = np.zeros(CODES, np.float32)
    values[UNSEEN] = np.nan
    values[1:ZERO] = -1.5 * 2.0 ** (np.arange(ZERO - 2, -1, -1) + FLOOR - 127)
    bits: Any = (np.arange(CODES - POSITIVE, dtype=np.uint32) + STEPS * FLOOR) << SHIFT
    values[POSITIVE:] = (bits + (1 << (SHIFT - 1))).view(np.float32)
    return values
