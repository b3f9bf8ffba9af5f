# SPDX-License-Identifier: Apache-2.0
"""Two exact percentiles and the larger half, beside sorting and selecting: Table 11, a new row."""

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

TABLE = "select"
VERSUS = "np.percentile"
RELATIVE_TO = "np.mean"
UNIT = "ms"
SLOW = 3
PERCENTS = (20.0, 85.0)


class SelectData:
    """The synthetic scores, as an array, as a tensor and as records."""

    def __init__(self, num_samples: int) -> None:
        """Makes all three once."""
        self.items = num_samples
        self.array = synthetic_scores(num_samples)
        self.scores = torch.from_numpy(self.array)
        self.records = PruneState(self.scores).records
        self.ranks = tuple(round((num_samples - 1) * p / 100) for p in PERCENTS)

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        return {"percentiles": "20 and 85"}


def _nothing(_data: SelectData, number: int) -> int:
    return number


_row = partial(Alternative, prepare=_nothing)


def _read(data: SelectData) -> int:
    return 4 * data.items


ALTERNATIVES = (
    _row("pe percentiles", lambda d, _: pe.ops.percentiles(d.scores, PERCENTS), bytes_moved=_read),
    _row(
        "pe percentiles",
        lambda d, _: pe.ops.percentiles(d.scores, PERCENTS),
        threads=2,
        bytes_moved=_read,
    ),
    _row(
        "pe percentiles of records",
        lambda d, _: pe.ops.percentiles(d.records, PERCENTS),
        threads=2,
        bytes_moved=lambda d: 2 * _read(d),
    ),
    _row("pe top half", lambda d, _: pe.ops.top(d.scores, d.items // 2), threads=2),
    _row(VERSUS, lambda d, _: np.percentile(d.array, PERCENTS)),
    _row("np.partition", lambda d, _: np.partition(d.array, d.ranks)),
    _row("np.sort", lambda d, _: np.sort(d.array)),
    _row("torch.sort", lambda d, _: torch.sort(d.scores), threads=2, every=SLOW),
    _row(
        "torch.kthvalue, twice",
        lambda d, _: [torch.kthvalue(d.scores, rank + 1) for rank in d.ranks],
        threads=2,
        every=SLOW,
    ),
    _row(
        "torch.topk, unsorted half",
        lambda d, _: torch.topk(d.scores, d.items // 2, sorted=False),
        threads=2,
        every=SLOW,
    ),
    _row(RELATIVE_TO, lambda d, _: d.array.mean(), bytes_moved=_read),
)


@pytest.fixture(scope="module")
def data(num_samples: int) -> SelectData:
    """The data, made once for all rows."""
    return SelectData(num_samples)


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_select(benchmark: Any, data: SelectData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)
