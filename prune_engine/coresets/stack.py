# SPDX-License-Identifier: Apache-2.0
"""Classes of different sizes side by side, filled up to the largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine.coresets.pairs import Dense, Matrix, kept


def stacked(rows: Sequence[Tensor], fill: float) -> Tensor:
    """Return vectors [n_g] as [G, n]; one alone is not copied."""
    if len(rows) == 1:
        return rows[0][None]
    result = rows[0].new_full((len(rows), max(map(len, rows))), fill)
    for lane, row in enumerate(rows):
        result[lane, : len(row)] = row
    return result


def stacked_entries(matrices: Sequence[Matrix]) -> Tensor:
    """Return small matrices [n_g, n_g] as [G, n, n]; one alone is not copied."""
    found = [kept(matrix) for matrix in matrices]
    entries = [whole.entries for whole in found if isinstance(whole, Dense)]
    assert len(entries) == len(matrices)
    if len(entries) == 1:
        return entries[0][None]
    size = max(map(len, entries))
    result = entries[0].new_zeros(len(entries), size, size)
    for lane, each in enumerate(entries):
        result[lane, : len(each), : len(each)] = each
    return result


def rows_of(entries: Tensor, lanes: Tensor, which: Tensor) -> Tensor:
    """Return a row of each matrix [G, n, n], [G, n]: by one index, several times as fast as two."""
    return entries.flatten(0, 1).index_select(0, lanes * entries.shape[1] + which)


def chosen_of(steps: Sequence[Tensor], counts: Sequence[int], lanes: Tensor) -> list[Tensor]:
    """Return of each lane its own first choices, of steps [G] that went on for the longest."""
    table = torch.stack(list(steps)) if steps else lanes.new_empty(0, len(lanes))
    return [table[:count, lane] for lane, count in enumerate(counts)]
