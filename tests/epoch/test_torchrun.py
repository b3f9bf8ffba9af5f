# SPDX-License-Identifier: Apache-2.0
"""Two gloo ranks: the README's recipe under torchrun, and the table of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from _assertions import assert_bitwise
from _processes import start_ranks
from _readme import readers_names
from _torchrun_program import difference, free_port, recipe, run_recipe

from prune_engine import cli
from prune_engine.epoch.ranks import world
from prune_engine.recipes import ranks

HERE = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds
TRAIN = ["train", "--data", "digits", "--epochs", "4", "--no-pictures", "--threads", "1"]
pytestmark = pytest.mark.distributed


def torchrun(*arguments: str) -> None:
    """Run torchrun with two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def torchrun_tells(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a process, through its environment."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    texts = {name: str(value) for name, value in told.items()}
    return {**texts, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}


@pytest.mark.full("trains")
def test_the_recipe_of_the_readme_trains_on_two_ranks_what_one_would(tmp_path, monkeypatch):
    torchrun(str(HERE / "_torchrun_program.py"), str(tmp_path))
    first, second = (torch.load(tmp_path / f"recipe{q}.pt", weights_only=True) for q in range(2))
    for name, value in torchrun_tells(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    with torch.random.fork_rng():  # the reader's model draws from it
        code = recipe().replace("batch_size=32", "batch_size=64")
        one = run_recipe(code, readers_names(tmp_path))
    assert not dist.is_initialized()
    for name in ("kept", "scores"):
        assert_bitwise(first[name], second[name], name)
    assert first["planned"] == second["planned"] == one["planned"]
    assert first["planned"][1] < first["planned"][0] == 640, "control: something is pruned"
    assert_bitwise(first["kept"], one["kept"], "kept")
    # Sums of the gradient in another order: the last bits of a float32, some steps on.
    torch.testing.assert_close(first["scores"], one["scores"], rtol=1e-4, atol=1e-5)


def test_the_recipe_is_six_lines_of_a_script_that_runs_without_them(tmp_path, monkeypatch):
    lines = difference()
    assert [sum(line[0] == mark for line in lines) for mark in "-+"] == [6, 6]
    for name, value in torchrun_tells(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    with torch.random.fork_rng():
        space = readers_names(tmp_path)
        before = space["model"].weight.clone()
        exec(compile(recipe("-"), "the script before", "exec"), space)
    assert not dist.is_initialized()
    assert not torch.equal(space["model"].weight, before), "it trains"
    assert "pe." not in recipe("-")


def train(rank: int, size: int, folder: str, port: int) -> None:
    os.environ.update(torchrun_tells(rank, size, port))
    sys.stdout = open(f"{folder}/printed{rank}", "w")
    assert cli.main([*TRAIN, "--out", f"{folder}/together"]) == 0
    sys.stdout.flush()


def rows(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn")
def test_train_prints_the_table_of_one_process(tmp_path):
    size = 2
    assert start_ranks(train, size, str(tmp_path), free_port()).join() == [0] * size
    assert cli.main([*TRAIN, "--out", str(tmp_path / "alone")]) == 0
    alone, together = rows(tmp_path / "alone"), rows(tmp_path / "together")
    assert len(alone) == len(together) == 4
    for one, two in zip(alone, together, strict=True):
        for name in ("planned", "served", "saved", "nonfinite"):
            assert two[name] == one[name], name
        for name in ("threshold", "train_loss", "lr"):
            assert (two[name] is None) == (one[name] is None), name
            assert (two[name] or 0.0) == pytest.approx(one[name] or 0.0, rel=1e-3), name
        assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.01)
    assert alone[1]["planned"] < alone[0]["planned"], "control: something is pruned"
    tables = [(tmp_path / name / "table.md").read_text() for name in ("alone", "together")]
    assert columns(tables[0]) == columns(tables[1])
    assert "infobatch" in (tmp_path / "printed0").read_text()
    assert (tmp_path / "printed1").read_text() == "", "one rank prints"
    config = json.loads((tmp_path / "together" / "config.json").read_text())
    assert config["world_size"] == size


def columns(table: str) -> list[list[str]]:
    """Return the table without what a clock says: arm, n and samples trained of each line."""
    cells = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    return [[row[1], row[3], row[4]] for row in cells]


@pytest.mark.slow
def test_train_under_torchrun_itself(tmp_path):
    torchrun("-m", "prune_engine", *TRAIN, "--out", str(tmp_path))
    assert len(rows(tmp_path)) == 4


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: (0, 3))
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 ranks, got 32"):
        ranks.share_of(32)


def test_alone_there_is_nothing_to_join():
    with ranks.joined("cuda") as device:
        assert (device, world()) == ("cuda", (0, 1))
    assert ranks.is_first()
    assert ranks.share_of(33) == 33
