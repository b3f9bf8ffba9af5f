# SPDX-License-Identifier: Apache-2.0
"""Greedy choices over a matrix of pairs, exact and without the whole matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prune_engine.coresets.method import Report
from prune_engine.coresets.pairs import Dense, Matrix, kept, slices
from prune_engine.coresets.stack import chosen_of, rows_of, stacked, stacked_entries

CANDIDATES = 512  # that a round looks at

Update = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contest:
    """A choice of k times the largest value, where a choice changes the others and raises none.

    Args:
        matrix: [n, n].
        values: [n], of every sample; -inf is never taken. It is overwritten.
        update: (values [m], entries [m, p] with the chosen) -> values, none of them larger; each
            row by itself.
        k: how many, at most as many as are finite.
        first: int64, what was chosen before, of which the values know already.
    """

    matrix: Matrix
    values: Tensor
    update: Update
    k: int
    first: Tensor | None = None

    def order(self, found: Tensor) -> Tensor:
        """Return all that were chosen."""
        return found if self.first is None else torch.cat((self.first, found))


def largest_first(contest: Contest, report: Report) -> Tensor:
    """Settle a contest.

    A value that is out of date is a bound, so the candidates above all others' bounds can be
    settled among themselves, and everyone else brought up to date with all of a round's choices in
    one matrix product (Minoux's lazy greedy, 1978, a block at a time): the same choices as one by
    one, at n x CANDIDATES entries in memory.

    Args:
        contest: among n samples.
        report: is told.

    Returns:
        int64, as they were chosen, ties to the smaller index.
    """
    matrix, values, update, left = contest.matrix, contest.values, contest.update, contest.k
    whole = kept(matrix)
    if isinstance(whole, Dense):
        return side_by_side([replace(contest, matrix=whole)], report)[0]
    found: list[Tensor] = []
    while left:
        picked = _round(matrix, values, update, left)
        values[picked] = -torch.inf
        for rows in slices(len(values), len(picked)):
            values[rows] = update(values[rows], matrix.block(rows, picked))
        found.append(picked)
        left -= len(picked)
        report(len(picked))
    none = torch.empty(0, dtype=torch.int64, device=values.device)
    return contest.order(torch.cat(found) if found else none)


def side_by_side(contests: Sequence[Contest], report: Report) -> list[Tensor]:
    """Settle contests among few samples each, a choice of every one at a time.

    A choice is a few launches on a device, whatever it is of: together they cost as many as the
    longest contest alone. The host waits for none of them, and the choices are those of each by
    itself, bit for bit, for what is added is added row by row.

    Args:
        contests: of one method, so that they share their update; each of few samples (``few``).
        report: is told.

    Returns:
        Of each contest int64, as they were chosen, ties to the smaller index.
    """
    entries = stacked_entries([contest.matrix for contest in contests])
    values = stacked([contest.values for contest in contests], -torch.inf)
    update, steps = contests[0].update, max(contest.k for contest in contests)
    lanes = torch.arange(len(contests), device=values.device)
    chosen: list[Tensor] = []
    for step in range(steps):
        best = values.argmax(dim=1)
        chosen.append(best)
        columns = rows_of(entries, lanes, best)  # of a symmetric matrix
        values = update(values.flatten(), columns.reshape(-1, 1)).view_as(values)
        values.scatter_(1, best[:, None], -torch.inf)
        report(sum(step < contest.k for contest in contests))
    found = chosen_of(chosen, [contest.k for contest in contests], lanes)
    return [contest.order(order) for contest, order in zip(contests, found, strict=True)]


def _round(matrix: Matrix, values: Tensor, update: Update, left: int) -> Tensor:
    """Choose what no sample outside of the candidates can prevent: at least the largest."""
    size = min(CANDIDATES, len(values) - 1)
    bound = values.topk(size + 1).values[-1]
    candidates = torch.nonzero(values > bound)[:, 0]
    if not len(candidates):  # more equals than candidates: the first of them
        return values.argmax()[None]
    among = matrix.block(candidates, candidates)
    own, limit = values[candidates], float(bound)
    chosen: list[int] = []
    while len(chosen) < left:
        best = int(own.argmax())
        if float(own[best]) <= limit:
            break
        chosen.append(best)
        own = update(own, among[:, best : best + 1])
        own[best] = -torch.inf
    return candidates[torch.tensor(chosen, device=candidates.device)]


def facilities(matrix: Matrix, k: int, report: Report, floor: float = 0.0) -> Tensor:
    """Take k times the sample that adds most to ``sum_i max(floor, max_{j chosen} s_ij)``, exactly.

    A choice changes only what is added by way of the samples that it comes nearer to, so all gains
    are kept up to date by those rows: about log k times n of them in all, where lazy evaluation
    (Minoux 1978) looks at the same gains again and again.

    Args:
        matrix: similarities, none below the floor.
        k: how many.
        report: is told.
        floor: what a sample has before anything is chosen.

    Returns:
        int64 [k] as they were chosen, ties to the smaller index.
    """
    matrix = kept(matrix)
    n = len(matrix)
    everyone = slice(0, n)
    first = matrix.block(slice(0, 1), slice(0, 1))
    current = torch.full((n,), floor, dtype=first.dtype, device=first.device)
    gains = torch.full((n,), -n * floor, dtype=torch.float64, device=first.device)
    for rows in slices(n, n):
        gains += matrix.block(rows, everyone).sum(dim=0, dtype=torch.float64)
    chosen: list[Tensor] = []
    for _ in range(k):
        best = gains.argmax()[None]
        chosen.append(best)
        closer = torch.maximum(current, matrix.block(best, everyone)[0])
        nearer = (closer > current).nonzero()[:, 0]
        for part in slices(len(nearer), n):
            gains -= _lost(matrix, nearer[part], current, closer)
        current = closer
        gains.index_fill_(0, best, -torch.inf)
        report(1)
    return torch.cat(chosen)


def _lost(matrix: Matrix, rows: Tensor, current: Tensor, closer: Tensor) -> Tensor:
    """Return what each sample adds less by way of some rows, [n]."""
    entries = matrix.block(rows, slice(0, len(matrix)))
    before, after = current[rows, None], closer[rows, None]
    # max(0, s - before) - max(0, s - after), for after is above before.
    lost = entries.clamp(before, after).sum(dim=0, dtype=torch.float64)
    return lost.sub_(before.sum(dtype=torch.float64))
