# SPDX-License-Identifier: Apache-2.0
"""A fixed number of a batch's elements, chosen on the device."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import MAX_EPOCH, MAX_SAMPLES, MAX_SEED, MAX_SITE
from prune_engine.ops.checks import LOSS_DTYPES, check_count, check_int, check_vector

PickRule = Literal["top", "random", "proportional"]
PICK_RULES: tuple[PickRule, ...] = ("top", "random", "proportional")
FLOOR = 0.1  # of the mean size: no weight beyond about ten times the mean one


def pick(
    values: Tensor,
    k: int,
    *,
    rule: PickRule = "proportional",
    floor: float = FLOOR,
    seed: int,
    epoch: int | Tensor,
    step: int | Tensor,
    rank: int = 0,
    site: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose min(k, B) of a batch's B elements, with the weight that makes the choice unbiased.

    ``"proportional"``: element i is chosen with probability ``pi_i = min(1, s_i / t)``, its size
    s_i the value in fixed point and t such that the pi sum to k; its weight is ``1 / pi_i``, so
    ``(weights * losses[indices]).sum() / B`` is unbiased for the batch's mean. Systematic sampling
    (Madow, "On the theory of systematic sampling, II", 1949) in a random order (Hartley and Rao
    1962). Ours: everything in integers, so that inclusion is exactly pi, the size is always
    min(k, B), and a choice is a pure function of its arguments, the same on every backend
    (SEMANTICS 3.11). Nothing waits for the device, and nothing is changed.

    Args:
        values: [B] floating, such as losses or scores; rounded to float32 first. nan and -inf are
            not eligible (a mask is ``values.masked_fill(~mask, -inf)``), +inf counts as the
            largest float32. Not differentiable: ``losses[indices]`` is.
        k: in 0..2^31-1; beyond B, all of them.
        rule: ``"top"``: the k largest, ties to the smaller index, weight 1: biased on purpose.
            ``"random"``: all eligible alike. ``"proportional"``: in proportion to the value.
        floor: in 0..1: no size is below this share of the mean one, which bounds the weights; 0
            for none. Only of ``"proportional"``, as zero and negative values are.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2, or an int64 [1] tensor on the device.
        step: in 0..2^63-1, of which the low 32 bits count, or an int64 [1] tensor on the device:
            a captured graph that adds to it draws anew in every replay. The same step chooses
            the same again, so a recomputed forward repeats its choice.
        rank: in 0..2^31-1; ranks with one k choose independently.
        site: in 0..2^27-1: tells several picks of one step apart.
        backend: which kernels.

    Returns:
        ``indices`` int32 [min(k, B)], ascending and distinct; ``weights`` float32 [min(k, B)], 0
        where fewer than k were eligible and others fill up (their loss may be nan: multiply by
        ``torch.where(weights > 0, loss, 0)``); ``eligible`` int64 [1], how many were.

    Raises:
        TypeError: values are not a floating tensor, or a number is not an int or a float.
        ValueError: a number is out of range, the rule has no such name, or a tensor's shape or
            device does not fit.

    Example:
        >>> losses = torch.tensor([0.5, 4.0, 0.1, 0.4, torch.nan, 1.0])
        >>> indices, weights, eligible = pick(losses, 3, seed=0, epoch=0, step=7)
        >>> indices.tolist(), weights.tolist(), eligible.item()
        ([0, 1, 5], [2.0, 1.0, 1.0], 5)
    """
    values = check_vector("values", values, LOSS_DTYPES)
    check_count("values", values.shape[0])
    check_int("k", k, 0, MAX_SAMPLES)
    if rule not in PICK_RULES:
        words = ", ".join(map(repr, PICK_RULES))
        raise ValueError(f"rule must be one of {words}, got {rule!r}")
    check_int("seed", seed, 0, MAX_SEED)
    check_int("rank", rank, 0, MAX_SAMPLES)
    check_int("site", site, 0, MAX_SITE)
    return backends.kernels_for(backend, values).pick(
        values.detach().to(torch.float32).contiguous(),
        k,
        PICK_RULES.index(rule),
        _floor_of(floor),
        seed,
        _counter("epoch", epoch, MAX_EPOCH, values.device),
        _counter("step", step, MAX_SEED, values.device),
        rank,
        site,
    )


def _floor_of(floor: object) -> int:
    """Return a share in 65536ths, refusing what is none."""
    if isinstance(floor, bool) or not isinstance(floor, int | float):
        raise TypeError(f"floor must be a number in 0..1, got {floor!r}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be in 0..1, got {floor}")
    return math.floor(floor * 65536 + 0.5)


def _counter(name: str, value: object, high: int, device: torch.device) -> Tensor:
    """Return a number as an int64 [1] tensor on the device."""
    if isinstance(value, Tensor):
        return check_vector(name, value, (torch.int64,), size=1, device=device)
    check_int(name, value, 0, high)
    return torch.full((1,), value, dtype=torch.int64, device=device)  # pyright: ignore
