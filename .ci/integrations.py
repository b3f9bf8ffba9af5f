# SPDX-License-Identifier: Apache-2.0
"""Test the integrations against the frameworks' own packages: ``make test-integrations``.

The releases that ``requirements-integrations.txt`` pins go into an environment in ``build/``, once;
the library is the one of this tree. A package that cannot be installed is said in one line, and
the files that import it are left out; of what was installed, a missing import is a failure. What
follows ``--`` goes to pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import extremes
import wheels

WANTED = wheels.ROOT / ".ci" / "requirements-integrations.txt"
TESTS = wheels.ROOT / "tests" / "integrations"
HOME = wheels.ROOT / "build" / "integrations"
NEEDED = ("torch", "numpy", "pytest", "pytest-xdist", "hypothesis", "scikit-learn")
SETUP_SECONDS = 900
# A distribution whose module has another name.
MODULES = {
    "mlflow-skinny": "mlflow",
    "pytorch-ignite": "ignite",
    "pytorch-optimizer": "pytorch_optimizer",
}


def requirements() -> dict[str, str]:
    """Return name -> requirement."""
    lines = WANTED.read_text(encoding="utf-8").splitlines()
    given = [line for line in lines if line and not line.startswith("#")]
    return {line.partition("==")[0]: line for line in given}


def install(python: Path, wanted: Sequence[str]) -> str:
    """Install some requirements beside torch; return why that failed, or nothing."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    torch = requirements()["torch"]  # named each time, so that no other one takes its place
    words = [*pip, "install", "--quiet", "--only-binary", ":all:", torch, *wanted]
    try:
        status, errors = extremes.ended([*map(str, words)], SETUP_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not installed within {SETUP_SECONDS} s"
    if not status:
        return ""
    lines = errors.splitlines()
    return ([line for line in lines if "error" in line.lower()] or lines or ["pip failed"])[-1]


def set_up() -> tuple[Path, list[str]]:
    """Make the environment; return its python and the packages that could not be installed."""
    python, done = HOME / "bin" / "python", HOME / "installed"
    text = WANTED.read_text(encoding="utf-8")
    if done.is_file() and done.read_text(encoding="utf-8").partition("\0")[0] == text:
        return python, done.read_text(encoding="utf-8").partition("\0")[2].split()
    print("test-integrations: setting up its environment (once)", flush=True)
    wheels.run([sys.executable, "-m", "venv", "--clear", "--without-pip", HOME])
    wanted, missing = requirements(), []
    if install(python, list(wanted.values())):
        if reason := install(python, [wanted[name] for name in NEEDED]):
            sys.exit(f"test-integrations: nothing can be tested: {reason}")
        for name in wanted.keys() - set(NEEDED):
            if reason := install(python, [wanted[name]]):
                print(f"test-integrations: {wanted[name]} left out, not tested: {reason}")
                missing.append(name)
    done.write_text(f"{text}\0{' '.join(missing)}", encoding="utf-8")
    return python, missing


def lacking(missing: Sequence[str]) -> list[Path]:
    """Return the test files that import, themselves or by a helper, what is missing."""
    modules = [MODULES.get(name, name) for name in missing]
    if not modules:
        return []
    importing = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(map(re.escape, modules))})\b", re.M)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in TESTS.glob("*.py")}
    without = {name for name, text in texts.items() if importing.search(text)}
    helpers = rf"^from ({'|'.join(sorted(without)) or '-'}) import"
    without |= {name for name, text in texts.items() if re.search(helpers, text, re.M)}
    # The page is about all of them.
    return [TESTS / f"{name}.py" for name in {*without, "test_page"} if name.startswith("test_")]


def main(argv: Sequence[str] | None = None) -> int:
    """Return pytest's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="test the integrations")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    end = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:end])
    python, missing = set_up()
    command = [python, "-m", "pytest", "-q", "--numprocesses", arguments.processes]
    command += ["--dist", "loadfile", "--no-loadscope-reorder"]
    command += [f"--ignore={path}" for path in lacking(missing)]
    environ = {**os.environ, "PE_INTEGRATIONS": "1", "PYTHONPATH": str(wheels.ROOT)}
    environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    words = [*map(str, command), str(TESTS), *words[end + 1 :]]
    return subprocess.run(words, cwd=wheels.ROOT, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
