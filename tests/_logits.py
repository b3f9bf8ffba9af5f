# SPDX-License-Identifier: Apache-2.0
"""Batches of logits and the state they are observed into, for every test of cross_entropy_observe.

The tolerance, and its reason: a row's sum of C exponentials is taken in another order by every
backend, each term within 2 units of 2^-24, and the blocks, lanes or threads keep runs of additions
below 1100; so a loss or a score errs by less than 1e-4 of itself plus 2e-6 (a probability near 1 is
known to 2^-24, and its complement is what most scores are). float64 logits: 1e-9.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import oracle
import torch
from _assertions import assert_bitwise
from _cases import EVERY_WEIGHT, counters, int64, records, table, uint8
from torch import Tensor

from prune_engine.backends import reference

WEIGHTS = table(*EVERY_WEIGHT)
REST = ("batch_weights", "records", "score_sum", "counters", "step")


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-6}


class Case:
    """Everything that the operator takes, from a salt."""

    def __init__(
        self,
        batch_size: int,
        num_classes: int,
        salt: int,
        *,
        dtype: torch.dtype = torch.float32,
        num_samples: int = 40,
        epoch: int = 3,
        ignored: bool = True,
        awkward: bool = False,
        span: int | None = None,
    ) -> None:
        """Draw logits of one of several scales; some rows all alike, some with one sure class."""
        rng = random.Random(salt)
        generator = torch.Generator().manual_seed(salt)
        scale = rng.choice([0.0, 1.0, 5.0, 40.0])
        logits = scale * torch.randn(batch_size, num_classes, generator=generator)
        self.targets = torch.randint(num_classes, (batch_size,), generator=generator)
        for b in range(batch_size):
            if rng.random() < 0.2:  # a sample the model is sure of, rightly or wrongly
                logits[b, rng.randrange(num_classes)] += 30.0
            if rng.random() < 0.1:
                logits[b] = rng.choice([0.0, -3.5])
            if awkward and rng.random() < 0.3:
                value = rng.choice([torch.inf, -torch.inf, torch.nan, 60000.0, -60000.0])
                logits[b, rng.randrange(num_classes)] = value
            if awkward and rng.random() < 0.05:
                logits[b] = -torch.inf
            if ignored and rng.random() < 0.1:
                self.targets[b] = -100
        self.logits = logits.to(dtype)
        samples = [rng.randrange(span or num_samples) for _ in range(batch_size)]
        self.indices = int64(samples)
        old = records(rng, num_samples, epoch, unseen=rng.choice([0.0, 0.3, 1.0]))
        self.start = [int64(old), int64(oracle.sum_of_records(old)), counters(), int64([0])]
        classes = uint8([rng.randrange(256) for _ in range(num_samples)])
        self.fixed = [classes, WEIGHTS, int64([epoch])]

    def run(
        self,
        kernels: Any,
        kind: int,
        labels: Sequence[Any] = (None, 0.0, -100),
        device: str = "cpu",
    ) -> dict[str, Tensor]:
        """Call a backend's operator on a copy of the state; return all it gave and changed."""
        state = [tensor.clone().to(device) for tensor in self.start]
        weight, *numbers = labels
        given = (weight if weight is None else weight.to(device), *numbers)
        batch = [tensor.to(device) for tensor in (self.logits, self.targets, self.indices)]
        fixed = [tensor.to(device) for tensor in self.fixed]
        found = kernels.cross_entropy_observe(*batch, *given, kind, [*state, *fixed], True)
        names = ("rescaled", "batch_weights", "score", "stats", *REST[1:])
        return {name: t.cpu() for name, t in zip(names, (*found, *state), strict=True)}

    def recorded(self, score: Tensor, epoch: int | None = None) -> dict[str, Tensor]:
        """What observe leaves of a score, by the reference: the records' bits are promised."""
        state = [tensor.clone() for tensor in self.start]
        _, weights = reference.observe(score, self.indices, score, [*state, *self.fixed], True)
        return dict(zip(REST, (weights, *state), strict=True))


def assert_agrees(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Fail unless floats agree within rounding and records bit for bit, given the score."""
    limits = tolerance(case.logits.dtype)
    broken = torch.isnan(want["stats"][:, 1])
    assert torch.equal(torch.isnan(got["stats"][:, 1]), broken)
    for found in (got, want):  # the largest of a row with nan is nobody's business
        found["stats"] = torch.where(broken[:, None], 0.0, found["stats"])
    for name in ("rescaled", "score", "stats"):
        assert got[name].dtype == want[name].dtype
        narrow = name == "score" and case.logits.dtype == torch.float64
        limit = {"rtol": 1e-6, "atol": 1e-12} if narrow else limits
        torch.testing.assert_close(got[name], want[name], equal_nan=True, **limit)
    for name, value in case.recorded(got["score"]).items():
        assert_bitwise(got[name], value, name)
