# SPDX-License-Identifier: Apache-2.0
"""Divided scores, killed at any moment: resumed by any number of ranks as if never stopped."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from _fault_program import DIVIDED, Outcome, in_process, without_a_fault
from _faults import NOBODY, assert_as_never_stopped, attempt, check_random_kills, torchrun
from _processes import start_ranks
from _ranks import Ranks
from _runs import batches, losses_at, observe

import prune_engine as pe

BRIEF = pytest.param(0, marks=pytest.mark.full("a brief soak"))
TICKS = 60  # of a rank in a run, at least: its steps, exchanges and writes


@pytest.mark.parametrize("seed", range(12))
def test_a_divided_run_killed_at_random_points_is_the_run_that_never_stopped(seed, tmp_path):
    assert check_random_kills(seed, tmp_path, DIVIDED, TICKS) >= 1


@pytest.mark.soak
@pytest.mark.parametrize("block", [BRIEF, *range(1, 6)])
def test_three_hundred_random_divided_runs(block, tmp_path_factory):
    kills = [
        check_random_kills(1000 + 50 * block + at, tmp_path_factory.mktemp("run"), DIVIDED, TICKS)
        for at in range(50)
    ]
    assert min(kills) >= 1
    assert max(kills) == 4, "control: some runs are killed again and again"


def test_control_parts_of_another_moment_are_caught(tmp_path):
    # What a file that names its parts guards against: one part of the save before.
    file = tmp_path / "run.pt"
    assert attempt(2, DIVIDED, file, 0, 40) is None
    number = torch.load(file, weights_only=True)["set"]
    name = f"run.pt.{number}-1-of-2"
    state: Any = torch.load(tmp_path / name, weights_only=True)
    state["engine"]["cursor"] -= DIVIDED.global_batch
    torch.save(state, tmp_path / name)
    with pytest.raises(pe.StateMismatchError, match="part 1 differs from part 0 in cursor"):
        attempt(1, DIVIDED, file)


# --- real processes, real signals ----------------------------------------------------------------


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("point", "at", "victim", "sizes"),
    [
        ("step", 14, 2, (3, 2)),  # elastic: a rank fewer
        ("before the exchange", 50, 0, (2, 3)),  # the other waits in it; one rank more
        ("half written", 3, 1, (2, 2)),  # a part of the third save
        ("before the rename", 6, 0, (2, 1)),  # all parts of it are there, but not what names them
        ("after the rename", 5, 0, (2, 2)),  # one part is there
    ],
)
def test_sigkill_then_fewer_or_more_ranks(tmp_path, point, at, victim, sizes):
    folder = str(tmp_path)
    codes = start_ranks(in_process, sizes[0], folder, DIVIDED, victim, at, point, 0).join()
    assert codes[victim] == -9
    assert (tmp_path / "run.pt").exists()
    assert not (tmp_path / "outcome.pt").exists()
    assert start_ranks(in_process, sizes[1], folder, DIVIDED, NOBODY, 0, "", 1).join() == (
        [0] * sizes[1]
    )
    outcome = Outcome(**torch.load(tmp_path / "outcome.pt", weights_only=True))
    assert_as_never_stopped(outcome, without_a_fault(DIVIDED, tmp_path))
    parts = [name for name in os.listdir(tmp_path) if "-of-" in name and name[0] != "."]
    assert len(parts) == (sizes[1] if sizes[1] > 1 else 0), "of other sets nothing is left"


@pytest.mark.distributed
def test_sigterm_then_the_same_ranks(tmp_path):
    folder = str(tmp_path)
    codes = start_ranks(in_process, 2, folder, DIVIDED, 1, 11, "step", 0, signal.SIGTERM).join()
    assert codes[1] == -15
    assert start_ranks(in_process, 2, folder, DIVIDED, NOBODY, 0, "", 1).join() == [0, 0]
    outcome = Outcome(**torch.load(tmp_path / "outcome.pt", weights_only=True))
    assert_as_never_stopped(outcome, without_a_fault(DIVIDED, tmp_path))


@pytest.mark.slow
@pytest.mark.distributed
def test_under_torchrun_a_killed_divided_run_is_taken_up_by_fewer_and_by_more_ranks(tmp_path):
    assert torchrun(tmp_path, 3, "1", "17", "step", "divided") != 0
    assert torchrun(tmp_path, 2, "0", "3", "half written", "divided") != 0
    assert torchrun(tmp_path, 3, "-1", "0", "", "divided") == 0
    outcome = Outcome(**torch.load(tmp_path / "outcome.pt", weights_only=True))
    assert_as_never_stopped(outcome, without_a_fault(DIVIDED, tmp_path))


# --- ranks that have nothing, or nothing finite ---------------------------------------------------


def divided(n: int, **options: Any) -> pe.PruneEngine:
    policy = pe.InfoBatch(0.5, delta=1.0)
    return pe.PruneEngine(n, policy, num_epochs=3, shard_scores=True, **options)


def test_a_world_larger_than_the_epoch_has_no_batch_and_does_not_hang():
    def work(rank: int) -> list[int]:
        engine = divided(2)
        for _ in engine.epochs():
            assert list(engine.sampler(align=3)) == []
        return [report.dropped_tail for report in engine.history]

    assert Ranks(3).run(work) == [[2, 2, 2]] * 3


def test_a_rank_without_a_batch_is_noticed_by_all_ranks_alike():
    def work(rank: int) -> None:
        engine = divided(9000)
        if rank:
            for batch in batches(engine.sampler(align=200), 100):
                observe(engine, batch)
        with pytest.raises(pe.CoverageError, match="4500 of 9000 served samples were never obs"):
            engine.end_epoch()

    Ranks(2).run(work)


def test_a_rank_that_sees_nan_keeps_its_last_finite_scores_and_all_count_it():
    def work(rank: int) -> Any:
        engine = divided(9000)
        for epoch in (0, 1):
            for batch in batches(engine.sampler(align=200), 100):
                sick = rank == 1 and epoch == 1
                losses = torch.full((100,), torch.nan) if sick else losses_at(batch, epoch) + epoch
                engine.observe(losses, torch.tensor(batch))
            engine.end_epoch()
        report = engine.history[1]
        missing = report.missing - report.dropped_tail
        assert report.nonfinite == missing == report.served // 2
        return engine.scores(), report.num_seen, engine.buffer.total

    first, second = Ranks(2).run(work)
    assert first[1:] == second[1:]
    scores = torch.cat([first[0], second[0]])
    assert first[1] == 9000
    assert torch.isfinite(scores).all()
    kept = int((scores <= 2).sum())
    assert 0 < kept < 9000, "control: some are of epoch 0, some of epoch 1"
