# SPDX-License-Identifier: Apache-2.0
"""Killed at any moment, resumed in any world size: nothing lost, nothing trained twice."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from _fault_program import Job, Outcome, in_process, without_a_fault
from _faults import NOBODY, assert_as_never_stopped, attempt, check_random_kills, torchrun
from _processes import start_ranks
from _ranks import Ranks
from _runs import batches, infobatch, observe

import prune_engine as pe
from prune_engine.epoch.serving import LastBatch, Serving

HABITS = Job(habits=True)
BRIEF = pytest.param(0, marks=pytest.mark.full("a brief soak"))

# --- random kill points, ranks that are threads ---------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_run_killed_at_random_points_is_the_run_that_never_stopped(seed, tmp_path):
    assert check_random_kills(seed, tmp_path) >= 1


@pytest.mark.parametrize("seed", range(20))
def test_with_the_habits_of_real_loops_too(seed, tmp_path):
    if seed % 4 == 3:
        seed += 100 * 4 - 3  # whose batches are full: a short one's tail depends on the world
    assert check_random_kills(seed, tmp_path, HABITS, 20) >= 1


def test_control_a_batch_that_counts_twice_loses_samples(tmp_path):
    job = replace(HABITS, every=3)
    with (
        mock.patch.object(LastBatch, "again", lambda self, indices: False),
        mock.patch.object(LastBatch, "fresh", lambda self, indices, size: size),
        mock.patch.object(Serving, "limit", 10**9),
    ):
        try:
            assert attempt(1, job, tmp_path / "run.pt", 0, 12) is None
            outcome = attempt(1, job, tmp_path / "run.pt")
        except pe.PruneEngineError:
            return  # what is left of an epoch that seems to be over is missed
    assert outcome is not None
    with pytest.raises(AssertionError):
        assert_as_never_stopped(outcome, without_a_fault(job, tmp_path))


@pytest.mark.soak
@pytest.mark.parametrize("block", [BRIEF, *range(1, 12)])
def test_six_hundred_random_runs(block, tmp_path_factory):
    kills = [
        check_random_kills(1000 + 50 * block + at, tmp_path_factory.mktemp("run"))
        for at in range(50)
    ]
    assert min(kills) >= 1
    assert max(kills) == 4, "control: some runs are killed again and again"


def test_control_a_cursor_that_is_drawn_and_not_consumed_is_caught(tmp_path):
    # What is wrong with counting what the loader drew: here one batch more than was trained.
    job = Job(every=3)
    assert attempt(1, job, tmp_path / "run.pt", 0, 40) is None
    state: Any = torch.load(tmp_path / "run.pt", weights_only=True)
    state["engine"]["cursor"] += 24
    torch.save(state, tmp_path / "run.pt")
    with pytest.raises(pe.CoverageError, match="never observed"):
        attempt(1, job, tmp_path / "run.pt")


def test_control_a_model_older_than_its_engine_is_caught(tmp_path):
    # Two files, and a crash between them: samples are lost, and the comparison says so.
    job, never = Job(every=3), without_a_fault(Job(), tmp_path)
    assert attempt(1, job, tmp_path / "run.pt", 0, 30) is None
    state: Any = torch.load(tmp_path / "run.pt", weights_only=True)
    state["extra"]["trained"].zero_()
    torch.save(state, tmp_path / "run.pt")
    outcome = attempt(1, job, tmp_path / "run.pt")
    assert outcome is not None
    with pytest.raises(AssertionError, match="the same samples"):
        assert_as_never_stopped(outcome, never)


# --- real processes, real signals ----------------------------------------------------------------


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("point", "at", "victim", "sizes"),
    [
        ("step", 17, 1, (2, 2)),
        ("step", 23, 2, (3, 2)),  # elastic: a rank fewer
        ("before the exchange", 9, 0, (2, 3)),  # the other waits in the collective; one rank more
        ("after the exchange", 7, 1, (2, 1)),
        ("half written", 3, 0, (2, 2)),
        ("before the rename", 2, 0, (2, 2)),
        ("after the rename", 4, 0, (2, 2)),
    ],
)
def test_sigkill_then_fewer_or_more_ranks(tmp_path, point, at, victim, sizes):
    job, folder = Job(sick=11), str(tmp_path)
    codes = start_ranks(in_process, sizes[0], folder, job, victim, at, point, 0).join()
    assert codes[victim] == -9
    assert not (tmp_path / "outcome.pt").exists()
    left = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    if victim == 0:  # another victim's death may have the launcher kill rank 0 while it writes
        assert len(left) == (point in ("half written", "before the rename")), "nothing reads it"
    codes = start_ranks(in_process, sizes[1], folder, job, NOBODY, 0, "", 1).join()
    assert codes == [0] * sizes[1]
    outcome = Outcome(**torch.load(tmp_path / "outcome.pt", weights_only=True))
    assert_as_never_stopped(outcome, without_a_fault(job, tmp_path))


@pytest.mark.distributed
def test_sigterm_then_the_same_ranks(tmp_path):
    job, folder = Job(), str(tmp_path)
    codes = start_ranks(in_process, 2, folder, job, 1, 17, "step", 0, signal.SIGTERM).join()
    assert codes[1] == -15
    assert not (tmp_path / "outcome.pt").exists()
    assert start_ranks(in_process, 2, folder, job, NOBODY, 0, "", 1).join() == [0, 0]
    outcome = Outcome(**torch.load(tmp_path / "outcome.pt", weights_only=True))
    assert_as_never_stopped(outcome, without_a_fault(job, tmp_path))


def linger(rank: int, size: int, folder: str) -> None:
    """Train forever; say when there is something to lose."""
    in_process(rank, size, folder, Job(num_epochs=1000), NOBODY, 0, "", 0)


@pytest.mark.distributed
def test_sigterm_ends_a_rank_and_the_file_is_whole(tmp_path):
    group = start_ranks(linger, 2, str(tmp_path))
    deadline = time.monotonic() + 60
    while not (tmp_path / "run.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.terminate(1)
    codes = group.join()
    assert codes[1] == -15
    assert codes[0] in (1, -9), "the other fails in its next exchange, or is killed"
    job = Job(num_epochs=1000)
    engine = pe.PruneEngine(job.n, pe.InfoBatch(0.5, delta=1.0), num_epochs=1000, seed=5)
    trained = pe.load_state(engine, tmp_path / "run.pt")["trained"]
    assert int(trained[engine.epoch].sum()) == engine.cursor
    assert sorted(engine.plan.order(range(engine.cursor)).tolist()) == (
        torch.nonzero(trained[engine.epoch]).squeeze(1).tolist()
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_under_torchrun_a_killed_run_is_taken_up_by_fewer_ranks(tmp_path):
    assert torchrun(tmp_path, 3, "1", "17", "step") != 0
    assert torchrun(tmp_path, 2, "0", "3", "half written") != 0
    assert torchrun(tmp_path, 2, "-1", "0", "") == 0
    outcome = Outcome(**torch.load(tmp_path / "outcome.pt", weights_only=True))
    assert_as_never_stopped(outcome, without_a_fault(Job(), tmp_path))


# --- ranks that have nothing, or nothing finite ---------------------------------------------------


def test_a_world_larger_than_the_epoch_has_no_batch_and_does_not_hang():
    def work(rank: int) -> list[int]:
        engine = infobatch(2, 3)
        for _ in engine.epochs():
            assert list(engine.sampler(align=3)) == []
        return [report.dropped_tail for report in engine.history]

    assert Ranks(3).run(work) == [[2, 2, 2]] * 3


@pytest.mark.parametrize("coverage", ["raise", "warn"])
def test_a_rank_without_a_batch_is_noticed_by_all_ranks_alike(coverage):
    def work(rank: int) -> list[int]:
        engine = infobatch(48, 3, coverage=coverage)
        if rank:
            for batch in batches(engine.sampler(align=8), 4):
                observe(engine, batch)
        message = r"24 of 48 served samples were never observed"
        if coverage == "raise":
            with pytest.raises(pe.CoverageError, match=message):
                engine.end_epoch()
        else:
            engine.end_epoch()
        return engine.plan.indices.tolist()

    if coverage == "raise":
        first, second = Ranks(2).run(work)
    else:
        with pytest.warns(RuntimeWarning, match="24 of 48 served samples were never observed"):
            first, second = Ranks(2).run(work)
    assert first == second


def test_a_rank_that_sees_nan_keeps_its_last_finite_scores_and_all_count_it():
    def work(rank: int) -> Any:
        engine = infobatch(48, 3)
        for epoch in (0, 1):
            for batch in batches(engine.sampler(align=8), 4):
                sick = rank == 1 and epoch == 1
                losses = torch.full((4,), torch.nan) if sick else torch.ones(4) + epoch
                engine.observe(losses, torch.tensor(batch))
            engine.end_epoch()
        report = engine.history[1]
        assert report.nonfinite == report.missing == report.served // 2
        return engine.scores().tolist(), engine.plan.indices.tolist()

    first, second = Ranks(2).run(work)
    assert first == second
    assert set(first[0]) == {1.0, 2.0}
