# SPDX-License-Identifier: Apache-2.0
"""What pick must do, in Python's integers and fractions; its inputs; the written vectors."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import torch
from torch import Tensor

RULES = ("top", "random", "proportional")
NAN, INF, MINUS_INF = 0x7FC00000, 0x7F800000, 0xFF800000
VECTORS = Path(__file__).parent / "ops/vectors/pick.json"


@dataclass(frozen=True)
class Key:
    """What a choice is drawn from."""

    seed: int = 0
    epoch: int = 0
    step: int = 0
    rank: int = 0
    site: int = 0

    def words(self, call: int) -> list[int]:
        """Return the four words of a Philox call."""
        counter = [self.step % oracle.WORD, self.rank, 16 * (self.site + 1) + call, self.epoch]
        return oracle.philox(counter, oracle.halves(self.seed))


@dataclass
class Choice:
    """What is chosen: index -> weight; and each element's probability."""

    weights: dict[int, float] = field(default_factory=dict)
    pi: list[Fraction] = field(default_factory=list)
    eligible: int = 0


def eligible_key(bits: int) -> int:
    """Return the key of an element, 0 where it cannot be chosen."""
    value = oracle.from_bits(bits)
    if value != value or value == -np.inf:
        return 0
    return oracle.key_of(min(value, oracle.FLT_MAX))


def caps(sizes: Sequence[int], k: int) -> tuple[set[int], int, int]:
    """Return who is certain, the sum of the other sizes and how many of those are chosen."""
    certain: set[int] = set()
    while True:
        area = sum(size for i, size in enumerate(sizes) if i not in certain)
        left = k - len(certain)
        more = {i for i, size in enumerate(sizes) if size * left > area} - certain
        if not more:
            return certain, area, left
        certain |= more


def raw_sizes(keys: Sequence[int]) -> list[int]:
    """Return the values in fixed point relative to the largest; 1 at least, 0 for who is out."""
    places = min(46, 62 - len(keys).bit_length())
    split = [divmod(key - oracle.SIGN, 2**23) if key > oracle.SIGN else None for key in keys]
    high = max((max(pair[0], 1) for pair in split if pair), default=0)
    sizes: list[int] = []
    for key, pair in zip(keys, split, strict=True):
        size = 0
        if pair is not None:
            mantissa = pair[1] + 2**23 * (pair[0] > 0)
            size = mantissa * 2 ** (places - 24) // 2 ** (high - max(pair[0], 1))
        sizes.append(max(size, 1) if key else 0)
    return sizes


def sizes_of(keys: Sequence[int], k: int, floor: int) -> list[int]:
    """Return the sizes with a floor, in 65536ths of the mean of min(size, t)."""
    sizes = raw_sizes(keys)
    if floor == 0:
        return sizes
    _, area, left = caps(sizes, k)
    mean = k * -(-area // left) // sum(size > 0 for size in sizes)
    return [size and max(size, mean * floor // 65536) for size in sizes]


def choose(bits: Sequence[int], k: int, rule: str, floor: int, key: Key) -> Choice:
    """Choose min(k, B) of some float32 bit patterns."""
    keys = [eligible_key(each) for each in bits]
    inside = [i for i, each in enumerate(keys) if each]
    wanted = min(k, len(bits))
    if rule == "top" or len(inside) <= wanted or wanted == 0:
        chosen = sorted(inside, key=lambda i: (-keys[i], i))[:wanted]
        found = Choice(dict.fromkeys(chosen, 1.0), eligible=len(inside))
        found.pi = [Fraction(i in found.weights) for i in range(len(bits))]
        others = [i for i, each in enumerate(keys) if not each]
        found.weights.update(dict.fromkeys(others[: wanted - len(chosen)], 0.0))
        return found
    sizes = [int(each > 0) for each in keys] if rule == "random" else sizes_of(keys, k, floor)
    return along_the_walk(sizes, k, key)


def along_the_walk(sizes: Sequence[int], k: int, key: Key) -> Choice:
    """Choose by sizes: who is certain, and whose piece of the line holds a point."""
    certain, area, left = caps(sizes, k)
    low, high = (word // 2 for word in key.words(8)[:2])
    start = (high * 2**31 + low) * area // 2**62
    calls = 8 if len(sizes) <= 1024 else 2
    keys = [word for call in range(calls) for word in key.words(call)]
    walk = oracle.Bijection(len(sizes), 0, 0, keys)
    found = Choice(dict.fromkeys(certain, 1.0), eligible=sum(size > 0 for size in sizes))
    place, t = 0, 0
    for j in range(len(sizes)):
        i = walk(j)
        if sizes[i] == 0 or i in certain:
            continue
        place += sizes[i]
        if t < left and (t * area + start) // left < place:
            found.weights[i] = float(np.float32(area) / np.float32(left * sizes[i]))
            t += 1
    assert (place, t) == (area, left)
    found.pi = [
        Fraction(i in certain) or Fraction(left * size, area) for i, size in enumerate(sizes)
    ]
    return found


# Inputs -----------------------------------------------------------------------------------------

KINDS = ("exponential", "odd", "equal", "any", "outliers", "powers", "heavy", "subnormal")


def random_bits(rng: random.Random, kind: str, count: int) -> list[int]:
    """Return float32 bit patterns of a kind, a fifth of them of any kind."""
    return [_value(rng, kind if rng.random() < 0.8 else rng.choice(KINDS)) for _ in range(count)]


def _value(rng: random.Random, kind: str) -> int:
    if kind == "odd":
        return rng.choice([0, oracle.SIGN, oracle.bits_of(-1.0), NAN, MINUS_INF, INF, 1])
    if kind == "any":
        return rng.randrange(255) << 23 | rng.randrange(1 << 23)
    if kind == "heavy" and rng.random() < 0.1:
        return NAN
    return oracle.bits_of(
        {
            "exponential": rng.expovariate(1.0),
            "equal": 1.5,
            "outliers": rng.random() if rng.random() < 0.95 else 1e10,
            "powers": 2.0 ** -rng.randrange(60),
            "heavy": rng.lognormvariate(0, 3),
            "subnormal": 1e-41 * rng.random(),
        }[kind]
    )


def random_key(rng: random.Random) -> Key:
    """Return numbers of which each uses all the bits that it may have."""
    return Key(
        rng.randrange(2**63),
        rng.randrange(2**31 - 1),
        rng.randrange(2**40),
        rng.randrange(2**31),
        rng.choice([0, 1, 2, 2**27 - 1]),
    )


def tensor_of(bits: Sequence[int]) -> Tensor:
    """Return the float32 tensor of some bit patterns."""
    return torch.from_numpy(np.array(bits, np.uint32).view(np.float32))


def counter(value: int) -> Tensor:
    """Return a number as the operator takes it."""
    return torch.tensor([value], dtype=torch.int64)


def arguments(values: Tensor, k: int, rule: str, floor: int, key: Key) -> tuple[Any, ...]:
    """Return what the operator is called with; its step keeps 63 bits."""
    return (
        *(values, k, RULES.index(rule), floor, key.seed),
        *(counter(key.epoch), counter(key.step), key.rank, key.site),
    )


def random_case(rng: random.Random, count: int) -> tuple[Any, ...]:
    """Return the operator's arguments for a number of elements: any rule, kind, k and floor."""
    bits = random_bits(rng, rng.choice(KINDS), count)
    k = rng.choice([0, 1, 2, count // 3, count // 2, max(0, count - 1), count, count + 3])
    floor = rng.choice([0, 655, 6554, 65536])
    return arguments(tensor_of(bits), k, rng.choice(RULES), floor, random_key(rng))


# The written vectors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    """One case of the file: what goes in and what must come out."""

    name: str
    arguments: tuple[Any, ...]
    indices: list[int]
    weights: list[int]
    row: dict[str, Any]


@cache
def vectors() -> tuple[Vector, ...]:
    """Return the file's cases."""
    rows = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]
    return tuple(
        Vector(
            row["name"],
            arguments(
                tensor_of([int(word, 16) for word in row["values"]]),
                *(row["k"], row["rule"], row["floor"]),
                Key(*(row[name] for name in ("seed", "epoch", "step", "rank", "site"))),
            ),
            row["indices"],
            [int(word, 16) for word in row["weights"]],
            row,
        )
        for row in rows
    )


@cache
def large() -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the file's large case and what it says of the result."""
    row = json.loads(VECTORS.read_text(encoding="utf-8"))["large"]
    drawn = np.random.default_rng(0).integers(1, 2**31 - 1 - 2**23, 70_001)
    key = Key(row["seed"], row["epoch"], row["step"])
    values = tensor_of(drawn.tolist())
    return arguments(values, row["k"], "proportional", row["floor"], key), row
