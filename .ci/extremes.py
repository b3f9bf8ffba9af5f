# SPDX-License-Identifier: Apache-2.0
"""Test the wheel for every Python at both ends: ``python .ci/extremes.py`` (``make extremes``).

The oldest supported torch goes with the oldest Python found here, the newest tried with the newest
Python; ``requirements-oldest.txt`` and ``requirements-newest.txt`` beside this file say which torch
and what goes with it. Each end gets an environment of its own, for the time of the test: torch from
pip is gigabytes. An end that cannot be set up (no such Python, no network, no room), or whose tests
are not through in time, is said in one line and is no failure; a test that fails is. What follows
``--`` goes to suite.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import wheels

OLDEST = wheels.ROOT / ".ci" / "requirements-oldest.txt"
NEWEST = OLDEST.with_name("requirements-newest.txt")
# What torch itself asks for in a version of its own.
OF_TORCH = ("torch", "triton", "setuptools")
SETUP_SECONDS = 300  # of one end
LIMIT_SECONDS = 1000  # of all
ROOM_BYTES = 12_000_000_000  # a torch with its CUDA libraries, unpacked and on the way


@dataclass(frozen=True)
class End:
    """One combination.

    Args:
        python: the interpreter.
        version: its version, such as "3.10".
        packages: a file of pip requirements, with a torch.
    """

    python: Path
    version: str
    packages: Path

    @property
    def torch(self) -> str:
        """The version of torch."""
        (line,) = re.findall(r"^torch==(.+)$", self.packages.read_text(encoding="utf-8"), re.M)
        return line

    def __str__(self) -> str:
        """Name it."""
        return f"Python {self.version} with torch {self.torch}"


def ends() -> list[End]:
    """Return both ends; with one Python here, that one has both torches."""
    found = [(probed[1], path) for path in wheels.at_hand() if (probed := wheels.probe(path))]
    found.sort(key=lambda pair: int(pair[0].partition(".")[2]))
    (low, oldest), (high, newest) = found[0], found[-1]
    if low == high:
        print(f"extremes: Python {low} is the only one here", flush=True)
    return [End(oldest, low, OLDEST), End(newest, high, NEWEST)]


def constraints(into: Path) -> Path:
    """Write constraints.txt without what belongs to a torch."""
    lines = (wheels.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("==")[0] not in OF_TORCH]
    path = into / "constraints.txt"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def ended(words: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a command; return its exit code and its errors. Too long: it ends, with its children."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, start_new_session=True, **streams) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, errors


def set_up(end: End, folder: Path, seconds: float = SETUP_SECONDS) -> Path | str:
    """Install a torch and what the tests need; return the python, or why there is none."""
    limit = min(seconds, SETUP_SECONDS)
    ends_at = time.monotonic() + limit
    if shutil.disk_usage(folder).free < ROOM_BYTES:
        return f"less than {ROOM_BYTES / 1e9:.0f} GB are free"
    home = folder / end.torch
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    options = ["--no-cache-dir", "--only-binary", ":all:", "--constraint", constraints(folder)]
    for command in (
        [end.python, "-m", "venv", "--without-pip", home],
        [*pip, "install", "--quiet", *options, "--requirement", end.packages],
    ):
        words = list(map(str, command))
        try:
            status, errors = ended(words, max(ends_at - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            return f"not installed within {limit:.0f} s"
        if status:
            lines = errors.splitlines()
            named = [line for line in lines if "error" in line.lower()]
            return (named or lines or ["pip failed"])[-1]
    return python


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a suite, which then removes its folder, and what it has started.

    Not by SIGINT: a job in the background may have been told to ignore that.
    """
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failing(lines: Sequence[str]) -> bool:
    """Return whether pytest's rows of letters so far have a failure."""
    rows = [line for line in lines if re.fullmatch(r"[.sxXFE]+( +\[ *\d+%\])?", line)]
    return any(set(line) & set("FE") for line in rows)


@dataclass(frozen=True)
class Run:
    """The tests of one end, under way."""

    end: End
    process: subprocess.Popen[bytes]
    log: Path
    begun: float

    def result(self, until: float) -> int:
        """Wait for it, print what came of it, return 1 where a test fails."""
        try:
            status = self.process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            stop(self.process)
            status = None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = failing(lines) if status is None else status != 0
        took = f"{time.monotonic() - self.begun:.0f} s"
        if status is None:
            took = f"stopped after {took}, before the end"
        print(f"extremes: {self.end}: {took}", flush=True)
        if failed or status == 0:
            print("\n".join(lines if failed else lines[-1:]), flush=True)
        return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Set up both ends, run their tests side by side; return 1 where one fails."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    given = words[end + 1 :]
    parser = argparse.ArgumentParser(description="test a wheel with the oldest and newest torch")
    parser.add_argument("wheel", type=Path)
    wheel: Path = parser.parse_args(words[:end]).wheel
    build = wheels.ROOT / "build"
    build.mkdir(exist_ok=True)
    until = time.monotonic() + LIMIT_SECONDS
    with tempfile.TemporaryDirectory(dir=build, prefix="extremes-") as name:
        folder = Path(name)
        running: list[Run] = []
        try:
            for one in ends():
                python = set_up(one, folder, until - time.monotonic())
                if isinstance(python, str):
                    print(f"extremes: {one} left out: {python}", flush=True)
                    continue
                log = folder / f"{one.torch}.log"
                suite = [sys.executable, wheels.ROOT / ".ci/suite.py", wheel, "--python", python]
                # One thread each: they share the cores with each other.
                environ = {**os.environ, "OMP_NUM_THREADS": "1"}
                with log.open("wb") as out:
                    process = subprocess.Popen(
                        [*map(str, suite), *given],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=environ,
                        start_new_session=True,
                    )
                running.append(Run(one, process, log, time.monotonic()))
            return max([run.result(until) for run in running], default=0)
        finally:
            for run in running:
                if run.process.poll() is None:
                    stop(run.process)


if __name__ == "__main__":
    sys.exit(main())
