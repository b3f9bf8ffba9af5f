# SPDX-License-Identifier: Apache-2.0
"""The file of a recording: a head in words, then one block of fixed size for each epoch.

| bytes | of a block |
|---|---|
| 96 | the epoch's figures, begun by a checksum of all the rest |
| 1,024 | float32: the sum of weights of the kept samples, by the code that decided about them |
| M | the score's code at the epoch's end |
| 3 M / 8 | bits: kept by the plan; seen; served and not seen, which a score that is not finite is |

1.375 bytes per sample and 1,120 more per epoch. A block that was torn has another checksum, and is
no epoch of the recording.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prune_engine.recording.codes import CODES

MAGIC = b"prune_engine recording 1 "
LINE = len(MAGIC) + 9  # and the number of bytes of the head, in 8 digits
PAGE = 4096
FIGURES = np.dtype(
    [
        ("checksum", "<u4"),
        ("partial", "<u4"),
        ("epoch", "<i8"),
        ("planned", "<i8"),
        ("served", "<i8"),
        ("observed", "<i8"),
        ("nonfinite", "<i8"),
        ("num_seen", "<i8"),
        ("samples_trained", "<i8"),
        ("nominal_trained", "<i8"),
        ("threshold", "<f8"),
        ("score_mean", "<f8"),
        ("reserved", "<i8"),
    ]
)
BEFORE_CODES = FIGURES.itemsize + 4 * CODES  # bytes of a block
NAMES = tuple(name for name in FIGURES.names or () if name not in ("checksum", "reserved"))


def head(identity: dict[str, Any]) -> bytes:
    """Return the head of a file."""
    words = json.dumps(identity, sort_keys=True).encode() + b"\n"
    size = -(-(LINE + len(words)) // PAGE) * PAGE
    return (MAGIC + b"%08d\n" % size + words).ljust(size, b"\n")


def read_head(path: Path) -> tuple[dict[str, Any], int]:
    """Read who a recording is of.

    Args:
        path: the file.

    Returns:
        What ``head`` was given, and its size in bytes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no recording, or its head is torn.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {path}")
    with path.open("rb") as file:
        line = file.readline(LINE)
        size = line[len(MAGIC) :].strip()
        if not line.startswith(MAGIC) or not size.isdigit():
            raise ValueError(f"path: {path} is no recording of prune_engine")
        words = file.read(int(size) - LINE)
    try:
        found = json.loads(words)
    except ValueError as error:
        raise ValueError(f"path: the head of {path} is torn ({error})") from error
    if not isinstance(found, dict) or not {"num_samples", "recorded"} <= set(found):  # pyright: ignore
        raise ValueError(f"path: the head of {path} names no samples")
    return cast("dict[str, Any]", found), int(size)


def block_type(recorded: int) -> np.dtype[np.void]:
    """Return the type of a block of so many samples."""
    bits = -(-recorded // 8)
    return np.dtype(
        [
            ("figures", FIGURES),
            ("weights", "<f4", (CODES,)),
            ("codes", "u1", (recorded,)),
            ("kept", "u1", (bits,)),
            ("seen", "u1", (bits,)),
            ("lost", "u1", (bits,)),
        ]
    )


def checksum(block: NDArray[np.void]) -> int:
    """Return the checksum of a block, of all that comes after it; 0 is of no block."""
    return zlib.crc32(block.tobytes()[4:]) or 1


def recorded_samples(num_samples: int, recorded: int) -> NDArray[np.int64]:
    """Return which samples are recorded: all, or evenly many.

    Args:
        num_samples: N.
        recorded: M, at most N.

    Returns:
        int64 [M], ascending.

    Example:
        >>> recorded_samples(10, 4).tolist()
        [0, 2, 5, 7]
    """
    return np.arange(recorded, dtype=np.int64) * num_samples // max(1, recorded)
