# SPDX-License-Identifier: Apache-2.0
"""A recording holds what was kept and scored, survives a kill, and costs what it says."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _ranks import Ranks
from _runs import N, batches, epochs, infobatch, losses_at, observe, serve, through_disk

import prune_engine as pe
from prune_engine.recording import Recording

HEAD, FIXED = 4096, 1120  # bytes of a file, and of an epoch whatever it is of


def recorded(path: Path, engine: pe.PruneEngine, count: int) -> Recording:
    engine.record(path)
    epochs(engine, count)
    return Recording(path)


def test_kept_bits_and_scores_are_those_of_the_run(tmp_path: Path) -> None:
    engine = infobatch()
    engine.record(tmp_path / "run")
    for epoch in range(4):
        planned = sorted(engine.plan.indices.tolist())
        weights = engine.plan.weights.numpy()
        serve(engine)
        engine.end_epoch()
        found = Recording(tmp_path / "run")
        assert found.epochs == list(range(epoch + 1))
        assert np.flatnonzero(found.kept(epoch)).tolist() == planned
        assert np.flatnonzero(found.seen(epoch)).tolist() == planned
        assert not found.lost(epoch).any()
        exact = engine.scores().numpy()
        assert np.abs(found.scores(epoch) / exact - 1).max() <= 1 / 16
        codes = found.codes(epoch - 1) if epoch else np.zeros(N, np.uint8)
        assert found.weights(epoch).tolist() == np.bincount(codes, weights, 256).tolist()
        figures, report = found.figures(epoch), engine.history[epoch]
        assert figures["planned"] == len(planned)
        assert figures["score_mean"] == report.score_mean
    assert len(planned) < N, "control: it pruned"
    assert found.count("kept").sum() == sum(report.planned for report in engine.history)


@pytest.mark.parametrize("policy", [pe.InfoBatch(0.5, delta=1.0), pe.BPAS(10, target_dsi=0.3)])
def test_a_run_that_was_killed_and_resumed_leaves_the_same_bytes(
    tmp_path: Path, policy: pe.policies.Policy
) -> None:
    def make() -> pe.PruneEngine:
        return pe.PruneEngine(N, policy, num_epochs=6, seed=3)

    whole = make()
    whole.record(tmp_path / "whole")
    epochs(whole, 6)
    first = make()
    first.record(tmp_path / "parts")
    epochs(first, 2)
    saved = through_disk(first.state_dict())
    between = (tmp_path / "parts").read_bytes()
    epochs(first, 2)  # of these two no checkpoint was left when it was killed ...
    with (tmp_path / "parts").open("ab") as file:
        file.write(b"\1" * 40)  # ... in the midst of writing the next
    second = make()
    second.record(tmp_path / "parts")  # before or after the state comes
    second.load_state_dict(saved)
    epochs(second, 4)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert between != (tmp_path / "whole").read_bytes(), "control: it was not whole before"


def test_of_a_future_that_was_left_nothing_is_read(tmp_path: Path) -> None:
    engine = infobatch()
    recorded(tmp_path / "run", engine, 2)
    saved = through_disk(engine.state_dict())
    epochs(engine, 3)
    assert Recording(tmp_path / "run").epochs == [0, 1, 2, 3, 4], "control: it was there"
    again = infobatch()
    again.record(tmp_path / "run")
    again.load_state_dict(saved)
    epochs(again, 1)
    assert Recording(tmp_path / "run").epochs == [0, 1, 2]


def test_a_torn_epoch_is_no_epoch(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert recorded(path, infobatch(), 3).epochs == [0, 1, 2]
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1])
    assert Recording(path).epochs == [0, 1]
    size = (len(data) - HEAD) // 3
    data[HEAD + size + 600] ^= 1
    path.write_bytes(data)
    found = Recording(path)
    assert found.epochs == [0, 2]
    with pytest.raises(ValueError, match="no epoch 1 that is whole"):
        found.kept(1)


def test_it_takes_the_bytes_that_are_stated(tmp_path: Path) -> None:
    recorded(tmp_path / "run", infobatch(1600), 3)
    size = (tmp_path / "run").stat().st_size
    assert size == HEAD + 3 * (FIXED + 1600 * 11 // 8)


def test_a_step_writes_nothing(tmp_path: Path) -> None:
    engine, path = infobatch(), tmp_path / "run"
    engine.record(path)
    serve(engine)
    assert path.stat().st_size == HEAD
    engine.end_epoch()
    assert path.stat().st_size > HEAD, "control: an epoch's end does"


def test_above_the_limit_evenly_many_samples_are_recorded(tmp_path: Path) -> None:
    engine = infobatch()
    engine.record(tmp_path / "run", max_samples=30)
    epochs(engine, 2)
    found = Recording(tmp_path / "run")
    assert found.num_samples == N
    assert len(found.indices) == 30 and set(np.diff(found.indices)) == {3, 4}
    exact = engine.scores().numpy()[found.indices]
    assert np.abs(found.scores(1) / exact - 1).max() <= 1 / 16
    kept = engine.plan.weights.numpy() > 0
    assert not kept.all()
    serve(engine)
    engine.end_epoch()
    assert Recording(tmp_path / "run").kept(2).tolist() == kept[found.indices].tolist()


def test_what_is_not_finite_is_told_from_the_dropped_tail(tmp_path: Path) -> None:
    engine = pe.PruneEngine(N, pe.KeepAll(), num_epochs=2)
    engine.record(tmp_path / "run")
    served: list[int] = []
    for batch in batches(engine.sampler(align=16), 16):
        losses = losses_at(batch)
        losses[torch.tensor(batch) == 7] = float("nan")
        engine.observe(losses, torch.tensor(batch))
        served += batch
    engine.end_epoch()
    found = Recording(tmp_path / "run")
    assert len(served) == 96 and 7 in served
    assert np.flatnonzero(found.lost(0)).tolist() == [7]
    assert found.kept(0).all() and found.seen(0).sum() == 95
    assert np.isnan(found.scores(0)).sum() == 5


def test_negative_scores_zero_and_extremes_keep_their_order(tmp_path: Path) -> None:
    values = [-3e38, -2.0, -1e-30, 0.0, 1e-30, 1e-4, 1.0, 1.2, 1e3, 3e38]
    engine = pe.PruneEngine(len(values), pe.KeepAll(), num_epochs=1)
    engine.record(tmp_path / "run")
    order = list(engine.sampler())
    engine.observe(torch.tensor(values)[order], torch.tensor(order))
    engine.end_epoch()
    found = Recording(tmp_path / "run").scores(0)
    assert (np.diff(found) >= 0).all()
    assert found[2] == found[3] == found[4] == 0
    assert found[0] < found[1] < 0 < found[5] < found[6] < found[7] < found[8] < found[9]


def test_epochs_that_flow_are_recorded_too(tmp_path: Path) -> None:
    engine = pe.PruneEngine(N, pe.InfoBatch(0.5, delta=1.0), num_epochs=3, mode="flow")
    engine.record(tmp_path / "run")
    stream = batches(engine.sampler(align=10), 10)
    while not engine.done:
        batch = next(stream, None)
        if batch is None:
            stream = batches(engine.sampler(align=10), 10)
            continue
        observe(engine, batch)
    found = Recording(tmp_path / "run")
    assert found.epochs == [0, 1, 2]
    assert [found.kept(e).sum() for e in range(3)] == [r.planned for r in engine.history]
    assert found.kept(2).sum() < N


def test_a_full_disk_ends_the_recording_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = infobatch()
    engine.record(tmp_path / "run")
    epochs(engine, 1)

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(RuntimeWarning, match=r"nothing is recorded from epoch 1 on: .*No space"):
        epochs(engine, 1)
    epochs(engine, 1)  # and says it once
    assert len(engine.history) == 3
    assert Recording(tmp_path / "run").epochs == [0]


def test_another_run_and_another_file_are_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "run", infobatch(seed=1), 1)
    with pytest.raises(ValueError, match="records another run \\(seed: expected 2, got 1\\)"):
        infobatch(seed=2).record(tmp_path / "run")
    (tmp_path / "text").write_text("words")
    for use in (infobatch().record, Recording):
        with pytest.raises(ValueError, match="no recording of prune_engine"):
            use(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="path: no file"):
        Recording(tmp_path / "none")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    engine = infobatch()
    with pytest.raises(TypeError, match="path must be a string, a Path or None, got 3"):
        engine.record(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_samples must be a positive int, got 0"):
        engine.record(tmp_path / "run", max_samples=0)
    divided = pe.PruneEngine(N, pe.InfoBatch(), num_epochs=2, shard_scores=True)
    with pytest.raises(ValueError, match="shard_scores"):
        divided.record(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    engine.record(tmp_path / "run")
    with pytest.raises(pe.PruneEngineError, match="record\\(None\\)"):
        engine.resize(N + 1)
    engine.record(None)
    engine.resize(N + 1)
    with pytest.raises(ValueError, match="name must be 'kept', 'seen' or 'lost', got 'x'"):
        Recording(tmp_path / "run").count("x")


def test_a_copy_records_nothing(tmp_path: Path) -> None:
    engine = infobatch()
    engine.record(tmp_path / "run")
    other = copy.deepcopy(engine)
    epochs(other, 1)
    assert Recording(tmp_path / "run").epochs == []
    epochs(engine, 1)
    assert Recording(tmp_path / "run").epochs == [0], "control: the engine does"


def table(tmp_path: Path) -> tuple[Path, Recording]:
    engine = infobatch()
    path = tmp_path / "run"
    found = recorded(path, engine, 3)
    return path, found


def test_scores_are_exported_to_npz_and_csv(tmp_path: Path) -> None:
    path, found = table(tmp_path)
    with np.load(pe.export_scores(path, tmp_path / "scores.npz"), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["index", "score", "times_kept", "times_seen"]
        assert arrays["index"].tolist() == list(range(N))
        assert (arrays["score"] == found.last_scores()).all()
        assert arrays["times_kept"].sum() == sum(found.kept(e).sum() for e in range(3))
    lines = pe.export_scores(path, tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "index,score,times_kept,times_seen"
    rows = [line.split(",") for line in lines[1:]]
    assert [int(row[2]) for row in rows] == found.count("kept").tolist()
    assert [float(row[1]) for row in rows] == pytest.approx(found.last_scores().tolist(), rel=1e-5)


def test_a_sample_without_a_score_is_an_empty_field(tmp_path: Path) -> None:
    engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=1)
    engine.record(tmp_path / "run")
    for index in list(engine.sampler(align=2)):
        engine.observe(torch.ones(1), torch.tensor([index]))
    engine.end_epoch()
    text = pe.export_scores(tmp_path / "run", tmp_path / "x.csv").read_text()
    assert text.count(",,1,0\n") == 1


@pytest.mark.extra("pyarrow")
def test_scores_are_exported_to_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    path, found = table(tmp_path)
    read = parquet.read_table(pe.export_scores(path, tmp_path / "x.parquet"))
    assert read.column_names == ["index", "score", "times_kept", "times_seen"]
    assert read["times_seen"].to_pylist() == found.count("seen").tolist()


def test_an_export_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path, _ = table(tmp_path)
    with pytest.raises(ValueError, match=r"out must end in \.npz, \.csv, \.parquet, got 'x.xls'"):
        pe.export_scores(path, tmp_path / "x.xls")
    with pytest.raises(TypeError, match="out must be a string or a Path, got None"):
        pe.export_scores(path, None)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        pe.export_scores(tmp_path / "none", tmp_path / "x.csv")


def test_the_batches_of_bpas_are_recorded_by_sample(tmp_path: Path) -> None:
    engine = pe.PruneEngine(N, pe.BPAS(10, target_dsi=0.4), num_epochs=6)
    engine.record(tmp_path / "run")
    epochs(engine, 6)
    found = Recording(tmp_path / "run")
    kept = [int(found.kept(epoch).sum()) for epoch in found.epochs]
    assert kept == [report.planned for report in engine.history]
    assert kept[-1] < N, "control: it dropped batches"


def test_of_several_ranks_the_first_writes_what_all_saw(tmp_path: Path) -> None:
    def work(path: Path, size: int) -> list[float]:
        engine = infobatch()
        engine.record(path)
        for _ in range(3):
            serve(engine, size, align=10)
            engine.end_epoch()
        return engine.scores().tolist()

    alone = work(tmp_path / "one", 10)
    results = Ranks(2).run(lambda rank: work(tmp_path / "two", 5))
    assert results == [alone, alone]
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_a_file_that_has_gone_ends_the_recording_and_not_the_training(tmp_path: Path) -> None:
    engine = infobatch()
    engine.record(tmp_path / "run")
    epochs(engine, 2)
    (tmp_path / "run").unlink()
    with pytest.warns(RuntimeWarning, match=r"nothing is recorded from epoch 2 on: .*No such file"):
        epochs(engine, 1)
    epochs(engine, 1)  # and says it once
    assert len(engine.history) == 4
    other = infobatch()
    epochs(other, 4)
    assert engine.plan.kept.tolist() == other.plan.kept.tolist()
