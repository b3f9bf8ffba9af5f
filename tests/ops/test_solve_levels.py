# SPDX-License-Identifier: Apache-2.0
"""solve_levels: the smallest threshold that keeps no more than a number of samples on average."""

from __future__ import annotations

import random
import struct
from fractions import Fraction

import _levels
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import int64, salts
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.backends import native
from prune_engine.backends.reference.solve_levels import keep_of
from prune_engine.ops.cells import cell_of

COUNTS = torch.zeros(4096, dtype=torch.int64)


def counts_on(scores: list[float | None]) -> torch.Tensor:
    return pe.ops.cells(int64(_levels.records_of(scores)), backend="reference")


@given(
    salt=salts,
    count=st.sampled_from([0, 1, 5, 40]),
    share=st.floats(0, 1.2),
    least=st.sampled_from([1, 100, 3000, 65536]),
    unseen=st.sampled_from([None, None, -3.0, 0.0, 1e-41, 0.7, oracle.FLT_MAX]),
)
def test_levels_are_the_oracles(backend, salt, count, share, least, unseen):
    scores = _levels.random_scores(random.Random(salt), count)
    target = round(share * count)
    want = _levels.solve(_levels.counts_of(scores), target, least, unseen)
    score = None if unseen is None else torch.tensor([unseen])
    got = pe.ops.solve_levels(counts_on(scores), target, least=least, unseen=score, backend=backend)
    assert got.solution.tolist() == [want.theta, want.expected]
    assert got.top.tolist() == [want.top]
    assert got.cut.tolist() == [65536 - keep for keep in want.keep]
    assert_bitwise(got.weight_table, want.weights, "weight_table")
    # The budget is met from below, by less than what the next smaller threshold adds.
    if want.theta > _levels.LOWEST:
        above = _levels.expected_of(_levels.counts_of(scores), want.theta - 1, least, unseen)
        assert above > 65536 * target
    assert want.expected <= 65536 * target or want.theta == _levels.HIGHEST


@pytest.mark.parametrize(("theta", "cell", "keep"), _levels.written()["keep_of"])
def test_the_written_draws_of_a_cell(theta, cell, keep):
    assert keep_of(theta, int64([cell]), 0).tolist() == [keep] == [_levels.keep_of(theta, cell, 0)]


@given(
    theta=st.integers(_levels.LOWEST, _levels.HIGHEST),
    cell=st.integers(_levels.FIRST, 8175),
    step=st.integers(1, 2**22),
)
def test_more_draws_keep_a_higher_score_and_fewer_a_higher_threshold(theta, cell, step):
    here = keep_of(theta, int64([cell]), 0).item()
    assert here == _levels.keep_of(theta, cell, 0)
    assert keep_of(theta, int64([cell + 1]), 0).item() >= here
    assert keep_of(min(theta + step, _levels.HIGHEST), int64([cell]), 0).item() <= here


def test_every_weight_makes_up_for_its_draws(backend):
    scores = _levels.random_scores(random.Random(3), 500)
    levels = pe.ops.solve_levels(counts_on(scores), 200, least=7, backend=backend)
    keep = [65536 - cut for cut in levels.cut.tolist()]
    assert keep[0] == 0 and keep[1] == 65536 and keep[255] == 7 == min(keep[1:])
    assert keep[1:] == sorted(keep[1:], reverse=True)
    for share, weight in zip(keep[1:], levels.weight_table.tolist()[1:], strict=True):
        assert abs(Fraction(weight) * share / 65536 - 1) <= Fraction(1, 2**24)


def test_the_levels_beyond_the_last_have_one_number_of_draws():
    # 254 cells below the top hardly a draw keeps a sample, so that one class may take all of them.
    rng = random.Random(5)
    ends = (_levels.LOWEST, _levels.HIGHEST)
    for theta in (*ends, *(rng.randrange(*ends) for _ in range(50))):
        cells = range(4096 + 16 * (theta >> 23), 9000)
        top = next(cell for cell in cells if _levels.keep_of(theta, cell, 0) == 65536)
        assert keep_of(theta, int64([top - 254]), 0).item() <= 1


def test_edge_case_10_numbers_out_of_range(backend):
    for arguments, words in (
        ((COUNTS, -1), r"target must be in 0\.\.2\^46, got -1"),
        ((COUNTS, 2**46 + 1), r"target must be in 0\.\.2\^46"),
        ((COUNTS[:9], 1), "counts must be a vector of 4096"),
    ):
        with pytest.raises(ValueError, match=words):
            pe.ops.solve_levels(*arguments, backend=backend)
    for least in (0, 65537):
        with pytest.raises(ValueError, match=rf"least must be in 1\.\.65536, got {least}"):
            pe.ops.solve_levels(COUNTS, 1, least=least, backend=backend)
    with pytest.raises(TypeError, match="target must be an int"):
        pe.ops.solve_levels(COUNTS, 0.5, backend=backend)
    for bad in ((COUNTS, -1, 1), (COUNTS, 1, 0), (COUNTS[:9].contiguous(), 1, 1)):
        with pytest.raises(RuntimeError, match="must"):
            native.solve_levels(*bad)


def test_edge_case_07_a_score_of_the_never_seen_that_does_not_fit(backend):
    for score, error, words in (
        (torch.zeros(2), ValueError, "unseen must be a vector of 1 elements"),
        (torch.zeros(1).double(), TypeError, "unseen must be float32"),
        (1.0, TypeError, "unseen must be a tensor, got float"),
    ):
        with pytest.raises(error, match=words):
            pe.ops.solve_levels(COUNTS, 1, unseen=score, backend=backend)
        with pytest.raises(error, match=words):
            pe.policies.LevelRule(1, unseen=score)


def test_what_the_never_seen_count_as_is_a_cell_of_finite_scores():
    for score, cell in (
        (-oracle.FLT_MAX, 4112),
        (-0.0, 4112),
        (oracle.FLT_MAX, 8175),
        (float("inf"), 8175),
        (float("-inf"), 4112),
        (float("nan"), 8175),
    ):
        assert cell_of(torch.tensor([score])).tolist() == [cell]
    for score in _levels.random_scores(random.Random(1), 300):
        if score is not None:
            assert cell_of(torch.tensor([score])).tolist() == [_levels.cell_of(score)]


def test_counts_of_many_shards_do_not_overflow(backend):
    counts = COUNTS.clone()
    counts[2016], counts[4095] = 2**45, 2**44
    levels = pe.ops.solve_levels(counts, 2**45, backend=backend)
    keep = 65536 - levels.cut[levels.top.item() + 1 - 6128].item()
    assert keep == 32768 and levels.solution[1] == 65536 * 2**44 + 32768 * 2**45


def test_opcheck_and_compile():
    counts = counts_on([1.0, 2.0, None])
    torch.library.opcheck(native.solve_levels, (counts, 2, 5))
    compiled = torch.compile(lambda x: pe.ops.solve_levels(x, 2), fullgraph=True, backend="eager")
    for got, want in zip(compiled(counts), pe.ops.solve_levels(counts, 2), strict=True):
        assert_bitwise(got, want, "levels")


def test_the_oracles_cells_and_thresholds_are_those_of_floats():
    for score in (2.0**-126, 1.0, 1.5, 3.9999998, oracle.FLT_MAX):
        bits = struct.unpack("<I", struct.pack("<f", score))[0]
        assert _levels.cell_of(score) == ((bits | 1 << 31) >> 19)
        assert _levels.tau_of(bits) == Fraction(struct.unpack("<f", struct.pack("<f", score))[0])
