# SPDX-License-Identifier: Apache-2.0
"""The page of a run: whole in one file, small, escaped, and the same after a kill."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _assertions import num_threads
from _run_folders import make, rows

import prune_engine as pe
from prune_engine.cli import main
from prune_engine.recipes import compare, data, files
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.report import charts, cost, page, view
from prune_engine.recipes.report.classes import class_rows
from prune_engine.recipes.report.headline import bouts, tiles
from prune_engine.recipes.report.history import read_history
from prune_engine.recipes.results import Report, RunResult
from prune_engine.recipes.trainer import TrainConfig
from prune_engine.recording import Recording

TINY = TrainConfig(model="mlp", epochs=4, batch_size=16, lr=0.05)


class Words(HTMLParser):
    """What a page has: tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]


def written(folder: Path, run: files.Run, **options: Any) -> str:
    out = page.write_page([(folder, run)], folder / "report.html", **options)
    assert out.stat().st_size <= page.LIMIT
    return out.read_text()


@pytest.mark.extra("sklearn")
def test_a_page_needs_nothing_else_and_has_all_its_parts(tmp_path: Path) -> None:
    words = Words(written(tmp_path, make(tmp_path)))
    for tag, found in words.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            link = found.get(name)
            assert link is None or link.startswith(("#", "data:")), (tag, link)
    titles = ("Summary", "Course of the trainings", "Scores", "Classes", "Samples", "Cost")
    assert all(title in words.text for title in titles)
    drawn = [found["data-chart"] for found in words.of("svg") if "data-chart" in found]
    assert drawn == ["kept", "threshold", "samples", "wall", "spread"]
    assert len(words.of("img")) > 20
    assert all(found.get("alt") for found in words.of("img"))
    pictures = [found for found in words.of("svg") if found.get("aria-hidden") != "true"]
    assert all(found.get("aria-label") or found.get("aria-labelledby") for found in pictures)
    assert all(found.get("d") for found in words.of("path"))


@pytest.mark.extra("sklearn")
def test_what_comes_from_data_is_shown_as_text(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "</style>", '" onload="x', "&amp;", "日本語", "ארבע"]
    names += ["{{ 7 * 7 }}", "]]>", "'", "nine"]
    run = make(tmp_path / "<img src=x onerror=y> ü")
    text = written(tmp_path / "<img src=x onerror=y> ü", run, names=names)
    words = Words(text)
    for name in names:
        assert name in words.text
    plain = Words(written(tmp_path / "<img src=x onerror=y> ü", run))
    assert [tag for tag, _ in words.tags] == [tag for tag, _ in plain.tags], "no tag is added"
    assert not any("onload" in found or "onerror" in found for _, found in words.tags)
    assert "<script>alert" not in text


@pytest.mark.extra("sklearn")
def test_names_come_from_a_file_and_must_be_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"Klasse {k} ß" for k in range(10)), encoding="utf-8")
    arguments = ["report", str(tmp_path / "run"), "--classes", str(names)]
    assert main(arguments) == 0
    assert "Klasse 7 ß" in Words((tmp_path / "run" / "report.html").read_text()).text
    names.write_text("one\n")
    assert main(arguments) == 2
    assert "names: expected 10 classes, got 1" in capsys.readouterr().err


@pytest.mark.extra("sklearn")
def test_one_epoch_and_no_test_point_make_a_page(tmp_path: Path) -> None:
    run = make(tmp_path, epochs=1, test=None)
    words = Words(written(tmp_path, run))
    assert "not tested" in words.text
    assert "Nothing was tested" in words.text
    assert "did not beat" not in words.text
    drawn = [found["data-chart"] for found in words.of("svg") if "data-chart" in found]
    assert drawn == ["kept"]
    files.write_report(tmp_path, run)
    assert json.loads((tmp_path / "summary.json").read_text())["arms"]["full"]["n"] == 1


def test_a_run_without_recording_or_data_says_what_it_lacks(tmp_path: Path) -> None:
    run = make(tmp_path, data="fashion_mnist")
    words = Words(written(tmp_path, run))
    assert "what the samples are: data_root (--data-root): fashion_mnist is read from" in words.text
    assert "Pruned most often" in words.text and not words.of("img")
    (tmp_path / "infobatch-seed0" / compare.RECORDING).unlink()
    words = Words(written(tmp_path, run))
    assert "no training of this run was recorded" in words.text
    assert "Pruned most often" not in words.text


def test_a_run_without_a_single_score_makes_a_page(tmp_path: Path) -> None:
    run = make(tmp_path)
    path = tmp_path / "infobatch-seed0" / compare.RECORDING
    assert view.view(tmp_path, run).distribution is not None, "control: scores have one"
    path.unlink()
    engine = pe.PruneEngine(400, pe.RandomSubset(0.5), num_epochs=4)
    engine.record(path)
    for _ in engine.epochs():
        order = torch.tensor(list(engine.sampler()))
        engine.observe(torch.full((len(order),), torch.nan), order)
    assert view.view(tmp_path, run).distribution is None
    assert "Not finite" in Words(written(tmp_path, run)).text


def test_a_thousand_classes_and_all_of_imagenet_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 1_281_167
    run = make(tmp_path, n=n, epochs=3, max_samples=200_000, data="cifar100")
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(n, -1, -1, -1)
    labels = torch.arange(n) % 1000
    many = ImageData("x", images, labels, images[:1], labels[:1], 1000, *torch.ones(2, 3))
    monkeypatch.setattr(data, "load", lambda *arguments, **options: many)
    text = written(tmp_path, run)
    words = Words(text)
    assert "classes: 960 between those shown" in words.text
    assert "200,000 of 1,281,167 samples were recorded" in words.text
    assert len(text) < 400_000


@pytest.mark.extra("sklearn")
def test_a_page_that_would_be_too_large_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    whole = len(written(tmp_path, run))
    monkeypatch.setattr(page, "LIMIT", whole - 100)
    words = Words(written(tmp_path, run))
    assert "samples: 6 in each list, for the size of this page" in words.text
    monkeypatch.setattr(page, "LIMIT", 5_000)
    with pytest.raises(ValueError, match="may have 5,000: report fewer runs"):
        written(tmp_path, run)


def test_lists_and_classes_follow_the_recording(tmp_path: Path) -> None:
    make(tmp_path, n=100, epochs=5)
    recording = Recording(tmp_path / "infobatch-seed0" / compare.RECORDING)
    history = read_history(recording, is_loss=True)
    scores = np.stack([recording.scores(epoch) for epoch in range(5)])
    learned = scores < np.log(2)
    assert (history.kept == sum(recording.kept(e).astype(int) for e in range(5))).all()
    assert (history.ever == learned.any(0)).all()
    assert (history.forgotten == (learned[:-1] & ~learned[1:]).sum(0)).all()
    for at in range(100):
        stays = [e for e in range(5) if learned[e:, at].all()]
        assert history.learned_at[at] == (stays[0] if stays else -1)
    labels = np.arange(100) % 2
    labels[history.kept.argsort()[:10]] = 2  # a class of those pruned most
    shown, left = class_rows(recording, history.kept, history.last, labels, ["a", "b", "c"])
    assert left == 0
    assert (shown[0].name, shown[0].verdict) == ("c", "over-pruned")
    assert [row.verdict for row in shown[1:]] == ["", ""] or shown[-1].verdict == "under-pruned"
    assert sum(row.count for row in shown) == 100


def stopped(folder: Path) -> str:
    """The page of a run, with every clock at one second and whatever is checked out meanwhile."""
    config = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {**config, "git_commit": None})
    for file in folder.glob("*/metrics.jsonl"):
        found = files.read_rows(file)
        clocks = {name: 1.0 for name in found[0] if name.endswith("seconds")}
        files.write_rows(file, [{**row, **clocks} for row in found])
    return written(folder, files.load_run(folder))


@pytest.mark.extra("sklearn")
def test_a_run_that_was_broken_off_and_resumed_gives_the_same_page(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def options(out: Path) -> compare.RunOptions:
        return compare.RunOptions("digits", out, TINY, "infobatch", limit=300, compare=True)

    said: list[str] = []

    def die(line: str) -> None:
        said.append(line)
        if len(said) in (3, 10):
            raise Killed

    whole, parts = tmp_path / "a" / "run", tmp_path / "b" / "run"
    with num_threads(1):
        compare.run(options(whole), said.append)
        expected, said[:] = len(said), []
        for _ in range(2):
            with pytest.raises(Killed):
                compare.run(options(parts), die, resume=True)
        compare.run(options(parts), die, resume=True)
        assert len(said) - 2 == expected, "an epoch that was not saved is trained again, no other"
        with pytest.raises(ValueError, match="a run with other arguments"):
            other = compare.RunOptions(data="digits", out=parts, train=TINY, limit=301)
            compare.run(other, said.append, resume=True)

    assert stopped(whole) == stopped(parts)
    file = parts / "infobatch-seed0" / "metrics.jsonl"
    changed = files.read_rows(file)
    files.write_rows(file, [{**row, "planned": row["planned"] - 1} for row in changed])
    assert stopped(parts) != stopped(whole), "control: the page shows a sample more or less"


KILLED = Path(__file__).parents[1] / "_killed_program.py"
STEPS = 4 * 18  # of full training: 300 samples in batches of 16


def in_a_process(out: Path, when: str, count: int = 0) -> tuple[int, str]:
    """Run or continue a small comparison in a process; return how it ended and what it said."""
    words = [
        "train",
        "--policy",
        "infobatch",
        "--limit",
        "300",
        "--epochs",
        "4",
        "--batch-size",
        "16",
    ]
    words += ["--seed", "0", "--compare", "--threads", "1", "--resume", "--out", str(out)]
    command = [sys.executable, "-W", "ignore", str(KILLED), when, str(count), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.full("trains in processes")
@pytest.mark.extra("sklearn")
def test_a_process_that_was_killed_and_resumed_gives_the_same_page(tmp_path: Path) -> None:
    whole, parts, other = (tmp_path / name / "run" for name in ("whole", "parts", "other"))
    status, said = in_a_process(whole, "never")
    assert status == 0, said
    total = int(said.rsplit("steps ", 1)[1])
    assert total > 3 * STEPS // 2
    # In an epoch, as a state is to be moved into place, and in a block of the policy's recording.
    for when, count in (("step", 30), ("replace", 6), ("record", 2)):
        status, said = in_a_process(parts, when, count)
        assert status == -signal.SIGKILL, (when, said)
        assert not (parts / "summary.json").exists()
    status, said = in_a_process(parts, "never")
    assert status == 0, said
    assert int(said.rsplit("steps ", 1)[1]) < total - STEPS, "what was saved is not trained again"
    assert stopped(whole) == stopped(parts)
    recorded = [(folder / "infobatch-seed0" / compare.RECORDING) for folder in (whole, parts)]
    assert recorded[0].read_bytes() == recorded[1].read_bytes()
    assert in_a_process(other, "step", 30)[0] == -signal.SIGKILL
    status, said = in_a_process(other, "forget")
    assert status == 0, said
    assert stopped(whole) != stopped(other), "control: a resumption that forgets is seen"


def test_runs_are_compared_in_one_table_and_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, test in (("first", 0.9), ("second", 0.8)):
        make(tmp_path / name, data="fashion_mnist", test=test)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    assert main(["compare", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["run", "arm"]
    cells = [line.split()[:3] for line in lines[2:]]
    assert cells == [
        ["first", "full", "90.00"],
        ["first", "infobatch", "90.00"],
        ["second", "full", "80.00"],
        ["second", "infobatch", "80.00"],
    ]
    assert main(["report", *folders, "--out", str(tmp_path / "both.html")]) == 0
    words = Words((tmp_path / "both.html").read_text())
    assert len(words.of("article")) == 2
    ids = [found["id"] for _, found in words.tags if "id" in found]
    assert len(ids) == len(set(ids))
    assert main(["compare", folders[0], str(tmp_path / "none")]) == 2


def test_a_loss_to_the_control_is_a_warning(tmp_path: Path) -> None:
    run = make(tmp_path)
    trained = [
        (arm, seed, test + seed / 1000)
        for arm, test in (("random", 0.92), ("infobatch", 0.9))
        for seed in range(3)
    ]
    found = {f"{arm}-seed{seed}": rows(arm, seed, [9, 9], 9, test) for arm, seed, test in trained}
    run = files.Run({**run.config, "runs": list(found)}, found, {})
    shown = view.view(tmp_path / "none", run)
    assert shown.warnings[0].startswith("infobatch lost to the random control")


def trained(arms: dict[str, list[float]], planned: dict[str, list[int]]) -> dict[str, files.Rows]:
    """Rows of each training: the test figure of each seed, what each arm kept by epoch."""
    return {
        f"{arm}-seed{seed}": rows(arm, seed, [n + 10 * seed for n in planned[arm]], 100, test)
        for arm, tests in arms.items()
        for seed, test in enumerate(tests)
    }


def test_an_arm_is_the_mean_of_its_trainings_with_these_behind_it(tmp_path: Path) -> None:
    run = make(tmp_path)
    found = trained(
        {"full": [0.9, 0.9], "infobatch": [0.8, 0.9]}, {"full": [80, 80], "infobatch": [60, 30]}
    )
    run = files.Run({**run.config, "runs": list(found)}, found, {})
    kept = view.view(tmp_path / "none", run).charts[0]
    assert [(path.label, path.faint) for path in kept.paths] == [
        *[("", True)] * 4,
        ("full", False),
        ("infobatch", False),
    ]
    assert kept.rows == [("full", "85", "85"), ("infobatch", "65", "35")]
    alone = files.Run(run.config, {name: found[name] for name in list(found)[::2]}, {})
    kept = view.view(tmp_path / "none", alone).charts[0]
    assert not any(path.faint for path in kept.paths), "one training is its own mean"
    assert kept.rows == [("full", "80", "80"), ("infobatch", "60", "30")]


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("perplexity", -1)])
def test_a_policy_stands_to_its_controls_as_the_sentences_say(metric: str, sign: int) -> None:
    def arm(name: str, mean: float) -> list[RunResult]:
        shown = [mean + 0.001 * seed * (-1) ** seed for seed in range(3)]
        return [
            RunResult(name, s, v, 9, 0.1, 1, 0.1, 0, 4, 4, 0, metric) for s, v in enumerate(shown)
        ]

    arms = [arm("infobatch", 0.5), arm("random", 0.4), arm("full", 0.6), arm("full_cut", 0.5)]
    report = Report(tuple(run for each in arms for run in each), "infobatch")
    found = {bout.name: bout for bout in bouts(report)}
    verdicts = [found[name].verdict for name in ("random", "full", "full_cut")]
    assert verdicts == (["better", "worse", "open"] if sign > 0 else ["worse", "better", "open"])
    for name, said in zip(found, report.sentences(), strict=False):
        bout = found[name]
        assert bout.words.partition(" ")[0] in said
        assert bout.low <= bout.at <= bout.low + bout.width
        outside = not bout.low <= 50 <= bout.low + bout.width
        assert outside == said.startswith(("infobatch beat ", "infobatch lost to "))
        assert (bout.at > 50) == (bout.verdict == "better")
        assert 0 <= bout.low <= bout.low + bout.width <= 100
    (value,) = [tile.value for tile in tiles(report) if tile.label == f"test {metric}"]
    assert value == ("50.03%" if sign > 0 else "0.500")


def test_seconds_are_shown_by_part_also_of_rows_that_know_fewer() -> None:
    row = rows("full", 0, [100], 100, 0.9)[0]
    row |= {"seconds": 2.0, "engine_seconds": 0.2, "eval_seconds": 0.5}
    parts = {"observe": 0.06, "order": 0.05, "audit": 0.04, "plan": 0.03, "recording": 0.02}
    new = {**row, **{f"{name}_seconds": seconds for name, seconds in parts.items()}}
    assert cost.spent(new) == pytest.approx({"model": 1.8, **parts, "eval": 0.5})
    old = {name: row[name] for name in ("seconds", "engine_seconds", "eval_seconds")}
    old |= {"end_seconds": 0.07, "recording_seconds": 0.02}
    of_old = {"observe": 0.13, "order": 0, "audit": 0, "plan": 0.05, "recording": 0.02}
    assert cost.spent(old) == pytest.approx({"model": 1.8, **of_old, "eval": 0.5})
    shown = cost.costs({"full": [[new], [new]], "other": [[old]]})
    assert shown.table[0] == "full 1.80 0.200 10 0.060 0.050 0.040 0.030 0.020 0.50".split()
    assert [round(sum(bar.shares)) for chart in shown.charts for bar in chart.bars] == [100] * 4


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [float("nan")] * 3, [1e-9, 1e9]])
def test_a_chart_of_any_numbers_has_ticks_and_stays_inside(values: list[float]) -> None:
    lines = [charts.Line("x", 0, list(enumerate(values)))]
    chart = charts.line_chart("a", "t", ("x", "y"), lines)
    assert len(chart.y_ticks) >= 2
    numbers = re.findall(r"[\d.]+", "".join(path.d for path in chart.paths))
    xs, ys = [float(x) for x in numbers[::2]], [float(y) for y in numbers[1::2]]
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for x in xs)
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for y in ys)
