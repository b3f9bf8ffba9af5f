# SPDX-License-Identifier: Apache-2.0
"""Samples in a terminal: the right ones, drawn in letters, and harmless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from _runs import epochs, infobatch

import prune_engine as pe
from prune_engine.cli import main
from prune_engine.recipes import terminal
from prune_engine.recipes.data import load
from prune_engine.recipes.text import TextData

N = 300
INSPECT = ["--data", "digits", "--limit", str(N), "--top", "5"]


@pytest.fixture
def state(tmp_path: Path) -> tuple[Path, pe.PruneEngine]:
    engine = infobatch(N)
    epochs(engine, 2)
    pe.save_state(engine, tmp_path / "state.pt")
    return tmp_path / "state.pt", engine


@pytest.mark.extra("sklearn")
def test_inspect_shows_the_highest_scores_as_they_are(
    state: tuple[Path, pe.PruneEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    path, engine = state
    assert main(["inspect", str(path), *INSPECT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores, data = engine.scores(), load("digits", limit=N)
    expected = torch.sort(scores, descending=True, stable=True).indices[:5].tolist()
    assert [sample["index"] for sample in found["top"]] == expected
    assert [sample["label"] for sample in found["top"]] == data.train_labels[expected].tolist()
    assert main(["inspect", str(path), *INSPECT]) == 0
    printed = capsys.readouterr().out
    assert f"#{expected[0]}  score " in printed and "num_samples" in printed
    assert all(f"  {line}\n" in printed for line in found["top"][0]["image"])
    assert len(found["top"][0]["image"]) == 4 and len(found["top"][0]["image"][0]) == 8


def test_inspect_without_data_shows_numbers_and_refuses_what_does_not_fit(
    state: tuple[Path, pe.PruneEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = state
    assert main(["inspect", str(path), "--top", "3"]) == 0
    assert capsys.readouterr().out.count("  score ") == 3
    assert main(["inspect", str(path), "--top", "0"]) == 2
    assert "top: expected at least 1, got 0" in capsys.readouterr().err
    assert main(["inspect", str(path), "--data", "digits"]) == 2
    assert "expected with --top" in capsys.readouterr().err


@pytest.mark.extra("sklearn")
def test_data_of_another_length_is_refused(
    state: tuple[Path, pe.PruneEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = state
    arguments = ["--data", "digits", "--limit", "299", "--top", "5"]
    assert main(["inspect", str(path), *arguments]) == 2
    assert "data: expected 300 training samples as in the state, got 299" in (
        capsys.readouterr().err
    )


def test_a_text_is_shown_without_its_control_characters() -> None:
    rows = torch.tensor([list(b"to\x1b[2J be\n\xff"), [65, *[0] * 10]], dtype=torch.uint8)
    found = terminal.top_samples(torch.tensor([2.0, 1.0]), 2, TextData("x", rows, rows))
    shown = terminal.laid_out(found)
    assert "\x1b" not in shown and "\\x1b[2J be" in shown
    assert found[1]["text"] == "A", "padding is no text"
