# SPDX-License-Identifier: Apache-2.0
"""Files that do not fit and terminals that cannot print: one line, and nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _runs import infobatch

import prune_engine as pe
from prune_engine.cli import main
from prune_engine.recipes import formats, text

TRAIN = ["train", "--limit", "400", "--epochs", "2", "--batch-size", "16", "--seeds", "2"]
CONFIG = {
    "schema": 1,
    "runs": ["full-seed0"],
    "policy_arm": "full",
    "arguments": {"data": "digits", "train": {"model": "mlp"}},
}


def complain(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command leaves."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prune-engine {arguments[0]}: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2]",
        b'"run"',
        b"null",
        json.dumps(CONFIG).encode()[:40],
        b"\xff\xfe",
        b'{"schema": 1}',
        json.dumps({**CONFIG, "runs": 3}).encode(),
        json.dumps({**CONFIG, "arguments": []}).encode(),
        json.dumps({**CONFIG, "arguments": {"data": "digits"}}).encode(),
    ],
    ids=lambda content: content[:12],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content)
    assert str(tmp_path / "config.json") in complain(["report", str(tmp_path)], capsys)


@pytest.mark.parametrize("row", [[1], {"schema": 1}, {"schema": 1, "planned": "many"}, "row"])
def test_rows_that_do_not_fit_are_named(tmp_path, capsys, row):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "full-seed0").mkdir()
    file = tmp_path / "full-seed0" / "metrics.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert str(file) in complain(["report", str(tmp_path)], capsys)


def test_any_error_of_the_system_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        assert "Permission denied" in complain(["report", str(tmp_path)], capsys)
    line = complain(["inspect", str(tmp_path)], capsys)
    assert f"no file {tmp_path}" in line


@pytest.mark.extra("sklearn")
def test_a_place_that_is_none_for_a_subset_is_named(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    words = ["select", "--method", "random", "--count", "1", "--out", str(taken / "a.npy")]
    assert str(taken) in complain(words, capsys)


@pytest.mark.parametrize("fraction", ["nan", "inf", "-0.5"])
def test_a_fraction_that_is_none_is_named(tmp_path, capsys, fraction):
    words = ["select", "--method", "random", "--out", str(tmp_path / "a.npy")]
    assert "fraction must be in 0..1" in complain([*words, f"--fraction={fraction}"], capsys)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["buffer"].pop("weight_class"),
        lambda state: state["buffer"].update(records=torch.zeros(())),
        lambda state: state["buffer"].update(epoch="3"),
        lambda state: state["buffer"].update(counters=torch.zeros(2)),
    ],
)
def test_a_state_that_is_not_whole_is_named(tmp_path, capsys, damage):
    state, file = infobatch(8).state_dict(), tmp_path / "state.pt"
    torch.save(state, file)
    assert main(["inspect", str(file)]) == 0  # control
    capsys.readouterr()
    damage(state)
    torch.save(state, file)
    assert str(file) in complain(["inspect", str(file)], capsys)


def as_npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


ARRAYS = {
    "empty": b"",
    "torn": as_npy(np.arange(4))[:70],
    "number": as_npy(np.int64(3)),
    "words": as_npy(np.array(["a", "b"])),
    "fractions": as_npy(np.array([0.5])),
    "text": b"0 1 2\n",
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_that_is_none_of_integers_is_named(tmp_path, content):
    file = tmp_path / "a.npy"
    file.write_bytes(content)
    note = {"format": 1, "num_samples": 4, "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "a.npy.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match=r"a\.npy: "):
        pe.data.load_subset(file)
    labels = tmp_path / "train-labels.npy"
    labels.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-labels\.npy: "):
        formats.cifar("cifar10", tmp_path, "train")


@pytest.mark.parametrize("note", ["[]", "", '{"format": 1}', '{"format": 1, "sha256": 3}'])
def test_a_note_that_does_not_fit_is_named(tmp_path, note):
    pe.data.save_subset(tmp_path / "a.npy", torch.tensor([0]), 4)
    (tmp_path / "a.npy.json").write_text(note)
    with pytest.raises(ValueError, match=r"a\.npy\.json: "):
        pe.data.load_subset(tmp_path / "a.npy")


def test_text_that_is_none_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe\n")
    (tmp_path / "test.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"\.jsonl: not text in UTF-8"):
        text.load_text("gsm8k", tmp_path)


class Terminal(io.TextIOWrapper):
    """Standard output of an encoding, which may break after some lines."""

    def __init__(self, encoding: str, lines: float = float("inf")) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")
        self.left = lines

    def write(self, words: str) -> int:
        if self.left <= 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self.left -= words.count("\n")
        return super().write(words)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.extra("sklearn")
def test_an_ascii_terminal_loses_no_table(tmp_path: Path, monkeypatch: Any) -> None:
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    out = tmp_path / "l\u00e4ufe"
    assert main([*TRAIN, "--threads", "1", "--no-pictures", "--out", str(out)]) == 0
    printed = terminal.text()
    assert " +/- " in printed and "l\\xe4ufe" in printed
    assert "\u00b1" in (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.extra("sklearn", "matplotlib")
def test_a_reader_that_goes_away_loses_no_training(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal("utf-8", lines=1))
    assert main([*TRAIN, "--threads", "1", "--pictures", "--out", str(tmp_path)]) == 2
    assert "Broken pipe" in capsys.readouterr().err
    rows = [(tmp_path / f"infobatch-seed{k}" / "metrics.jsonl").read_text() for k in (0, 1)]
    assert [text.count("\n") for text in rows] == [2, 2], "both seeds were trained to their end"
    for name in ("table.md", "summary.json", "pruned.png", "report.html"):
        assert (tmp_path / name).is_file()
    assert not (tmp_path / "run.lock").exists()


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write: Callable[..., Any] = pe.data.save_subset
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.npy"):
        write(tmp_path / "a.npy", torch.tensor([0]), 4)
