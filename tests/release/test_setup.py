# SPDX-License-Identifier: Apache-2.0
"""Setting up is one quiet line; where it fails, the log that it names has all that pip said.

A stand-in for Python makes an environment whose pip talks and does nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = "Collecting torch"
WHY = "ERROR: No matching distribution found for torch"
PYTHON = f"""#!/bin/sh
if [ "$2" = venv ]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
elif [ "$2" = pip ]; then
  for at in $(seq 200); do echo "{SAID} $at"; done
  case "$*" in *"$REFUSED"*) echo "{WHY}" >&2; exit 1;; esac
else
  exit 1  # csrc/build/toolkit.py finds no compiler
fi
"""
NOTHING = "no pip is asked for this"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What setting up reads, and the stand-in."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    stand_in = tmp_path / "python"
    stand_in.write_text(PYTHON, encoding="utf-8")
    stand_in.chmod(0o755)
    return tmp_path


def make(tree: Path, target: str, refused: str = NOTHING) -> subprocess.CompletedProcess[str]:
    words = ["make", f"env/{target}", "VENV=env", f"PYTHON={tree / 'python'}"]
    here = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environ = {**here, "REFUSED": refused}
    return subprocess.run(words, cwd=tree, env=environ, capture_output=True, text=True)


def log_of(tree: Path) -> str:
    return (tree / "env/setup.log").read_text(encoding="utf-8")


def test_setting_up_prints_one_line_and_is_done_once(tree: Path) -> None:
    done = make(tree, ".installed")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert log_of(tree).count(SAID) == 400, "both of pip's calls"
    again = make(tree, ".installed")
    assert SAID not in again.stdout
    assert log_of(tree).count(SAID) == 400


@pytest.mark.parametrize(
    ("target", "refused"),
    [(".installed", "numpy torch"), (".installed", "[test,train]"), (".dev", "[dev]")],
)
def test_what_cannot_be_installed_is_said_and_the_log_named(
    tree: Path, target: str, refused: str
) -> None:
    done = make(tree, target, refused)
    assert done.returncode == 2
    assert "env/setup.log" in done.stderr
    assert WHY in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) < 12
    assert f"{SAID} 1\n" in log_of(tree)
    assert not (tree / "env" / target).exists()
    assert make(tree, target).returncode == 0, "it is tried again"


def test_a_compiler_that_cannot_be_had_is_no_failure_and_its_log_is_named(tree: Path) -> None:
    done = make(tree, ".nvcc", "[nvcc]")
    assert done.returncode == 0
    assert "no CUDA kernel is built" in done.stdout
    assert "env/setup.log" in done.stderr
    assert SAID not in done.stdout
    assert not (tree / "env/.nvcc").exists()


def test_a_python_that_is_not_there_is_said(tree: Path) -> None:
    (tree / "python").unlink()
    done = make(tree, ".installed")
    assert done.returncode == 2
    assert "env/setup.log" in done.stderr
    assert not (tree / "env/.installed").exists()


@pytest.mark.parametrize("lost", [" $(LOGGED)", " || $(FAILED)"], ids=["loud", "silent"])
def test_control_a_set_up_that_speaks_or_hides_is_seen(tree: Path, lost: str) -> None:
    makefile = tree / "Makefile"
    text = makefile.read_text(encoding="utf-8")
    assert lost in text
    makefile.write_text(text.replace(lost, ""), encoding="utf-8")
    done = make(tree, ".installed", "numpy torch")
    named, quiet = "env/setup.log" in done.stderr, SAID not in done.stdout
    assert (named, quiet) == ((True, False) if "LOGGED" in lost else (False, True))
