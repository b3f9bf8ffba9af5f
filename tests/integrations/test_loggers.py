# SPDX-License-Identifier: Apache-2.0
"""Each logger is fed by a real run, and the real package reads back what was written."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _runs import N, epochs, infobatch, through_disk

import prune_engine as pe
from prune_engine.loggers import EpochLog, MLflow, TensorBoard, WandB
from prune_engine.terminal_view import View

LABELS = np.arange(N) % 3
NAMES = ["a", "<script>", "日本"]
EPOCHS = 4


class Kept:
    """Keeps all that it is told: the truth for the others."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.counts: list[np.ndarray] = []
        self.edges = np.zeros(0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def histogram(self, name: str, edges: np.ndarray, counts: np.ndarray, step: int) -> None:
        assert name == "prune/score"
        self.edges = edges
        self.counts.append(counts)


def run(*loggers: pe.loggers.Logger) -> tuple[pe.PruneEngine, Kept]:
    engine, kept = infobatch(), Kept()
    log = EpochLog(engine, kept, *loggers, labels=LABELS, names=NAMES)
    for _ in range(EPOCHS):
        epochs(engine, 1)
        log.log()
    return engine, kept


def test_the_figures_are_those_of_the_run() -> None:
    engine, plans = infobatch(), []
    kept = Kept()
    log = EpochLog(engine, kept, labels=LABELS, names=NAMES)
    for _ in range(EPOCHS):
        plans.append(engine.plan.weights.numpy() > 0)
        epochs(engine, 1)
        log.log()
    values = kept.values
    assert values["prune/kept_share"] == [plan.mean() for plan in plans]
    assert values["prune/kept_share"][-1] < 1, "control: it pruned"
    for label, name in enumerate(NAMES):
        expected = [plan[label == LABELS].mean() for plan in plans]
        assert values[f"prune/kept/{name}"] == pytest.approx(expected)
    assert values["prune/dsi"] == [report.dsi for report in engine.history]
    assert len(values["prune/threshold"]) == EPOCHS - 1, "the first epoch has none"
    assert values["prune/saved_seconds"][0] == 0 < values["prune/saved_seconds"][-1]
    assert [counts.sum() for counts in kept.counts] == [N] * EPOCHS
    scores = engine.scores().numpy()
    assert kept.counts[-1].tolist() == np.histogram(scores, kept.edges)[0].tolist()


def test_a_call_at_another_place_and_what_does_not_fit_are_refused() -> None:
    engine = infobatch()
    log = EpochLog(engine, Kept())
    with pytest.raises(pe.PruneEngineError, match="got 0 epochs since"):
        log.log()
    epochs(engine, 2)
    with pytest.raises(pe.PruneEngineError, match="got 2 epochs since"):
        log.log()
    with pytest.raises(TypeError, match=r"loggers must have scalars\(\)"):
        EpochLog(engine, object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels must be 100 integers, got int64 of shape"):
        EpochLog(engine, labels=[1, 2])
    with pytest.raises(ValueError, match=r"labels must be in 0..1, got 0..2"):
        EpochLog(engine, labels=LABELS, names=["a", "b"])
    with pytest.raises(ValueError, match="names must differ"):
        EpochLog(engine, labels=LABELS, names=["a", "b", "a"])
    for make in (TensorBoard, WandB, lambda made: MLflow(made, "x")):
        with pytest.raises(TypeError, match=r"must have .*got <object"):
            make(object())


@pytest.mark.extra("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        _, kept = run(TensorBoard(writer))
    read = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    assert set(read.Tags()["scalars"]) == set(kept.values)
    for name, values in kept.values.items():
        found = read.Scalars(name)
        first = EPOCHS - len(values)
        assert [event.step for event in found] == list(range(first, EPOCHS))
        assert [event.value for event in found] == pytest.approx(values, rel=1e-6)
    histograms = read.Histograms("prune/score")
    assert [event.step for event in histograms] == list(range(EPOCHS))
    for event, counts in zip(histograms, kept.counts, strict=True):
        assert event.histogram_value.num == counts.sum()
        held = dict(
            zip(event.histogram_value.bucket_limit, event.histogram_value.bucket, strict=True)
        )
        used = {limit: count for limit, count in held.items() if count}
        assert sorted(used.values()) == sorted(counts[counts > 0].tolist())


def wandb_records(path: Path) -> list[Any]:
    """Read an offline run's file: chunks of a LevelDB log, each record as the package's message."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def whole_run(path: Path) -> list[Any]:
    """Wait until its service has written an offline run to its end."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = wandb_records(path)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.05)
    raise AssertionError("the run was not written to its end")


@pytest.mark.extra("wandb")
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_reads_back_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path), project="test") as offline:
        _, kept = run(WandB(offline))
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    read: dict[str, list[Any]] = {}
    records = whole_run(path)
    for record in records:
        for item in record.history.item:
            name = item.key or ".".join(item.nested_key)
            read.setdefault(name, []).append(json.loads(item.value_json))
    for name, values in kept.values.items():
        if name != "prune/epoch":  # told with every line
            assert read[name] == pytest.approx(values), name
    assert set(read["prune/epoch"]) == set(range(EPOCHS))
    assert read["prune/score.values"] == [counts.tolist() for counts in kept.counts]
    metrics = [r.metric for r in records if r.HasField("metric")]
    assert any(m.glob_name == "prune/*" and m.step_metric == "prune/epoch" for m in metrics)


@pytest.mark.extra("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_back_from_its_file_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client, drawn = MlflowClient(tracking_uri=(tmp_path / "store").as_uri()), random.getstate()
    run_id = client.create_run(client.create_experiment("test")).info.run_id
    random.setstate(drawn)  # MLflow makes up its names with the global generator
    _, kept = run(MLflow(client, run_id))
    for name in ("prune/kept_share", "prune/threshold", "prune/dsi", "prune/kept/a"):
        found = client.get_metric_history(run_id, name)
        assert [metric.value for metric in found] == pytest.approx(kept.values[name])
        assert [metric.step for metric in found][-1] == EPOCHS - 1
    names = client.get_run(run_id).data.metrics
    plain = [name for name in names if name.startswith("prune/kept/")]
    assert len(plain) == 3, "names of any script stay apart"
    medians = [m.value for m in client.get_metric_history(run_id, "prune/score/p50")]
    for median, counts in zip(medians, kept.counts, strict=True):
        place = int((np.cumsum(counts) < N / 2).sum())
        assert kept.edges[place] <= median <= kept.edges[place + 1]


def test_labels_of_before_a_resize_are_refused() -> None:
    engine = pe.PruneEngine(N, pe.InfoBatch(), num_epochs=4)
    kept = Kept()
    log, plain = EpochLog(engine, kept, labels=LABELS), EpochLog(engine, kept)
    epochs(engine, 1)
    log.log()
    plain.log()
    engine.resize(N + 1)
    epochs(engine, 1)
    plain.log()  # control: without labels nothing is of the old ones
    with pytest.raises(pe.PruneEngineError, match=r"labels are of 100 samples, .* had 101"):
        log.log()
    divided = pe.PruneEngine(N, pe.InfoBatch(), num_epochs=2, shard_scores=True)
    with pytest.raises(ValueError, match="labels need whole scores"):
        EpochLog(divided, labels=LABELS)


def test_seconds_saved_are_those_of_this_process() -> None:
    """Of a run that was restored into epochs that keep everything, nothing is saved any more."""

    def made() -> pe.PruneEngine:
        return pe.PruneEngine(N, pe.InfoBatch(0.5, delta=0.5), num_epochs=4)

    engine, resumed = made(), made()
    epochs(engine, 2)
    resumed.load_state_dict(through_disk(engine.state_dict()))
    kept = Kept()
    log, view = EpochLog(resumed, kept), View(resumed)
    epochs(resumed, 1)
    log.log()
    history = resumed.history
    assert history.nominal_trained > history.samples_trained, "control: before it some were"
    assert kept.values["prune/saved_seconds"] == [0.0]
    assert view.seconds_saved() == 0.0
    assert dict(view.figures())["saved"].startswith("0:00, ")
