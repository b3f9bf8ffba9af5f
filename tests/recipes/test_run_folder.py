# SPDX-License-Identifier: Apache-2.0
"""A run owns its folder: no second one enters, and what it reports is what it trained."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from _assertions import num_threads

from prune_engine.cli import main
from prune_engine.recipes import files, owner
from prune_engine.recipes.compare import RunOptions, run
from prune_engine.recipes.trainer import TrainConfig

TINY = TrainConfig(model="mlp", epochs=2, batch_size=16, lr=0.05)
AGAIN = ["train", "--limit", "400", "--epochs", "1", "--batch-size", "16", "--no-pictures"]


def options(out: Path, *seeds: int) -> RunOptions:
    return RunOptions(data="digits", out=out, train=TINY, seeds=seeds or (0,), limit=400)


@pytest.mark.extra("sklearn")
def test_a_second_run_in_the_folder_is_refused_and_the_first_ends_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    codes: list[int] = []

    def say(line: str) -> None:
        codes.append(main([*AGAIN, "--seed", "7", "--out", str(out)]))
        codes.append(main(["report", str(out), "--no-pictures"]))

    with num_threads(1):
        found = run(options(out), say)
    assert found is not None
    assert codes == [2, 2] * 2
    error = capsys.readouterr().err
    lock = out / "run.lock"
    assert f"out: {out} belongs to a run that has not ended (process " in error
    assert "give another --out" in error and str(lock) in error
    assert files.load_run(out).report == found.report
    assert not lock.exists()
    assert main([*AGAIN, "--seed", "7", "--out", str(out)]) == 0, "control: afterwards it may"


@pytest.mark.extra("sklearn")
def test_the_table_holds_what_was_trained_whatever_the_folder_holds(tmp_path: Path) -> None:
    def say(line: str) -> None:
        for file in tmp_path.glob("*/metrics.jsonl"):  # as a stranger might leave it
            files.write_rows(file, [{**row, "seed": 99} for row in files.read_rows(file)])

    finished: list[files.Run] = []
    with num_threads(1):
        found = run(options(tmp_path, 0, 1), say, finished.append)
    assert found is not None and finished == [found]
    assert [result.seed for result in found.report.runs] == [0, 1]
    read = files.load_run(tmp_path).report
    assert {result.seed for result in read.runs} == {99}, "control: the files say otherwise"


HOLD = (
    "import sys, pathlib, prune_engine.recipes.owner as o\nwith o.owned(pathlib.Path(sys.argv[1])):"
)


def test_the_lock_of_a_killed_run_is_no_obstacle_and_that_of_a_living_one_is(
    tmp_path: Path,
) -> None:
    words = [sys.executable, "-c", f"{HOLD} print('held', flush=True); input()", str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"process {holder.pid} on "), owner.owned(tmp_path):
            pass
        holder.kill()
    assert json.loads((tmp_path / "run.lock").read_text())["process"] == holder.pid
    with owner.owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_of_another_host_left_must_be_removed_by_hand(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    lock.write_text('{"process": 1, "host": "another-host", "began": "2026-01-01"}')
    with pytest.raises(ValueError, match=r"process 1 on another-host, since 2026-01-01"):
        with owner.owned(tmp_path):
            pass
    assert lock.exists()
    lock.unlink()
    with owner.owned(tmp_path):
        pass


def test_without_locks_in_the_file_system_the_process_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with owner.owned(tmp_path):
        with pytest.raises(ValueError, match="has not ended"), owner.owned(tmp_path):
            pass
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    with owner.owned(tmp_path):
        mine = json.loads((tmp_path / "run.lock").read_text())
    (tmp_path / "run.lock").write_text(json.dumps({**mine, "process": int(ended.stdout)}))
    with owner.owned(tmp_path):
        pass


@pytest.mark.extra("sklearn")
def test_what_an_earlier_run_reported_is_not_that_of_one_that_was_broken_off(
    tmp_path: Path,
) -> None:
    for name in (*files.REPORTS, "accuracy.png", "notes.txt"):
        (tmp_path / name).write_text("old")

    def die(line: str) -> None:
        raise KeyboardInterrupt

    with num_threads(1), pytest.raises(KeyboardInterrupt):
        run(options(tmp_path), die)
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"config.json", "notes.txt"}, "control: what is no run's stays"


@pytest.mark.full("reads the data many times")
@pytest.mark.extra("sklearn")
def test_a_run_is_continued_with_its_own_arguments_alone(tmp_path: Path) -> None:
    def die(line: str) -> None:
        raise BrokenPipeError

    given = options(tmp_path / "run")
    others = [
        *(replace(given, policy="repb"), replace(given, prune_ratio=0.4)),
        *(replace(given, seeds=(1,)), replace(given, limit=399), replace(given, record=False)),
        *(replace(given, train=replace(TINY, lr=0.06)), replace(given, compare=True)),
    ]
    with num_threads(1):
        with pytest.raises(BrokenPipeError):
            run(given, die, resume=True)
        for other in others:
            with pytest.raises(ValueError, match="a run with other arguments"):
                run(other, die, resume=True)
        shutil.copytree(tmp_path / "run", tmp_path / "moved")
        moved = replace(given, out=tmp_path / "moved", train=replace(TINY, progress=True))
        found = run(moved, lambda line: None, resume=True)
    assert found is not None and found.report.runs[0].epochs == 2, "control: these do not decide"
