# SPDX-License-Identifier: Apache-2.0
"""The benchmark of selections resumes, and its tables are made of its rows."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from _assertions import num_threads

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # which the module sets otherwise
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "coresets", raising=False)
    module = importlib.import_module("coresets")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "rows")
    with num_threads(1):
        yield module
    sys.modules.pop("coresets")


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn")
def test_accuracies_resume_and_make_a_table(bench, tmp_path, monkeypatch, capsys) -> None:
    words = ["accuracy", "--data", "digits", "--model", "mlp", "--limit", "200", "--seeds", "0"]
    words += ["--fractions", "0.5", "--cache", str(tmp_path)]
    fit, calls = bench.fit, []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(bench, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(words)
    bench.main(words)
    (file,) = (tmp_path / "rows").glob("*.json")
    rows = bench._rows(file)
    names = [row["method"] for row in rows]
    assert (
        len(names) == len(set(names)) == len(calls) - 2
    )  # the small model, and the one broken off
    assert {"full", "random*", "random", "herding (published)", "tdds", "craig"} <= set(names)
    bench.main(words)
    assert len(calls) == len(names) + 2, "nothing is measured twice"
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{bench.BEGIN}\nold\n{bench.END}\n\nafter\n")
    bench.main(["table", "--into", str(page)])
    text = page.read_text()
    assert "old" not in text and text.endswith("after\n")
    assert all(f"\n| {name} |" in text for name in names if name != "full")
    assert "## digits, mlp, 200 samples" in text


def test_a_class_is_measured_and_a_gap_has_its_interval(bench, monkeypatch) -> None:
    monkeypatch.setitem(bench.CLASS, "n", 60)
    monkeypatch.setitem(bench.CLASS, "k", 20)
    monkeypatch.setitem(bench.CLASS, "width", 8)
    monkeypatch.setitem(bench.CLASS, "classes", 4)
    row = bench.one_class("graphcut", 2)
    assert len(row["seconds"]) == 2 and row["n"] == 60
    assert "| graphcut | " in bench.cost_table([row])
    assert bench._gap([1.0, 1.1, 0.9]) == "**+1.00 ± 0.25**"
    assert bench._gap([1.0, -1.0]) == "+0.00 ± 12.71"
    assert bench._gap([1.0]) == "+1.00"


@pytest.mark.full("starts processes")
def test_a_whole_data_set_is_measured_in_a_process_of_its_own_and_once(
    bench, monkeypatch, capsys
) -> None:
    words = ["large", "--samples", "90", "--width", "4", "--classes", "3", "--threads", "1"]
    started: list[list[str]] = []
    run = bench.subprocess.run

    def counted(command: list[str], **options: Any) -> Any:
        started.append(command)
        return run(command, **options)

    monkeypatch.setattr(bench.subprocess, "run", counted)
    bench.main([*words, "--methods", "graphcut", "k_center:whole"])
    bench.main([*words, "--methods", "k_center:whole", "random"])
    measured = [command[3] for command in started if "whole" in command]
    assert measured == ["graphcut", "k_center:whole", "random"]
    rows = bench._rows(bench.RESULTS / "large-90.json")
    assert [row["balance"] for row in rows] == [True, False, True]
    assert {row["k"] for row in rows} == {45} and {row["threads"] for row in rows} == {1}
    given = {row["method"]: row["inputs_mib"] * 2**20 for row in rows}
    labels, features, logits = 90 * 8, 90 * 4 * 4, 90 * 3 * 4
    assert given == {
        "graphcut": labels + features + logits,
        "k_center:whole": labels + features,
        "random": labels,
    }
    assert "| k_center | 90 | 4 | 3 | 45 | no |" in bench.large_table(rows)
