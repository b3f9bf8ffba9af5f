# SPDX-License-Identifier: Apache-2.0
"""Putting the kept samples in training order: all positions, and one batch of 256 of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import harness
import numpy as np
import pytest
import torch
from data import PruneState, synthetic_scores
from harness import Alternative

import prune_engine as pe

TABLE = "order"
VERSUS = "torch.randperm, gather"
RELATIVE_TO = "copy of the list"
UNIT = "ms"
SLOW = 2
BATCH = 256


class OrderData:
    """A kept list, as one plan leaves it (int32), and the int64 list a torch user would have."""

    def __init__(self, num_samples: int) -> None:
        """Plans epoch 1 of the synthetic scores."""
        state = PruneState(torch.from_numpy(synthetic_scores(num_samples)))
        self.kept = state.plan(epoch=1)[1]
        self.items = int(self.kept.shape[0])
        self.kept_long = self.kept.long()
        self.array = self.kept.numpy()

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"num_kept": self.items, "batch": BATCH}


def _whole(data: OrderData, epoch: int) -> object:
    return pe.ops.order(data.kept, range(data.items), seed=0, epoch=epoch)


def _share(data: OrderData, epoch: int) -> object:
    return pe.ops.order(data.kept, range(epoch % 8, data.items, 8), seed=0, epoch=epoch)


def _batch(data: OrderData, epoch: int) -> object:
    start = epoch * BATCH % (data.items - BATCH)
    return pe.ops.order(data.kept, range(start, start + BATCH), seed=0, epoch=epoch)


def _randperm(data: OrderData, seed: int) -> object:
    generator = torch.Generator().manual_seed(seed)
    return data.kept_long[torch.randperm(data.items, generator=generator)]


def _permutation(data: OrderData, seed: int) -> object:
    return np.random.default_rng(seed).permutation(data.array)


def _round(_data: OrderData, number: int) -> int:
    return number


def _both_ways(data: OrderData) -> int:
    return 8 * data.items


_row = partial(Alternative, prepare=_round)

ALTERNATIVES = (
    _row("pe order, all positions", _whole, bytes_moved=_both_ways),
    _row("pe order, all positions", _whole, threads=2, bytes_moved=_both_ways),
    _row("pe order, every 8th position (one rank of 8)", _share, bytes_moved=lambda d: d.items),
    _row("pe order, 256 positions", _batch, bytes_moved=lambda _: 8 * BATCH),
    _row(VERSUS, _randperm, threads=2, every=SLOW),
    _row("np Generator.permutation", _permutation, every=SLOW),
    _row(RELATIVE_TO, lambda d, _: d.kept.clone(), threads=2, bytes_moved=_both_ways),
)


@pytest.fixture(scope="module")
def data(num_samples: int) -> OrderData:
    """The data, made once for all rows."""
    return OrderData(num_samples)


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_order(benchmark: Any, data: OrderData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)
