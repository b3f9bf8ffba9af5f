# SPDX-License-Identifier: Apache-2.0
"""`prune-engine language` trains its four arms in each trainer and writes what came of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from _real import english

from prune_engine.cli import main
from prune_engine.recipes import language

N = 72


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the form of gsm8k's, with other text."""
    folder = tmp_path_factory.mktemp("data") / "gsm8k"
    folder.mkdir()
    texts = [row["text"] for row in english(N + 8)]
    rows = [json.dumps({"question": text[:6], "answer": text[6:]}) for text in texts]
    (folder / "train.jsonl").write_text("\n".join(rows[:N]), encoding="utf-8")
    (folder / "test.jsonl").write_text("\n".join(rows[N:]), encoding="utf-8")
    return folder.parent


def test_each_arm_is_trained_and_written(root, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["language", "--data-root", str(root), "--out", str(out), "--seeds", "1"]
    # The delta leaves the last of three epochs whole.
    given += ["--epochs", "3", "--batch-size", "8", "--length", "48", "--delta", "0.6"]
    assert main(given) == 0
    found = language.load(out / "language.json")
    rows = found["rows"]
    assert [(row["way"], row["arm"]) for row in rows] == [
        (way, arm) for way in language.WAYS for arm in language.ARMS
    ]
    for way in language.WAYS:
        samples = {row["arm"]: row["samples"] for row in rows if row["way"] == way}
        nominal = next(row["nominal"] for row in rows if row["way"] == way)
        assert samples["full"] == nominal
        assert samples["full_cut"] == samples["infobatch"] < nominal
        assert abs(samples["random_rescale"] - samples["infobatch"]) <= 0.15 * nominal
    assert all(math.isfinite(row["held_out_loss"]) for row in rows)
    assert {row["rows"] for row in rows if row["way"] == "trainer"} == {N}
    assert {row["rows"] for row in rows if row["way"] == "packed"} != {N}
    assert (out / "language.md").read_text(encoding="utf-8").strip() == language.table(found)
    assert language.table(found) in capsys.readouterr().out


def test_an_answers_loss_counts_no_question():
    tokenizer = language.byte_tokenizer()
    (row,) = language.encode([("ab", "cde")], tokenizer, 32, answers=True)
    assert row["labels"][:3] == [-100] * 3
    assert row["labels"][3:] == row["input_ids"][3:]
    assert tokenizer.decode(row["input_ids"]) == "ab\ncde\n<end>"
    (whole,) = language.encode([("ab", "cde")], tokenizer, 32, answers=False)
    assert whole["labels"] == whole["input_ids"] == row["input_ids"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--data-root", "nowhere"], "train.jsonl is neither"),
        (["--data-root", ".", "--epochs", "0"], "epochs: expected at least 1"),
        (["--data-root", ".", "--seeds", "0"], "--seeds: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_said(words, match, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["language", *words]) == 2
    assert match in capsys.readouterr().err


def test_rows_that_are_too_long_are_left_out(root, tmp_path, capsys):
    words = ["language", "--data-root", str(root), "--out", str(tmp_path), "--length", "4"]
    assert main(words) == 2
    assert "length: expected pairs of at most 4 bytes" in capsys.readouterr().err
