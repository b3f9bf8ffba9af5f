# SPDX-License-Identifier: Apache-2.0
"""Inputs that the op tests share: sizes, scores with every awkward float, records and rules."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import oracle
import torch
from hypothesis import strategies as st
from torch import Tensor

import prune_engine as pe

MAX_SEED = 2**63 - 1
MAX_EPOCH = 2**31 - 2

# Sizes around the draw group (8), a cache line of classes and the plan block (4096).
sizes = st.sampled_from([0, 1, 2, 7, 8, 9, 31, 32, 33, 257, 4095, 4096, 4097, 8191, 9001])
seeds = st.sampled_from([0, 1, 2**32 - 1, 2**32, MAX_SEED]) | st.integers(0, MAX_SEED)
epochs = st.sampled_from([0, 1, MAX_EPOCH]) | st.integers(0, MAX_EPOCH)
salts = st.integers(0, 2**32)  # seeds of the local random.Random that fills a case
threads = st.sampled_from([1, 2])

AWKWARD = [
    *(0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1.1754942e-38, -1e-40),
    *(2.0**-40, 2.0**-41, -(2.0**-41), 3 * 2.0**-41, -3 * 2.0**-42, 2.0**-42),
    *(0.1, 0.5, -0.5, 1.0, -1.0, 2.302585, 65504.0, 65519.0),
    *(2.0**22, -(2.0**22), 2.0**22 - 0.25, 2.0**22 + 0.5, 5e6, -5e6, 3e38, -3e38),
    *(1e10, -1e-14, 2.0**100, -(2.0**-100), 2.0**-118 - 2.0**-142, -(2.0**42), 2.0**-22),
    *(oracle.FLT_MAX, -oracle.FLT_MAX),
]
# Of the classes from 2 on: powers of two, what has no end in binary, and no two alike.
EVERY_WEIGHT = (2.0, 1.3333334, 65536.0, 0.1, *(k / 7 for k in range(8, 258)))
NON_FINITE = [math.inf, -math.inf, math.nan]


def floats(rng: random.Random, count: int, *, finite: bool = True) -> list[float]:
    """Return float32 values: mostly losses, many ties, every awkward value in turn."""
    pool = AWKWARD if finite else AWKWARD + NON_FINITE
    makers = [
        lambda: rng.expovariate(1.0),
        lambda: rng.gauss(0.0, 3.0),
        lambda: rng.randrange(8) / 4,
        lambda: rng.choice(pool),
    ]
    return [oracle.f32(rng.choice(makers)()) for _ in range(count)]


def records(rng: random.Random, count: int, epoch: int, *, unseen: float = 0.2) -> list[int]:
    """Return records of this epoch or an earlier one, some of them never seen."""
    values = floats(rng, count)
    past = [epoch, max(epoch - 1, 0), 0]
    return [0 if rng.random() < unseen else oracle.record_of(v, rng.choice(past)) for v in values]


def int64(values: Sequence[int]) -> Tensor:
    """Return an int64 tensor."""
    return torch.tensor(list(values), dtype=torch.int64)


def uint8(values: Sequence[int]) -> Tensor:
    """Return a uint8 tensor."""
    return torch.tensor(list(values), dtype=torch.uint8)


def float32(values: Sequence[float]) -> Tensor:
    """Return a float32 tensor."""
    return torch.tensor(list(values), dtype=torch.float32)


def records_of(scores: Sequence[float], epoch: int = 0) -> Tensor:
    """Return the records of scores that were all seen in one epoch."""
    return int64([oracle.record_of(oracle.f32(s), epoch) for s in scores])


def counters() -> Tensor:
    """Return the counters of an epoch that has not begun."""
    return int64([0, 0, 0, oracle.INT64_MAX, 0])


def table(*weights: float) -> Tensor:
    """Return a weight table whose classes 2, 3, ... have the given weights."""
    return float32([0.0, 1.0, *weights] + [0.0] * (254 - len(weights)))


def rule_of(
    thresholds: Sequence[float],
    fates: Sequence[oracle.Fate],
    *,
    fixed: bool = False,
    unseen_band: int = -1,
    weights: Sequence[float] = (2.0,),
) -> pe.policies.Rule:
    """Return the library's rule for the oracle's fates, brought to one denominator."""
    den = math.lcm(*(f.keep.denominator for f in fates))
    bands = tuple(pe.policies.Band(f.cut, f.weight_class, int(f.keep * den), den) for f in fates)
    spare = max(fate.weight_class for fate in fates) - 1 - len(weights)
    row = pe.policies.weight_table(*weights, *[1.0] * spare)
    return pe.policies.Rule(float32(thresholds), bands, row, fixed, unseen_band)


def mean_rule(threshold: float, cut: int) -> pe.policies.Rule:
    """Return InfoBatch's rule: strictly below the threshold is low, kept low samples weigh more."""
    keep = Fraction(65536 - cut, 65536)
    fates = [oracle.Fate(cut, 2, keep), oracle.Fate(0, 1, Fraction(1))]
    return rule_of([threshold], fates, weights=[float(1 / keep)])


def one_band(cut: int) -> pe.policies.Rule:
    """Return the rule that treats all seen samples alike: dropped iff their draw is below cut."""
    return rule_of([], [oracle.Fate(cut, 1, Fraction(65536 - cut, 65536))])
