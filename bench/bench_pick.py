# SPDX-License-Identifier: Apache-2.0
"""A quarter of a batch, chosen in proportion to its losses: the time, and what the choice is worth.

``python bench/compare.py run --tables pick --samples 256 4096 65536 1000000 --out FILE`` times it,
N being the batch; ``python bench/bench_pick.py`` prints the deviations of the estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import numpy as np
import pytest
import tables
import torch
from harness import Alternative

import prune_engine as pe

TABLE = "pick"
VERSUS = "torch.multinomial"
RELATIVE_TO = "torch.topk"
UNIT = "us"
SLOW = 3
CALLS = 8  # of a timed call
STEPS = 20_000  # of the deviations


class PickData:
    """Lognormal losses, of which a quarter is chosen."""

    def __init__(self, batch: int) -> None:
        """Makes the losses in each form."""
        self.items = batch
        self.k = max(1, batch // 4)
        self.array = np.random.default_rng(1).lognormal(0, 1, batch).astype(np.float32)
        self.values = torch.from_numpy(self.array)
        self.shares = self.array.astype(np.float64) / self.array.sum(dtype=np.float64)
        self.epoch = torch.zeros(1, dtype=torch.int64)

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"k": self.k, "losses": "lognormal(0, 1)", "calls of a timed one": CALLS}


def _steps(_data: PickData, number: int) -> list[torch.Tensor]:
    return [torch.tensor([number * CALLS + call]) for call in range(CALLS)]


def _pick(data: PickData, steps: list[torch.Tensor], **options: Any) -> object:
    at = {"seed": 7, "epoch": data.epoch, **options}
    return [pe.ops.pick(data.values, data.k, step=step, **at) for step in steps]


def _repeated(call: Callable[[PickData, Any], object]) -> Callable[[PickData, Any], object]:
    return lambda data, argument: [call(data, argument) for _ in range(CALLS)]


def _choice(data: PickData, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.choice(data.items, data.k, replace=False, p=data.shares))


_ours = partial(Alternative, prepare=_steps, inner=CALLS)
ALTERNATIVES = (
    _ours("pe pick proportional", _pick),
    _ours("pe pick proportional", _pick, threads=2),
    _ours("pe pick proportional, no floor", partial(_pick, floor=0.0)),
    _ours("pe pick random", partial(_pick, rule="random")),
    _ours("pe pick top", partial(_pick, rule="top")),
    Alternative(
        VERSUS,
        _repeated(lambda data, rng: torch.multinomial(data.values, data.k, generator=rng)),
        prepare=lambda _data, number: torch.Generator().manual_seed(number),
        inner=CALLS,
    ),
    Alternative(
        "np Generator.choice, replace=False",
        _repeated(_choice),
        prepare=lambda _data, number: np.random.default_rng(number),
        inner=CALLS,
        every=SLOW,
    ),
    Alternative(
        RELATIVE_TO, _repeated(lambda data, _: torch.topk(data.values, data.k)), inner=CALLS
    ),
)


@pytest.fixture(scope="module")
def data(num_samples: int) -> PickData:
    """The data, made once for all rows."""
    return PickData(min(num_samples, 65_536))


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_pick(benchmark: Any, data: PickData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)


# What a choice is worth -------------------------------------------------------------------------

Sums = Callable[[np.ndarray], np.ndarray]  # targets [B] -> an estimate of their sum each step


def _picked(values: np.ndarray, k: int, steps: int, **options: Any) -> Sums:
    """Sums over what is picked, by the weights that come with it."""
    given, step = torch.from_numpy(values), torch.zeros(1, dtype=torch.int64)
    chosen = np.zeros((steps, len(values)), np.float32)
    for number in range(steps):
        found, weights, _ = pe.ops.pick(given, k, seed=5, epoch=0, step=step, **options)
        chosen[number, found.numpy()] = weights.numpy()
        step += 1
    return lambda target: chosen @ target


def _drawn(chosen: np.ndarray, weights: np.ndarray) -> Sums:
    return lambda target: (weights * target)[chosen].sum(1)


def estimators(values: np.ndarray, k: int, steps: int) -> dict[str, Sums]:
    """The ways to estimate a sum over the batch from k of its elements.

    Args:
        values: [B] float32, the sizes.
        k: how many are chosen.
        steps: how often.

    Returns:
        Of each way, what turns targets [B] into one estimate of their sum per step.
    """
    rng, count = np.random.default_rng(7), len(values)
    shares = values / values.sum(dtype=np.float64)
    gumbel = np.log(shares) + rng.gumbel(size=(steps, count))
    without = np.argsort(-gumbel, 1)[:, :k]  # torch.multinomial and NumPy's choice draw so
    uniform = np.argsort(rng.random((steps, count)), 1)[:, :k]
    with_them = rng.choice(count, (steps, k), p=shares)
    return {
        "pe pick proportional, no floor": _picked(values, k, steps, floor=0.0),
        "pe pick proportional": _picked(values, k, steps),
        "pe pick random": _picked(values, k, steps, rule="random"),
        "uniform, no replacement": _drawn(uniform, np.full(count, count / k)),
        "multinomial, with replacement": _drawn(with_them, 1 / (k * shares)),
        "multinomial, no replacement": _drawn(without, 1 / np.minimum(1, k * shares)),
    }


def deviations(batch: int, k: int, steps: int) -> str:
    """Returns a Markdown table: the deviation and, where it shows, the bias of each estimate.

    Args:
        batch: B.
        k: how many are chosen.
        steps: how often.
    """
    values = np.random.default_rng(1).lognormal(0, 1, batch).astype(np.float32)
    noise = np.random.default_rng(2).normal(size=batch)
    targets = {"size": values, "size + noise": values + noise, "noise": noise}
    rows: list[list[str]] = []
    for name, sums in estimators(values, k, steps).items():
        cells = [name]
        for target in targets.values():
            found = sums(target.astype(np.float64))
            bias = found.mean() - target.sum(dtype=np.float64)
            spread = found.std()
            shows = abs(bias) > 5 * spread / math.sqrt(steps) and abs(bias) > 1e-4
            word = "0" if spread < 1e-4 else tables.number(float(spread))
            cells.append(word + (f" (bias {bias:+.2f})" if shows else ""))
        rows.append(cells)
    return tables.markdown(["standard deviation of the sum of", *targets], rows)


if __name__ == "__main__":
    for size, number in ((40, 10), (256, 64)):
        print(f"B = {size}, k = {number}, {STEPS:,} steps, lognormal(0, 1) sizes:\n")
        print(deviations(size, number, STEPS), end="\n\n")
