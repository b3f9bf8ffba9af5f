# SPDX-License-Identifier: Apache-2.0
"""Levels of scores stated again, in Python integers and fractions; and the written vectors."""

from __future__ import annotations

import json
import math
import random
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import oracle
from torch import Tensor

from prune_engine import backends

FIRST, UNSEEN, ALL = 4112, 4095, 65536
LOWEST, HIGHEST = 1 << 23, 271 << 23


def cell_of(score: float) -> int:
    """Sixteen cells to an octave of positive normal numbers; all others share the first."""
    if score < 2.0**-126:
        return FIRST
    fraction, exponent = math.frexp(score)  # score = fraction * 2^exponent, fraction in [1/2, 1)
    return FIRST + 16 * (exponent + 125) + int(32 * fraction - 16)


@cache
def middle_of(cell: int) -> Fraction:
    """The middle of a cell."""
    octave, sixteenth = divmod(cell - FIRST, 16)
    return Fraction(2) ** (octave - 126) * Fraction(33 + 2 * sixteenth, 32)


@cache
def tau_of(theta: int) -> Fraction:
    """The number whose float32 bits theta is, also beyond the floats."""
    exponent, fraction = divmod(theta, 1 << 23)
    return Fraction(2) ** (exponent - 127) * Fraction((1 << 23) + fraction, 1 << 23)


def keep_of(theta: int, cell: int, least: int) -> int:
    """How many of the 65536 draws keep a sample of a cell."""
    middle, tau = middle_of(cell), tau_of(theta)
    return max(least, ALL if middle >= tau else math.floor(ALL * middle / tau))


@dataclass(frozen=True)
class Levels:
    """The solution: see ``ops.Levels``."""

    theta: int
    expected: int
    top: int
    keep: list[int]

    @property
    def weights(self) -> list[float]:
        """One division for each class."""
        return [0.0, *(oracle.f32(ALL / keep) for keep in self.keep[1:])]


def counts_of(scores: Sequence[float | None]) -> Counter[int]:
    """How many samples each bin has; None: never seen."""
    return Counter(UNSEEN if x is None else cell_of(x) - FIRST for x in scores)


def expected_of(counts: Counter[int], theta: int, least: int, unseen: float | None = None) -> int:
    """65536 times how many are kept on average; unseen: the score of the never seen, else kept."""
    never = ALL if unseen is None else keep_of(theta, cell_of(unseen), least)
    return sum(
        number * (never if place == UNSEEN else keep_of(theta, FIRST + place, least))
        for place, number in counts.items()
    )


def solve(counts: Counter[int], target: int, least: int, unseen: float | None = None) -> Levels:
    """The smallest theta that keeps no more than the target."""
    low, high = LOWEST, HIGHEST
    while low < high:
        middle = (low + high) // 2
        if expected_of(counts, middle, least, unseen) <= ALL * target:
            high = middle
        else:
            low = middle + 1
    top = next(c for c in range(4096 + 16 * (low >> 23), 9000) if keep_of(low, c, 0) == ALL)
    keep = [0, ALL]
    for weight_class in range(2, 255):
        cell = top + 1 - weight_class
        keep.append(keep_of(low, cell, least) if cell >= FIRST else least)
    return Levels(low, expected_of(counts, low, least, unseen), top, [*keep, least])


def plan(
    scores: Sequence[float | None],
    levels: Levels,
    seed: int,
    epoch: int,
    first: int = 0,
    unseen: float | None = None,
) -> list[int]:
    """The class of each sample, 0 where its draw is below the cut."""
    drawn = oracle.draws(first + len(scores), seed, epoch)[first:]
    classes = []
    for score, draw in zip(scores, drawn, strict=True):
        taken = unseen if score is None else score
        level = 1 if taken is None else levels.top + 1 - cell_of(taken)
        level = min(255, max(1, level))
        classes.append(0 if draw < ALL - levels.keep[level] else level)
    return classes


def random_scores(rng: random.Random, count: int) -> list[float | None]:
    """Scores of one of many kinds, some never seen."""
    kinds = [
        lambda: rng.expovariate(1.0),
        lambda: rng.lognormvariate(0, 2),
        lambda: 0.7,
        lambda: rng.choice([0.0, rng.expovariate(1.0)]),
        lambda: -rng.random(),
        lambda: rng.expovariate(1.0) * 1e-40,
        lambda: rng.choice([1e-20, 1e30]),
        lambda: struct.unpack("<f", struct.pack("<I", rng.randrange(0x7F800000)))[0],
    ]
    kind, unseen = rng.choice(kinds), rng.choice([0.0, 0.0, 0.2])
    return [None if rng.random() < unseen else oracle.f32(kind()) for _ in range(count)]


def records_of(scores: Sequence[float | None], epoch: int = 0) -> list[int]:
    """The records of scores."""
    return [0 if x is None else oracle.record_of(x, epoch) for x in scores]


# records, target, least, seed, epoch, first, and perhaps the cell of the never seen
Case = tuple[Any, ...]


def run(kernels: Any, case: Case) -> dict[str, Tensor]:
    """All that a backend makes of a case, by name."""
    records, target, least, seed, epoch, first, *cell = case
    unseen = records.new_tensor(cell).int() if cell else None
    counts = kernels.cells(records)
    top, cut, table, solution = kernels.solve_levels(counts, target, least)
    classes = records.new_full(records.shape, 7).byte()
    offsets = kernels.plan_levels(records, top, cut, seed, epoch, classes, first, unseen)
    return {
        "counts": counts,
        "top": top,
        "cut": cut,
        "weight_table": table,
        "solution": solution,
        "weight_class": classes,
        "block_offsets": offsets,
    }


def specified(case: Case) -> dict[str, Tensor]:
    """The same by the reference."""
    return run(backends.load("reference"), case)


def written() -> dict[str, Any]:
    """The written vectors."""
    path = Path(__file__).parent / "ops/vectors/levels.json"
    return json.loads(path.read_text(encoding="utf-8"))


def written_scores(row: dict[str, Any]) -> list[float | None]:
    """The scores of a written plan."""
    found = [struct.unpack(">f", bytes.fromhex(word))[0] for word in row["scores"]]
    return [None if x != x else x for x in found]


def written_facts(row: dict[str, Any]) -> dict[str, Any]:
    """What a written plan says, in the form of ``facts``."""
    keys = ("bins", "theta", "top", "expected", "keep", "weights", "planned")
    return {key: row[key] for key in keys}


def facts(found: dict[str, Tensor], classes: list[int]) -> dict[str, Any]:
    """What a backend found of a written plan, whose samples are of these classes."""
    counts = found["counts"]
    table = found["weight_table"][classes]
    return {
        "bins": {str(k): int(counts[k]) for k in counts.nonzero().flatten().tolist()},
        "theta": int(found["solution"][0]),
        "top": int(found["top"]),
        "expected": int(found["solution"][1]),
        "keep": [ALL - int(found["cut"][k]) for k in classes],
        "weights": [struct.pack(">f", x).hex() for x in table.tolist()],
        "planned": found["weight_class"].tolist(),
    }
