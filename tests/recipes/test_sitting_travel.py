# SPDX-License-Identifier: Apache-2.0
"""What goes to a GPU machine is enough and small enough; what comes back becomes results."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())


@pytest.fixture(scope="module")
def travel() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("gpu.travel")


def git(root: Path, *words: str) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small one, with a library that was built after its sources."""
    root = tmp_path / "repository"
    for name, text in {
        ".gitignore": "*.so\n/build/\n_build_info.json\n",
        "csrc/plan.cu": "kernel",
        "prune_engine/__init__.py": "",
        "prune_engine/_ops.so": "library",
        "prune_engine/_build_info.json": json.dumps({"cuda_archs": ["80+PTX", "90"]}),
        "notes.txt": "not committed, not ignored",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    os.utime(root / "csrc/plan.cu", (1, 1))
    git(root, "init", "--quiet")
    git(root, "add", ".gitignore", "csrc", "prune_engine")
    git(root, "commit", "--quiet", "-m", "all")
    return root


def test_the_pack_has_the_tree_and_the_libraries(
    travel: Any, repository: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.so"
    old.write_text("older", encoding="utf-8")
    calls = travel.pack(repository, old)
    with tarfile.open(repository / travel.PACK) as archive:
        names = set(archive.getnames())
    carried = ["prune_engine/_ops.so", "prune_engine/_build_info.json", "build/sitting/old/_ops.so"]
    assert names == {
        ".gitignore",
        "csrc/plan.cu",
        "prune_engine/__init__.py",
        "notes.txt",
        *carried,
    }
    assert [call["carry"] for call in calls] == [carried] * 3
    for number, call in enumerate(calls, 1):
        assert call["command"].startswith(f"python3 bench/sitting.py {number} --commit ")
        assert len(call["command"]) <= 2000
        assert call["timeout_s"] < 300
    assert calls[2]["command"].endswith(" --old build/sitting/old/_ops.so")
    assert sum(call["timeout_s"] for call in calls) < 15 * 60


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda root: (root / "prune_engine/_ops.so").unlink(), "must be there"),
        (lambda root: os.utime(root / "csrc/plan.cu"), "older than csrc/plan.cu"),
        (
            lambda root: (root / "prune_engine/_build_info.json").write_text(
                json.dumps({"cuda_archs": ["80+PTX"]}), encoding="utf-8"
            ),
            "code for sm_90",
        ),
        (lambda root: os.truncate(root / "notes.txt", 65 << 20), "more than 64"),
    ],
    ids=["no library", "stale", "another GPU", "large"],
)
def test_a_sitting_that_would_be_wasted_is_not_packed(
    travel: Any, repository: Path, break_it: Any, says: str
) -> None:
    library = repository / "prune_engine/_ops.so"
    os.utime(library, (100, 100))
    break_it(repository)
    with pytest.raises(travel.NotReady, match=says):
        travel.pack(repository, None)
    assert not (repository / travel.PACK).exists()


@pytest.mark.full("sits in a copy of the tree")
def test_what_travels_is_enough_for_a_call(tmp_path: Path) -> None:
    if not (ROOT / "prune_engine/_ops.so").is_file():
        pytest.skip("a wheel is tested: the tree that would travel is not here")
    source, there = tmp_path / "source", tmp_path / "there"
    hidden = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "_host*.so")
    shutil.copytree(ROOT, source, ignore=hidden)
    shutil.copy(ROOT / ".gitignore", source)
    info = source / "prune_engine/_build_info.json"
    archs = json.loads(info.read_text(encoding="utf-8"))
    info.write_text(json.dumps(archs | {"cuda_archs": ["90"]}), encoding="utf-8")
    (source / "prune_engine/_ops.so").touch()
    git(source, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "all")
    command = [sys.executable, "bench/sitting.py", "pack"]
    packed = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    words = [json.loads(line)["command"].split() for line in packed.stdout.splitlines()]
    assert len(words) == 3
    there.mkdir()
    subprocess.run(["tar", "-xzf", source / "build/sitting/sitting.tar.gz"], cwd=there, check=True)
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words[0][1:], "--size", "toy", "--only", "benchmark"],
        cwd=there, env=here | {"OUT": str(tmp_path / "out")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/call-1.json").read_text(encoding="utf-8"))
    assert found["facts"]["library"] == str(there / "prune_engine/_ops.so")
    assert found["facts"]["commit"] == words[0][-1] != "none"


def a_call(folder: Path, number: int, **changes: Any) -> None:
    row = {"part": "benchmark", "table": "epoch", "n": 14_197_122, "name": "plan"}
    facts = {"device": "NVIDIA H200", "library_sha256": "1", **changes.pop("facts", {})}
    document = {
        "format": 1, "kind": "sitting", "call": number, "started": "2030-01-02 03:04 UTC",
        "ended": "whole", "seconds": 9.0, "facts": facts,
        "rows": [{**row, "bytes": 127_774_098, "p50_us": 35.0, "times_us": [35.0, 36.0]}],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"call-{number}.json").write_text(json.dumps(document | changes), encoding="utf-8")


def test_what_comes_back_becomes_results_with_their_table(travel: Any, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        a_call(tmp_path / f"run-{number}", number)
    results = tmp_path / "results"
    page = travel.take(sorted(tmp_path.glob("run-*")), results)
    assert page.name == "nvidia-h200-2030-01-02.md"
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\| plan \| 34-36 \| 29\.7 \| [\d.]+ \| [\d.]+ \| 35 \|", text)
    assert "as predicted" in text
    assert [path.name for path in sorted(results.glob("*.json"))] == [
        f"nvidia-h200-2030-01-02-call-{number}.json" for number in (1, 2, 3)
    ]
    for path in results.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["rows"][0]["p50_us"] == 35.0


def test_a_repeated_call_counts_once_and_the_later(travel: Any, tmp_path: Path) -> None:
    a_call(tmp_path / "b", 1)
    a_call(tmp_path / "a", 1, started="2030-01-02 05:00 UTC", ended="ended by SIGTERM")
    page = travel.take([tmp_path / "a", tmp_path / "b"], tmp_path / "results")
    assert "ended by SIGTERM" in page.read_text(encoding="utf-8")


def test_calls_of_two_libraries_are_no_sitting(travel: Any, tmp_path: Path) -> None:
    a_call(tmp_path / "a", 1)
    a_call(tmp_path / "a", 2, facts={"library_sha256": "2"})
    with pytest.raises(travel.NotReady, match="not of one GPU and one library"):
        travel.take([tmp_path / "a"], tmp_path / "results")
    with pytest.raises(travel.NotReady, match="no call-"):
        travel.take([tmp_path / "nothing"], tmp_path / "results")
    assert not (tmp_path / "results").exists()
