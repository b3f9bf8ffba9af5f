# SPDX-License-Identifier: Apache-2.0
"""Exact sums through a backend's own operators: the vectors, replacements, and scaled losses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import oracle
import torch
from _assertions import assert_bitwise
from _cases import counters, int64, table, uint8
from torch import Tensor

# Written down from a program that has nothing in common with this one but SEMANTICS 3.1 and 3.2.
VECTORS = json.loads(Path(__file__).with_name("ops").joinpath("exact_sum.json").read_bytes())
SCALES = [-100, -46, 0, 33, 100]  # exponents: exact scalings, and no loss becomes subnormal


def float_of(bits: str) -> float:
    return oracle.from_bits(int(bits, 16))


def any_float(rng: random.Random) -> float:
    """Return a finite float32 of any exponent and either sign."""
    return oracle.from_bits(rng.choice([0, 1 << 31]) | rng.randrange(0x7F800000))


class State:
    """The state of some samples on a device, for the operators themselves."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        """Start with nothing seen."""
        tensors = [int64([0] * size), int64([0] * 10), counters(), int64([0])]
        tensors += [uint8([1] * size), table(2.0), int64([0])]
        self.tensors = [tensor.to(device) for tensor in tensors]
        self.records, self.score_sum, *_, self.epoch = self.tensors

    def observe(self, kernels: Any, losses: list[float] | Tensor, indices: list[int]) -> None:
        """Record a batch in the current epoch."""
        device = self.records.device
        scores = torch.as_tensor(losses, dtype=torch.float32)
        kernels.observe(scores.to(device), int64(indices).to(device), None, self.tensors, True)


def bits_of_threshold(kernels: Any, score_sum: Tensor) -> str:
    return f"{kernels.mean_threshold(score_sum).view(torch.int32).item() & 0xFFFFFFFF:08x}"


EVERY = slice(None)


def check_vectors(kernels: Any, device: str = "cpu", part: slice = EVERY) -> int:
    """Fail unless a backend has the bits of the vectors, or of some; return how many there were."""
    for row in VECTORS["sums"][part]:
        want = int64(row["score_sum"])
        assert bits_of_threshold(kernels, want.to(device)) == row["threshold"], row["name"]
        if "scores" in row:
            scores = [float_of(bits) for bits in row["scores"]]
            state = State(len(scores), device)
            if scores:
                state.observe(kernels, scores, list(range(len(scores))))
            assert_bitwise(state.score_sum.cpu(), want, row["name"])
            audit = kernels.audit(state.records, state.tensors[4], 0)
            assert_bitwise(audit[:10].cpu(), want, f"{row['name']}, recomputed")
    state = State(3, device)
    for epoch, row in enumerate(VECTORS["replacements"]):
        state.epoch.fill_(epoch)
        state.observe(kernels, [float_of(row["score"])], [row["sample"]])
        assert_bitwise(state.score_sum.cpu(), int64(row["score_sum"]), f"replacement {epoch}")
        assert bits_of_threshold(kernels, state.score_sum) == row["threshold"]
    return len(VECTORS["sums"][part]) + len(VECTORS["replacements"])


def check_replacements(kernels: Any, rng: random.Random, batches: int, device: str = "cpu") -> None:
    """Fail unless the running sum is the audit's and the oracle's after any replacements."""
    size = rng.randrange(1, 40)
    state = State(size, device)
    for epoch in sorted(rng.randrange(6) for _ in range(batches)):
        count = rng.randrange(1, 60)
        state.epoch.fill_(epoch)
        scores = [any_float(rng) for _ in range(count)]
        state.observe(kernels, scores, [rng.randrange(size) for _ in range(count)])
        audit = kernels.audit(state.records, state.tensors[4], epoch)
        assert_bitwise(audit[:10].cpu(), state.score_sum.cpu(), "the running sum")
        want = oracle.sum_of_records(state.records.tolist())
        assert_bitwise(state.score_sum.cpu(), int64(want), "score_sum")
        threshold = f"{oracle.bits_of(oracle.mean_threshold(want)):08x}"
        assert bits_of_threshold(kernels, state.score_sum) == threshold


def planned(kernels: Any, losses: Tensor, device: str = "cpu") -> Tensor:
    """Return the weight classes that InfoBatch's rule gives losses, by the operators themselves."""
    state = State(len(losses), device)
    state.observe(kernels, losses, list(range(len(losses))))
    threshold = kernels.mean_threshold(state.score_sum)
    classes = torch.empty_like(state.tensors[4])
    rule = [32768, 0], [2, 1], [1, 1], 0, -1
    kernels.plan(state.records, threshold, *rule, 5, 1, classes, 0)
    return classes.cpu()


def check_scales(kernels: Any, losses: Tensor, device: str = "cpu") -> None:
    """Fail unless scaled losses keep the same sets, which are neither empty nor full."""
    want = planned(kernels, losses, device)
    assert 0 < int((want == 0).sum()) < int((want != 1).sum()) < len(losses)
    for exponent in SCALES:
        got = planned(kernels, losses * 2.0**exponent, device)
        assert_bitwise(got, want, f"classes of losses times 2^{exponent}")
