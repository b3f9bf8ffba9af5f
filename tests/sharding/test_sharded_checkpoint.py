# SPDX-License-Identifier: Apache-2.0
"""The files of a divided run: a part of each rank, all of one step or refused with the reason."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _ranks import Ranks
from test_sharded import N, assert_same, engine_of, interleaved, train_epoch, undivided

import prune_engine as pe
from prune_engine import checkpoint
from prune_engine.epoch import ranks
from prune_engine.sharding import parts

STOP = 7  # batches of a rank into the second epoch


def begun(size: int) -> tuple[pe.PruneEngine, list[list[list[float]]]]:
    """Return a rank's engine some batches into the second epoch, and what it trained."""
    engine = engine_of()
    rows = [train_epoch(engine, size)]
    engine.end_epoch()
    return engine, [*rows, train_epoch(engine, size, stop=STOP)]


def save(size: int, file: Path, step: int = 5) -> list[Any]:
    """Save a run on some ranks; return what each had trained."""

    def work(rank: int) -> Any:
        engine, rows = begun(size)
        pe.save_state(engine, file, extra={"step": step, "weight": torch.ones(2)})
        return rows

    return Ranks(size).run(work)


def rest_of(engine: pe.PruneEngine, size: int) -> list[list[list[float]]]:
    rows = [train_epoch(engine, size)]
    engine.end_epoch()
    return rows + [train_epoch(engine, size) for _ in engine.epochs()]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 2), (3, 1)])
def test_parts_of_some_ranks_are_read_by_others(tmp_path, before, after):
    file = tmp_path / "run.pt"
    first = save(before, file)
    assert set(os.listdir(tmp_path)) == {
        "run.pt",
        *(f"run.pt.1-{q}-of-{before}" for q in range(before) if before > 1),
    }

    def work(rank: int) -> Any:
        engine = engine_of()
        extra = pe.load_state(engine, file)
        assert extra["step"] == 5
        assert_bitwise(extra["weight"], torch.ones(2), "weight")
        return rest_of(engine, after), engine.buffer.records

    later = Ranks(after).run(work)
    want = undivided("infobatch")
    begin = [interleaved([rows[e] for rows in first]) for e in range(2)]
    rest = [interleaved([rows[e] for rows, _ in later]) for e in range(len(want["rows"]) - 1)]
    got = {"rows": [begin[0], begin[1] + rest[0], *rest[1:]], "figures": []}
    assert_same({**got, "records": torch.cat([each for _, each in later])}, want)


def test_a_rank_reads_the_parts_that_it_needs(tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    save(3, file)
    read: list[list[str]] = [[], []]

    def reading(path: Path) -> Any:
        read[ranks.world()[0]].append(path.name)
        return checkpoint_read(path)

    checkpoint_read = checkpoint.read_file
    for module in (checkpoint, parts):
        monkeypatch.setattr(module, "read_file", reading)
    Ranks(2).run(lambda rank: pe.load_state(engine_of(), file))
    # 4 blocks: of 1, 1 and 2 for three ranks, of 2 and 2 for two.
    assert read == [["run.pt", "run.pt.1-0-of-3", "run.pt.1-1-of-3"], ["run.pt", "run.pt.1-2-of-3"]]


def test_divided_and_undivided_files_are_read_by_either(tmp_path):
    file, whole = tmp_path / "run.pt", tmp_path / "whole.pt"
    first = save(2, file)
    plain = engine_of(divided=False)
    pe.load_state(plain, file)
    pe.save_state(plain, whole)
    assert not list(tmp_path.glob("whole.pt.*")), "one file"
    want = undivided("infobatch")["rows"]
    begin = interleaved([rows[1] for rows in first])
    assert begin + train_epoch(plain, 1) == want[1]

    def work(rank: int) -> Any:
        engine = engine_of()
        assert pe.load_state(engine, whole) == {}
        return train_epoch(engine, 2)

    assert begin + interleaved(Ranks(2).run(work)) == want[1]


def test_the_set_before_is_removed_when_the_next_is_whole(tmp_path):
    file = tmp_path / "run.pt"
    (tmp_path / "other.pt.1-0-of-9").touch()
    (tmp_path / "run.pt.7-8-of-9").touch()  # of a save that was killed
    save(3, file, step=1)
    save(2, file, step=2)
    assert sorted(os.listdir(tmp_path)) == [
        *("other.pt.1-0-of-9", "run.pt", "run.pt.9-0-of-2", "run.pt.9-1-of-2"),
    ]
    assert pe.load_state(engine_of(), file)["step"] == 2


def test_a_rank_that_owns_nothing_saves_and_restores(tmp_path):
    def work(rank: int) -> list[list[int]]:
        engine = pe.PruneEngine(10, pe.KeepAll(), num_epochs=2, shard_scores=True)
        pe.save_state(engine, tmp_path / "run.pt")
        again = pe.PruneEngine(10, pe.KeepAll(), num_epochs=2, shard_scores=True)
        pe.load_state(again, tmp_path / "run.pt")
        return [list(each.sampler()) for each in (engine, again)]

    for before, after in Ranks(3).run(work):
        assert before == after


# --- what does not fit, or cannot be written -----------------------------------------------------


def refusals(file: Path, size: int = 2, **options: Any) -> list[str]:
    """Return why each rank refuses a file; none may have changed."""

    def work(rank: int) -> str:
        engine = engine_of(**options)
        order, records = engine.plan.indices, engine.buffer.records.clone()
        with pytest.raises(pe.StateMismatchError) as caught:
            pe.load_state(engine, file)
        assert_bitwise(engine.plan.indices, order, "order")
        assert_bitwise(engine.buffer.records, records, "records")
        assert engine.cursor == engine.epoch == 0
        return str(caught.value)

    return Ranks(size).run(work)


def remove(part: Path) -> None:
    part.unlink()


def tear(part: Path) -> None:
    os.truncate(part, part.stat().st_size // 2)


def of_another_set(part: Path) -> None:
    content = torch.load(part, weights_only=True)
    torch.save({**content, "set": 99}, part)


def of_another_kind(part: Path) -> None:
    torch.save([1], part)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove, "has 2 parts, but there is no run.pt.1-1-of-2"),
        (tear, "is torn"),
        (of_another_set, "is no part of the set that"),
        (of_another_kind, "is no part of the set that"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_by_all_ranks(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
):
    file = tmp_path / "run.pt"
    save(2, file)
    damage(tmp_path / "run.pt.1-1-of-2")
    first, second = refusals(file)
    assert "rank 1 could not read its samples" in first
    assert reason in second
    assert reason in refusals(file, 1)[0]
    with pytest.raises(pe.StateMismatchError, match=reason):
        pe.load_state(engine_of(divided=False), file)


def test_a_set_of_another_run_is_refused_with_the_difference(tmp_path):
    file = tmp_path / "run.pt"
    save(2, file)
    assert all("policy: expected" in reason for reason in refusals(file, policy="full"))
    larger = pe.PruneEngine(N + 1, pe.InfoBatch(), num_epochs=4, shard_scores=True)
    with pytest.raises(pe.StateMismatchError, match=f"expected {N + 1}, got {N}"):
        pe.load_state(larger, file)
    with pytest.raises(FileNotFoundError, match="path: no file"):
        pe.load_state(larger, tmp_path / "missing.pt")


@pytest.mark.parametrize(("victim", "which"), [(0, "part"), (1, "part"), (0, "file")])
def test_a_rank_that_cannot_write_is_noticed_by_all_and_the_set_before_stays(
    tmp_path, monkeypatch, victim, which
):
    file = tmp_path / "run.pt"
    save(2, file, step=1)
    before = sorted(os.listdir(tmp_path))
    replace = parts.replace_file

    def full(path: Path, content: Any) -> None:
        if ranks.world()[0] == victim and (path == file) == (which == "file"):
            raise OSError(28, "No space left on device")
        replace(path, content)

    def work(rank: int) -> str:
        engine, _ = begun(2)
        with pytest.raises(OSError, match=r"No space left|could not write") as caught:
            pe.save_state(engine, file, extra={"step": 2})
        return str(caught.value)

    monkeypatch.setattr(parts, "replace_file", full)
    reasons = Ranks(2).run(work)
    assert "No space left" in reasons[victim]
    assert f"rank {victim} could not write" in reasons[1 - victim]
    if which == "part":
        assert sorted(os.listdir(tmp_path)) == before
    assert pe.load_state(engine_of(), file)["step"] == 1


def test_a_rank_that_is_not_told_how_the_others_fared_removes_nothing(tmp_path, monkeypatch):
    # Its connection breaks as the ranks tell one another that all parts are written: rank 0 has
    # been told, and names them.
    file, told = tmp_path / "run.pt", [0, 0]
    tell = ranks.first_failure

    def broken(*arguments: Any) -> int | None:
        rank = ranks.world()[0]
        told[rank] += 1
        found = tell(*arguments)
        if (rank, told[rank]) == (1, 2):
            deadline = time.monotonic() + 30
            while not file.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise RuntimeError("connection lost")
        return found

    def work(rank: int) -> None:
        pe.save_state(engine_of(), file, extra={"step": 3})

    with monkeypatch.context() as patch:
        patch.setattr(ranks, "first_failure", broken)
        with pytest.raises(RuntimeError, match="connection lost"):
            Ranks(2).run(work)
    assert pe.load_state(engine_of(), file)["step"] == 3


def test_what_cannot_be_saved_is_refused_by_all_ranks(tmp_path):
    def work(rank: int, path: Path, extra: Any) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            pe.save_state(engine_of(), path, extra=extra)
        return f"{type(caught.value).__name__}: {caught.value}"

    file = tmp_path / "run.pt"
    first, second = Ranks(2).run(lambda rank: work(rank, file, {"where": Path("x")}))
    assert first.startswith("ValueError: extra must be tensors and plain data")
    assert second.startswith("OSError: rank 0 could not write")
    assert not file.exists()
    missing = tmp_path / "missing" / "run.pt"
    first, second = Ranks(2).run(lambda rank: work(rank, missing, None))
    assert first.startswith("FileNotFoundError")
    assert second.startswith("OSError: rank 0 could not write")
