# SPDX-License-Identifier: Apache-2.0
"""A subset chosen by the command, and trained on beside what it is to be compared with."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prune_engine as pe
from prune_engine.cli import main
from prune_engine.coresets.method import Scored
from prune_engine.recipes import compare, data, selection
from prune_engine.recipes.selection import SelectOptions, alike_at_random, read_chosen
from prune_engine.recipes.train import ArmResult
from prune_engine.recipes.trainer import TrainConfig
from prune_engine.recording import Recording

pytestmark = [pytest.mark.extra("sklearn"), pytest.mark.usefixtures("one_thread")]
TINY = TrainConfig(model="mlp", epochs=3, batch_size=16, lr=0.05)
SELECT = ["select", "--limit", "300", "--epochs", "3", "--batch-size", "16"]
TRAIN = ["train", "--limit", "300", "--epochs", "4", "--batch-size", "16"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> data.ImageData:
    found = data.load("digits", limit=300)
    assert isinstance(found, data.ImageData)
    return found


def options(method: str, **more) -> SelectOptions:
    given = {"fraction": 0.3, "limit": 300, **more}
    return SelectOptions(method, "digits", TINY, **given)


def test_the_command_writes_what_any_loader_reads(tmp_path, capsys, digits) -> None:
    out = tmp_path / "sub" / "a.npy"
    words = [*SELECT, "--method", "graphcut", "--fraction", "0.3", "--out", str(out), "--json"]
    assert main(words) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert "epoch 3/3" in printed.err
    indices = pe.data.load_subset(out, num_samples=300)
    assert (said["count"], len(indices), said["method"]) == (90, 90, "graphcut")
    counts = torch.bincount(digits.train_labels[torch.as_tensor(indices)], minlength=10)
    exact = torch.bincount(digits.train_labels, minlength=10) * 0.3
    assert bool(((counts - exact).abs() < 1).all())
    assert said["seconds"] > said["select_seconds"] > 0
    assert main([*words[:-1], "--seed", "0"]) == 0
    assert pe.data.load_subset(out).tolist() == indices.tolist(), "the same command, the same file"
    assert main([*words[:-1], "--no-balance", "--count", "7"][:-2]) == 0
    assert pe.data.load_subset(out).tolist() != indices.tolist()


@pytest.mark.parametrize("method", selection.METHODS)
def test_every_method_selects(tmp_path, method) -> None:
    said = selection.choose(options(method), tmp_path / "a.npy", lambda line: None)
    chosen, seconds = read_chosen(tmp_path / "a.npy", 300)
    assert len(chosen) == said["count"] == 90
    assert seconds == pytest.approx(said["seconds"])
    assert said["weighed"] == (method in ("craig", "gradmatch"))
    assert bool((chosen.weights != 1).any()) == said["weighed"]


@pytest.mark.parametrize("score", ["aum", "dyn_unc", "dual", "tdds", "forgetting", "grand"])
def test_any_score_is_recorded_or_made(tmp_path, score) -> None:
    chosen = options("stratified", score=score, beta=0.1)
    # A window of tdds needs one epoch more.
    chosen = replace(chosen, train=replace(TINY, epochs=4 if score != "tdds" else 12))
    said = selection.choose(chosen, tmp_path / "a.npy", lambda line: None)
    assert (said["score"], said["count"]) == (score, 90)


def test_scores_are_averaged_over_models(tmp_path, digits) -> None:
    runs = options("el2n", runs=2, seed=4)
    both = selection.evidence(runs, digits, lambda line: None)["scores"]
    alone = [
        selection.score_of("el2n", selection.one_model(runs, digits, seed, lambda line: None))
        for seed in (4, 5)
    ]
    torch.testing.assert_close(both, (alone[0].double() + alone[1].double()) / 2)
    assert not torch.allclose(alone[0], alone[1])


@pytest.mark.full("trains two models a method")
@pytest.mark.parametrize(
    "method", [name for name in selection.METHODS if issubclass(pe.coresets.TABLE[name], Scored)]
)
def test_every_score_is_averaged(tmp_path, method) -> None:
    said = selection.choose(options(method, runs=2), tmp_path / "a.npy", lambda line: None)
    assert (said["runs"], said["count"]) == (2, 90)


def test_deepfool_moves_the_images_where_it_is_asked(tmp_path, capsys, digits) -> None:
    exact = selection.evidence(options("deepfool", exact=True), digits, lambda line: None)
    model = selection.one_model(options("deepfool"), digits, 0, lambda line: None).embedding
    assert model.head is not None
    closed = pe.coresets.boundary_distance(model.logits, model.head)
    moved = exact["scores"]
    assert moved.shape == closed.shape and bool((moved >= 0).all())
    both = torch.stack((moved.argsort().argsort(), closed.argsort().argsort())).double()
    related = float(torch.corrcoef(both)[0, 1])
    assert 0.5 < related < 0.999, "they rank alike, and are not the same"
    files = []
    for words in ([], ["--exact"], ["--exact"]):
        files.append(tmp_path / f"{len(files)}.npy")
        command = [*SELECT, "--method", "deepfool", "--count", "40", *words]
        assert main([*command, "--out", str(files[-1])]) == 0
    plain, once, again = (file.read_bytes() for file in files)
    assert once == again != plain
    assert main([*SELECT, "--method", "el2n", "--count", "4", "--exact"]) == 2
    assert "exact: expected with deepfool only" in capsys.readouterr().err


def test_features_are_kept_and_not_made_again(tmp_path) -> None:
    kept = options("k_center", folder=tmp_path / "features")
    selection.choose(kept, tmp_path / "a.npy", lambda line: None)
    files = sorted((tmp_path / "features" / "seed0").iterdir())
    times = [file.stat().st_mtime_ns for file in files if file.name == "features.npy"]
    selection.choose(kept, tmp_path / "b.npy", lambda line: None)
    assert [f.stat().st_mtime_ns for f in files if f.name == "features.npy"] == times
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["state.pt", "--out", "a.npy", "--count", "1"], "select takes no state any more"),
        (["state.pt", "--keep", "hard"], "select takes no state any more"),
        (["--forgetting"], "select takes no state any more"),
        (["--count", "1"], "--method must be given"),
        (["--method", "random"], "--fraction or --count must be given"),
        (["--method", "random", "--count", "-1"], "count must be in 0..300, got -1"),
        (["--method", "random", "--count", "301"], "count must be in 0..300, got 301"),
        (["--method", "random", "--count", "1", "--out", "a.txt"], "--out must end in .npy"),
        (["--method", "random", "--count", "1", "--runs", "2"], "has no score to average"),
        (["--method", "el2n", "--count", "1", "--runs", "0"], "runs: expected at least 1"),
        (["--method", "el2n", "--count", "1", "--score", "aum"], "score: expected with stratified"),
        (["--method", "hardest", "--count", "1", "--score", "x"], "score: expected one of nll"),
        (["--method", "el2n", "--count", "1", "--beta", "0.1"], "beta: expected with stratified"),
        (["--method", "random", "--count", "1", "--data", "cifar10"], "--data-root"),
        (["--method", "random", "--count", "1", "--threads", "0"], "--threads"),
        (["--method", "random", "--count", "1", "--seed", "-1"], "seed must be in 0..2^63-1"),
        (["--method", "stratified", "--count", "200", "--beta", "0.5"], "k must be at most the"),
        (["--method", "hardest", "--score", "tdds", "--count", "1", "--epochs", "2"], "at least 3"),
        (["--method", "hardest", "--score", "dual", "--count", "1", "--epochs", "1"], "at least 2"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["select", "--limit", "300", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def untrained(*arguments: object, **more: object) -> None:
    raise AssertionError("no model is trained before what can be refused is refused")


def test_a_place_that_cannot_be_written_is_refused_before_hours_of_work(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "evidence", untrained)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    for out, named in ((tmp_path / "file" / "a.npy", "file"), (tmp_path / "folder.npy",) * 2):
        with pytest.raises(OSError, match=Path(named).name):
            selection.choose(options("herding"), out, lambda line: None)
    with pytest.raises(AssertionError, match="no model is trained"):  # control
        selection.choose(options("herding"), tmp_path / "a.npy", lambda line: None)


@pytest.mark.parametrize("balance", [True, False])
def test_more_than_the_hardest_leave_is_refused_before_a_model_is_trained(
    tmp_path, monkeypatch, balance
) -> None:
    monkeypatch.setattr(selection, "evidence", untrained)
    wanted = {"fraction": 0.5, "balance": balance}
    with pytest.raises(
        ValueError, match=r"k must be at most the \d+ samples that beta=0\.6 leaves"
    ):
        selection.choose(
            options("stratified", beta=0.6, **wanted), tmp_path / "a.npy", lambda line: None
        )
    with pytest.raises(AssertionError, match="no model is trained"):  # control
        selection.choose(
            options("stratified", beta=0.4, **wanted), tmp_path / "a.npy", lambda line: None
        )


def test_the_random_control_is_as_large_as_what_is_trained(tmp_path, digits) -> None:
    """A weight of 0 is no sample of the training, and none of what it is compared with."""
    file = tmp_path / "zeros.npy"
    weights = [0.0, 2.0] * 30
    pe.data.save_subset(file, torch.arange(60) * 5, 300, about={"weights": weights, "seconds": 1.0})
    run = compare.RunOptions(
        "digits", tmp_path, TINY, "subset", compare=True, subset=(file,), delta=1.0
    )
    drawn = compare._arm(run, "random_subset", digits, ArmResult(), 0).policy
    trained = run.arm(0).policy
    assert isinstance(drawn, pe.policies.Subset) and isinstance(trained, pe.policies.Subset)
    assert len(drawn.indices) == len(trained.indices) == 30
    labels = digits.train_labels
    mine, theirs = (
        torch.bincount(labels[p.indices.on(CPU)], minlength=10) for p in (trained, drawn)
    )
    assert torch.equal(mine, theirs)


def chosen_file(folder: Path, method: str = "herding", seed: int = 0) -> Path:
    out = folder / f"{method}.npy"
    selection.choose(options(method, fraction=0.5, seed=seed), out, lambda line: None)
    return out


def test_a_subset_is_trained_alone(tmp_path, capsys) -> None:
    file = chosen_file(tmp_path)
    assert main([*TRAIN, "--subset", str(file), "--out", str(tmp_path / "run")]) == 0
    rows = (tmp_path / "run" / "subset-seed0" / "metrics.jsonl").read_text().splitlines()
    trained = [json.loads(row) for row in rows]
    assert [row["planned"] for row in trained] == [150] * 4
    _, seconds = read_chosen(file)
    assert trained[0]["seconds"] > seconds > trained[1]["seconds"], "the choice counts, once"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["arguments"]["subset"] == [str(file)]


@pytest.mark.full("trains")
def test_a_subset_is_compared_at_equal_cost(tmp_path, capsys) -> None:
    file = chosen_file(tmp_path, "craig")
    words = ["--subset", str(file), "--compare", "--seeds", "2", "--out", str(tmp_path / "run")]
    assert main([*TRAIN, *words]) == 0
    printed = capsys.readouterr().out
    for arm in ("full", "full_cut", "random", "random_subset", "subset", "budget"):
        assert f"\n{arm} " in printed
    assert "a random subset of the same size and classes" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["arms"]
    served = {arm: summary[arm]["samples"] for arm in summary}
    assert served["subset"] == served["random_subset"] == served["full_cut"]
    assert served["random"] == pytest.approx(served["subset"], rel=0.1)
    assert main(["report", str(tmp_path / "run")]) == 0


def test_the_arms_of_a_subset_take_turns(tmp_path) -> None:
    from prune_engine.recipes.compare import RunOptions

    file = chosen_file(tmp_path, "random")
    run = RunOptions("digits", tmp_path, TINY, "subset", compare=True, subset=(file,), delta=1.0)
    even, odd = run.names(0), run.names(1)
    assert even[:2] == ["full", "subset"] and odd[:2] == ["subset", "full"]
    assert sorted(even) == sorted(odd) and len(set(even)) == len(even)
    with pytest.raises(ValueError, match="subset: expected with no other policy"):
        RunOptions("digits", tmp_path, TINY, subset=(file,))
    with pytest.raises(ValueError, match="subset: expected with no other policy"):
        RunOptions("digits", tmp_path, TINY, "subset")


def test_each_seed_trains_on_its_own_selection_or_it_is_said(tmp_path, capsys) -> None:
    paths = [chosen_file(tmp_path / str(seed), "herding", seed) for seed in (0, 1)]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    said = "All seeds trained on one selection"
    for name, given in (("each", paths), ("one", paths[:1])):
        words = ["--seeds", "2", "--out", str(tmp_path / name), "--subset", *map(str, given)]
        assert main([*TRAIN, *words]) == 0
        assert (said in capsys.readouterr().out) == (name == "one")
        for seed, path in ((0, paths[0]), (1, given[-1])):
            recording = Recording(tmp_path / name / f"subset-seed{seed}" / "scores.rec")
            trained = recording.kept(0).nonzero()[0].tolist()
            assert trained == pe.data.load_subset(path).tolist(), (name, seed)
    assert main([*TRAIN, "--seeds", "3", "--subset", *map(str, paths)]) == 2
    assert "one for each of 3 seeds, got 2" in capsys.readouterr().err
    pe.data.save_subset(paths[1], torch.arange(10), 300)
    assert main([*TRAIN, "--seeds", "2", "--subset", *map(str, paths)]) == 2
    assert "expected files of one size, got [10, 150] samples" in capsys.readouterr().err


def test_weights_that_let_few_samples_count_are_said_and_can_be_bounded(tmp_path, capsys) -> None:
    file, said = tmp_path / "heavy.npy", "let 60 samples train like 2"
    about = {"weights": [100.0, *[0.5] * 59], "seconds": 1.0}
    pe.data.save_subset(file, torch.arange(60) * 5, 300, about=about)
    for name, words in (
        ("free", []),
        ("bound", ["--weight-cap", "2"]),
        ("none", ["--weight-cap", "1"]),
    ):
        out = tmp_path / name
        assert main([*TRAIN, "--subset", str(file), "--out", str(out), *words]) == 0
        assert (said in capsys.readouterr().out) == (name == "free")
        assert (said in (out / "report.html").read_text()) == (name == "free")
        assert Recording(out / "subset-seed0" / "scores.rec").kept(0).sum() == 60
    for words in (["--weight-cap", "2"], ["--subset", str(file), "--weight-cap", "0.9"]):
        assert main([*TRAIN, *words]) == 2
        assert "weight_cap" in capsys.readouterr().err


def test_a_subset_of_another_data_set_is_refused(tmp_path, capsys) -> None:
    file = tmp_path / "a.npy"
    pe.data.save_subset(file, torch.arange(10), 299)
    words = [*TRAIN, "--subset", str(file), "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "a subset of 299 samples, expected one of 300" in capsys.readouterr().err
    assert main([*words, "--policy", "ucb"]) == 2
    assert "--subset goes with no --policy" in capsys.readouterr().err
    good = {"weights": [1.0] * 10, "seconds": 1.0}
    for wrong in (
        {"weights": [1.0]},
        {"weights": [True] * 10},
        {"weights": [-1.0] * 10},
        {"seconds": -1.0},
        {"seconds": True},
    ):
        pe.data.save_subset(file, torch.arange(10), 300, about={**good, **wrong})
        assert main(words) == 2
        assert "weights must be a number of at least 0 for each of 10" in capsys.readouterr().err
    note = file.with_name("a.npy.json")
    note.write_text(note.read_text().replace("true", "1.0").replace("1.0", "Infinity", 1))
    with pytest.raises(ValueError, match="weights must be a number"):
        read_chosen(file)
    pe.data.save_subset(file, torch.arange(10), 300, about=good)
    assert read_chosen(file)[1] == 1.0, "control"


@pytest.mark.full("trains on Fashion-MNIST")
def test_both_commands_work_on_a_real_data_set(tmp_path, capsys, monkeypatch) -> None:
    """As a user types them, in an empty folder; the first images only."""
    root = os.environ.get("PE_DATA")
    if root is None:
        pytest.skip("PE_DATA names no folder with the real data sets")
    root = str(Path(root).resolve())
    monkeypatch.chdir(tmp_path)
    given = ["--data", "fashion_mnist", "--data-root", root, "--limit", "600", "--threads", "1"]
    given += ["--epochs", "3", "--batch-size", "64"]
    assert main(["select", "--method", "graphcut", "--fraction", "0.5", *given]) == 0
    assert "select_seconds" in capsys.readouterr().out
    file = tmp_path / "fashion_mnist-graphcut-0.5.npy"
    chosen, seconds = read_chosen(file, 600)
    loaded = data.load("fashion_mnist", root, limit=600)
    assert isinstance(loaded, data.ImageData)
    share = torch.bincount(loaded.train_labels[chosen.indices], minlength=10) * 2
    assert len(chosen) == 300 and seconds > 0
    assert bool(((share - torch.bincount(loaded.train_labels, minlength=10)).abs() < 2).all())
    words = ["train", "--subset", file.name, "--compare", "--seed", "0", *given]
    assert main(words) == 0
    printed = capsys.readouterr().out
    arms = json.loads(Path("runs/fashion_mnist-subset/summary.json").read_text())["arms"]
    assert set(arms) >= {"full", "full_cut", "random", "random_subset", "subset"}
    assert all(f"\n{arm} " in printed for arm in arms)
    served = {arm: found["samples"] for arm, found in arms.items()}
    assert served["subset"] == served["random_subset"] == served["full_cut"] < served["full"]
    assert arms["subset"]["wall_seconds"] > seconds, "the choice counts"
    assert Path("runs/fashion_mnist-subset/report.html").is_file()


def test_the_random_control_has_the_same_classes() -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([50, 30, 20]))
    indices = torch.cat((torch.arange(10), torch.arange(60, 65), torch.arange(99, 100)))
    drawn = alike_at_random(indices, labels, 0)
    assert torch.equal(torch.bincount(labels[drawn]), torch.bincount(labels[indices]))
    assert drawn.tolist() == sorted(set(drawn.tolist())) != indices.tolist()
    assert drawn.tolist() != alike_at_random(indices, labels, 1).tolist()
