# SPDX-License-Identifier: Apache-2.0
"""The self-test of ``prune-engine info --check``: every operator against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prune_engine import backends, ops
from prune_engine.backends import reference
from prune_engine.bands import (
    INT64_MAX,
    PLAN_BLOCK,
    SUM_WORDS,
    Band,
    weight_table,
)
from prune_engine.ops.rule import Rule
from prune_engine.ops.weights import weights_on

NUM_SAMPLES = 5_000  # more than one block of a plan, and little enough for two seconds
SEED = 7
ACCURACY = 1e-6  # of what is measured (SEMANTICS 3.9)


@dataclass(frozen=True)
class Check:
    """One operator of one backend, compared with the reference.

    Args:
        name: backend, device and operator.
        ok: every bit agrees, or what is measured agrees within 1e-6.
        detail: empty, or what differs.
    """

    name: str
    ok: bool
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def check() -> list[Check]:
    """Compare every available backend with the reference, on every device it serves.

    Returns:
        One entry per backend, device and operator; empty if only the reference is available.
    """
    return [
        result
        for row in backends.describe()
        if row.available and row.name != "reference"
        for device in row.devices
        for result in parity(row.name, torch.device(device))
    ]


def parity(backend: str, device: torch.device, operators: Any = ops) -> list[Check]:
    """Run every operator on a backend and on the reference, from the same inputs.

    Args:
        backend: its name.
        device: where its tensors live; the reference runs on the CPU.
        operators: what is called for it; something with the functions of ``prune_engine.ops``.

    Returns:
        One entry per operator, in the order of :data:`CASES`. One that raises is a fault; the
        others are tried all the same, for none starts from another's result.
    """
    checks: list[Check] = []
    for name, case in CASES.items():
        expected = tuple(case(ops, "reference", torch.device("cpu")))
        try:
            detail = _difference(expected, tuple(case(operators, backend, device)))
        except Exception as error:
            # Whatever a broken backend raises is the finding, reported as such.
            detail = f": raised {type(error).__name__}: {error}"
        checks.append(Check(f"{backend} on {device}: {name}", not detail, detail))
    return checks


def _difference(expected: tuple[Tensor, ...], actual: tuple[Tensor, ...]) -> str:
    """Empty if all values agree; nan (a dropped sample's infinite loss) agrees with nan.

    Every bit of them, but for what is measured in float64: that within ACCURACY of itself.
    """
    wrong = 0
    for want, have in zip(expected, actual, strict=True):
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            return f": expected {want.dtype} {tuple(want.shape)}, got {have.dtype} {have.shape}"
        have = have.cpu()
        differs = want != have
        if want.dtype == torch.float64:
            differs &= ~((want - have).abs() <= ACCURACY * want.abs())
        wrong += int((differs & ((want == want) | (have == have))).sum())
    total = sum(want.numel() for want in expected)
    return f": {wrong} of {total} elements differ" if wrong else ""


def state(num_samples: int, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a score buffer before its first epoch, as ``ops.observe`` names them.

    Args:
        num_samples: N.
        device: where they live.

    Returns:
        records, score_sum, counters, step, weight_class and weight_table.
    """
    return {
        "records": torch.zeros(num_samples, dtype=torch.int64, device=device),
        "score_sum": torch.zeros(SUM_WORDS, dtype=torch.int64, device=device),
        "counters": torch.tensor([0, 0, 0, INT64_MAX, 0], device=device),
        "step": torch.zeros(1, dtype=torch.int64, device=device),
        "weight_class": torch.ones(num_samples, dtype=torch.uint8, device=device),
        "weight_table": weights_on(weight_table(2.0), device),
    }


def mean_rule(threshold: Tensor, *, fixed: bool = False) -> Rule:
    """Return the rule that drops half of those below a threshold and gives the others weight 2.

    Args:
        threshold: float32 [1].
        fixed: exactly half instead of independent draws.

    Returns:
        The rule, on the threshold's device.
    """
    low, high = Band(32768, 2, 1, 2), Band(0, 1, 2, 2)
    return Rule(threshold, (low, high), weight_table(2.0), fixed=fixed)


# Cases. Each makes its inputs on the CPU, from its own generator, so that no operator can hide the
# fault of another, and yields what the operator returned or changed.


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _scores() -> Tensor:
    return torch.randn(NUM_SAMPLES, generator=_generator()).exp()


def _records() -> Tensor:
    """Records as epoch 0 leaves them; every tenth sample was not seen."""
    records = _scores().view(torch.int32).to(torch.int64) | 1 << 31 | 1 << 32  # keys of positives
    records[::10] = 0
    return records


def _classes() -> Tensor:
    drawn = torch.randint(0, 3, (NUM_SAMPLES,), generator=_generator())
    return drawn.to(torch.uint8)


def _observe(
    operators: Any, backend: str, device: torch.device, name: str = "observe"
) -> Iterator[Tensor]:
    held = state(NUM_SAMPLES, device)
    held["weight_class"] = _classes().to(device)
    losses = _scores()
    losses[::1000] = float("inf")
    indices = torch.randperm(NUM_SAMPLES, generator=_generator())
    for epoch in range(2):
        for start in range(0, NUM_SAMPLES, 2048):
            part = slice(start, start + 2048)
            batch = (losses[part].to(device), indices[part].to(device))
            result = getattr(operators, name)(*batch, epoch=epoch, backend=backend, **held)
            yield from result if isinstance(result, tuple) else (result,)
        losses = losses.flip(0)
    yield from (held["records"], held["score_sum"], held["counters"], held["step"])


def _mean_threshold(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    nothing, one, tiny = [0] * SUM_WORDS, [0] * 4 + [1 << 21] + [0] * 4, [5] + [0] * 8
    huge = [0] * 6 + [-3, 7 << 40, -123_456]
    for score_sum in (nothing, [*one, 3], [*tiny, 2], [*huge, 5_000]):
        yield operators.mean_threshold(torch.tensor(score_sum, device=device), backend=backend)


def _plan(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    records, threshold = _records().to(device), torch.tensor([1.0], device=device)
    rules = [mean_rule(threshold, fixed=fixed) for fixed in (False, True)]
    never = Band(16384, 2, 1, 2)  # for the never seen alone
    rules += [replace(rule, bands=(*rule.bands, never), unseen_band=2) for rule in rules]
    for rule in (*rules, Rule.keep_all(device)):
        yield from operators.plan(records, rule, seed=SEED, epoch=1, backend=backend)


def _cells(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    yield operators.cells(_records().to(device), backend=backend)


def _solve_levels(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    counts = reference.cells(_records()).to(device)
    for target in (0, NUM_SAMPLES // 2, NUM_SAMPLES):
        yield from operators.solve_levels(counts, target, least=100, backend=backend)
    key = {"least": 100, "unseen": torch.ones(1, device=device), "backend": backend}
    yield from operators.solve_levels(counts, NUM_SAMPLES // 2, **key)


def _plan_levels(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    top, cut, *_ = reference.solve_levels(reference.cells(_records()), NUM_SAMPLES // 2, 100)
    key = {"seed": SEED, "epoch": 1, "backend": backend}
    records, top, cut = (x.to(device) for x in (_records(), top, cut))
    for unseen in (None, torch.full((1,), 0.5, device=device)):
        yield from operators.plan_levels(records, top, cut, unseen=unseen, **key)


def _compact(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    classes = _classes()
    starts = range(0, NUM_SAMPLES, PLAN_BLOCK)
    kept = [int((classes[start : start + PLAN_BLOCK] != 0).sum()) for start in starts]
    offsets = torch.tensor([0, *kept]).cumsum(0)
    yield operators.compact(
        classes.to(device), offsets.to(device), int(offsets[-1]), backend=backend
    )


def _order(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    kept = torch.arange(0, NUM_SAMPLES, 2, dtype=torch.int32, device=device)
    some = torch.arange(3, len(kept), 17, device=device)
    for positions in (range(len(kept)), range(1, len(kept), 4), some):
        yield operators.order(kept, positions, seed=SEED, epoch=1, backend=backend)


def _shuffle(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for n in (NUM_SAMPLES, 10**10):
        places = torch.arange(0, n, max(1, n // 999), device=device)
        for work in (operators.shuffle, operators.unshuffle):
            yield work(places, n, seed=SEED, epoch=1, backend=backend)


def _draw(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for first in (0, 2**40):
        at = torch.arange(first, first + 999, device=device)
        yield operators.draw(at, seed=SEED, epoch=1, stream=3, backend=backend)


def _plan_top(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for k in (NUM_SAMPLES // 3, NUM_SAMPLES):  # ties among those never seen, and all of the pool
        key = {"cut": 20000, "seed": SEED, "epoch": 1, "backend": backend}
        yield from operators.plan_top(_records().to(device), k, **key)


def _audit(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    records, classes = _records().to(device), _classes().to(device)
    for epoch in range(2):
        yield operators.audit(records, classes, epoch=epoch, backend=backend)


def _select(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for values in (_scores().to(device), _records().to(device)):
        yield operators.select(values, [0, 0, -3, 7], [20, 85, 100, 0], 100, backend=backend)


def _top(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    tied = (_scores() * 8).round().to(device)  # equal scores go to the smaller index
    for values in (tied, _records().to(device)):
        yield operators.top(values, NUM_SAMPLES // 3, backend=backend)


def _pick(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for size in (700, NUM_SAMPLES):  # one launch, and several
        values = _scores()[:size].to(device)
        for rule in ("top", "random", "proportional"):
            key = {"seed": SEED, "epoch": 1, "step": size}
            yield from operators.pick(values, size // 4, rule=rule, backend=backend, **key)


def _layers(device: torch.device) -> list[Tensor]:
    """Activations above -1, so that neither a mean nor a tail of GELU loses digits."""
    return [(_scores() * scale - 1).to(device) for scale in (1.0, 0.5, 3.0)]


def _moments(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    yield operators.moments(_layers(device), backend=backend)


def _activation_std(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    out = torch.zeros(3, dtype=torch.float64, device=device)
    operators.activation_std(_layers(device), out, 1, backend=backend)
    yield out


def _relu_moments(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for inplace in (False, True):
        yield from operators.relu_moments(_layers(device)[0], inplace=inplace, backend=backend)


def _gelu_moments(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    for approximate in ("none", "tanh"):
        y, moments = operators.gelu_moments(_layers(device)[0], approximate, backend=backend)
        yield from (y.double(), moments)


def _cross_entropy_observe(operators: Any, backend: str, device: torch.device) -> Iterator[Tensor]:
    # In float64: a softmax in float32 differs between backends in its last bits.
    rng = torch.Generator().manual_seed(SEED)
    logits = torch.randn(64, 1000, generator=rng, dtype=torch.float64).to(device).requires_grad_()
    losses, weights, scores = operators.cross_entropy_observe(
        logits,
        torch.randint(1000, (64,), generator=rng).to(device),
        torch.randperm(NUM_SAMPLES, generator=rng)[:64].to(device),
        **state(NUM_SAMPLES, device),
        epoch=0,
        label_smoothing=0.1,
        score="el2n",
        backend=backend,
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logits)  # cross_entropy_grad
    yield from (losses.detach(), weights, scores, gradient)


Case = Callable[[Any, str, torch.device], Iterator[Tensor]]
CASES: dict[str, Case] = {
    "observe": _observe,
    "observe_mean": partial(_observe, name="observe_mean"),
    "mean_threshold": _mean_threshold,
    "plan": _plan,
    "cells": _cells,
    "solve_levels": _solve_levels,
    "plan_levels": _plan_levels,
    "compact": _compact,
    "order": _order,
    "shuffle": _shuffle,
    "draw": _draw,
    "plan_top": _plan_top,
    "audit": _audit,
    "select": _select,
    "top": _top,
    "pick": _pick,
    "moments": _moments,
    "activation_std": _activation_std,
    "relu_moments": _relu_moments,
    "gelu_moments": _gelu_moments,
    "cross_entropy_observe": _cross_entropy_observe,
}
