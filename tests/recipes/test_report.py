# SPDX-License-Identifier: Apache-2.0
"""The table adds up, and the sentences under it follow the numbers, losses included."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_engine.recipes import files
from prune_engine.recipes.pictures import draw
from prune_engine.recipes.results import Report, RunResult, spread


def rows(arm: str, seed: int, accuracy: float, served: list[int], **more: Any) -> list[dict]:
    return [
        {
            "schema": 1,
            "arm": arm,
            "seed": seed,
            "epoch": epoch,
            "num_epochs": 4,
            "num_samples": 1000,
            "train_loss": 0.5,
            "test_accuracy": accuracy - 0.01 * (len(served) - 1 - epoch),
            "lr": 0.1,
            "planned": n,
            "served": n,
            "saved": 1000 - n,
            "threshold": None,
            "nonfinite": 0,
            "seconds": n / 100,
            "eval_seconds": 5.0,
            "engine_seconds": n / 10_000,
            **more,
        }
        for epoch, n in enumerate(served)
    ]


FULL = [1000, 1000, 1000, 1000]
PRUNED = [1000, 500, 500, 1000]


def make(arms: dict[str, list[float]], policy: str = "infobatch") -> Report:
    runs = [
        RunResult.of(rows(arm, seed, accuracy, FULL if arm == "full" else PRUNED))
        for arm, accuracies in arms.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    return Report(tuple(runs), policy)


def test_the_summary_adds_up_and_leaves_evaluation_out() -> None:
    report = make({"full": [0.90, 0.92], "infobatch": [0.91, 0.91], "random": [0.90, 0.90]})
    arms = report.summary()["arms"]
    assert list(arms) == ["full", "random", "infobatch"]
    assert arms["full"]["accuracy_mean"] == pytest.approx(91.0)
    assert arms["full"]["accuracy_std"] == pytest.approx(2**0.5)
    assert arms["full"]["saved"] is None
    pruned = arms["infobatch"]
    assert pruned["samples"] == 3000
    assert pruned["saved"] == pytest.approx(0.25)
    assert pruned["dsi"] == pytest.approx(0.25)
    assert pruned["wall_seconds"] == pytest.approx(30.0)  # 20 s of evaluation are not in it
    assert pruned["wall_saved"] == pytest.approx(0.25)
    assert pruned["wall_per_sample_saved"] == pytest.approx(1.0)
    assert pruned["engine_share"] == pytest.approx(0.01)


def test_a_cut_training_counts_what_it_trained() -> None:
    cut = rows("full_cut", 0, 0.9, [1000, 1000, 1000])
    cut[-1]["served"] = 500
    assert RunResult.of(cut).samples == 2500
    assert RunResult.of(cut).dsi == pytest.approx(1 - 2500 / 4000)


def test_a_dropped_tail_is_not_counted_as_saved_data() -> None:
    tail = rows("full", 0, 0.9, FULL)
    for row in tail:
        row["served"] = 960
    assert RunResult.of(tail).samples == 3840
    assert RunResult.of(tail).dsi == 0.0


@pytest.mark.parametrize(
    ("policy", "control", "verb"),
    [
        ([0.92, 0.921, 0.922], [0.90, 0.90, 0.90], "beat"),
        ([0.90, 0.901, 0.902], [0.92, 0.92, 0.92], "lost to"),
        ([0.90, 0.92, 0.91], [0.91, 0.90, 0.915], "did not beat"),
        ([0.91, 0.91, 0.91], [0.91, 0.91, 0.91], "did not beat"),
    ],
)
def test_the_verdict_over_the_control_follows_the_numbers(
    policy: list[float], control: list[float], verb: str
) -> None:
    said = make({"infobatch": policy, "random": control}).sentences()
    assert said[0].startswith(f"infobatch {verb} the random control at equal savings: ")
    assert "paired over 3 seeds" in said[0]


@pytest.mark.parametrize("seeds", [*range(2, 11), 14])
def test_the_interval_holds_95_percent_of_students_t(seeds: int) -> None:
    policy = [0.9 + 0.01 * (-1) ** at + 0.001 * at for at in range(seeds)]
    (gap, *_) = make({"infobatch": policy, "random": [0.9] * seeds}).gaps()
    gaps = 100 * (np.array(policy) - 0.9)
    t = gap.bound * math.sqrt(seeds) / gaps.std(ddof=1)
    df = seeds - 1
    x = (np.arange(200_000) + 0.5) / 200_000 * t  # the density of Student's t from 0 to t
    scale = math.gamma((df + 1) / 2) / (math.gamma(df / 2) * math.sqrt(df * math.pi))
    held = 2 * float((scale * (1 + x**2 / df) ** (-(df + 1) / 2)).mean()) * t
    if seeds <= 10:
        assert held == pytest.approx(0.95, abs=1e-4)
    else:
        assert 0.95 < held < 0.97, "wider than need be, and never narrower"


def test_one_seed_claims_nothing() -> None:
    said = make({"infobatch": [0.95], "random": [0.90], "full": [0.9]}).sentences()
    assert said[0] == "One seed says nothing about the random control at equal savings: " + (
        "infobatch +5.00 points."
    )
    assert not any(" beat " in sentence or " lost " in sentence for sentence in said)
    assert any("25.0% fewer samples" in sentence for sentence in said)
    assert said[-1] == "The engine took 0.300 s per training, 1.00% of its wall time."


def test_a_run_of_full_training_alone_is_compared_with_nothing() -> None:
    said = make({"full": [0.9, 0.9]}, policy="full").sentences()
    assert said == ["The engine took 0.400 s per training, 1.00% of its wall time."]


def test_the_table_is_the_same_in_markdown_and_on_the_terminal() -> None:
    report = make({"full": [0.90, 0.92], "infobatch": [0.91, 0.91]})
    markdown = report.table(markdown=True).splitlines()
    terminal = report.table(markdown=False).splitlines()
    assert len(markdown) == len(terminal) == 4
    assert {line.count("|") for line in markdown} == {12}
    assert len({len(line) for line in terminal}) == 1
    for pipes, spaces in zip(markdown[2:], terminal[2:], strict=True):
        cells = [cell.strip() for cell in pipes.strip("|").split("|")]
        assert spaces.split() == " ".join(cells).split()
    assert "91.00 ± 1.41" in markdown[2]


def test_spread_of_one_value_has_no_width() -> None:
    assert spread([3.0]) == (3.0, 0.0)


def test_a_file_is_replaced_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.json"
    files.write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text()) == {"a": 1}
    target.unlink()
    target.mkdir()
    with pytest.raises(OSError, match=r"x\.json"):
        files.write_bytes(target, b"a folder is in the way")
    assert [path.name for path in target.parent.iterdir()] == ["x.json"]


def test_a_line_of_another_schema_or_of_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    files.write_rows(file, [{"schema": 1}, {"schema": 2}])
    with pytest.raises(ValueError, match=r":2: expected schema 1, got 2"):
        files.read_rows(file)
    file.write_text('{"schema": 1}\n{"sch')
    with pytest.raises(ValueError, match=r":2: not a line of JSON"):
        files.read_rows(file)


@pytest.mark.extra("matplotlib")
def test_a_run_is_read_back_from_its_files_and_drawn(tmp_path: Path) -> None:
    names = {"full-seed0": ("full", FULL), "infobatch-seed0": ("infobatch", PRUNED)}
    planned = [*names, "random-seed0"]  # the last one was never started
    words = {"data": "digits", "train": {"model": "mlp"}}
    config = {"schema": 1, "runs": planned, "policy_arm": "infobatch", "arguments": words}
    files.write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match="no training has finished"):
        files.load_run(tmp_path)
    for name, (arm, served) in names.items():
        files.write_rows(tmp_path / name / "metrics.jsonl", rows(arm, 0, 0.9, served))
    run = files.load_run(tmp_path)
    report = run.report
    assert report.arms == ["full", "infobatch"]
    assert run.config == config
    assert [path.name for path in draw(tmp_path, run)] == ["pruned.png", "accuracy.png"]
    files.write_report(tmp_path, run)
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("# digits, mlp, infobatch\n")
    assert report.table(markdown=True) in text
    assert json.loads((tmp_path / "summary.json").read_text()) == report.summary()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        files.load_run(tmp_path)
    files.write_json(tmp_path / "config.json", {"schema": 9, "runs": []})
    with pytest.raises(ValueError, match="expected schema 1, got 9"):
        files.load_run(tmp_path)
