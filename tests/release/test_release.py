# SPDX-License-Identifier: Apache-2.0
"""The release workflow, the image and the cluster guide: linted, and run as far as it goes here."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _wheel
import pytest
from _wheel import ROOT, run

pytestmark = pytest.mark.full("of a release, with the tools of the dev extra")

DOCKERFILE = ROOT / ".ci/Dockerfile"
WORKFLOWS = ROOT / ".github/workflows"
WORKFLOW = WORKFLOWS / "release.yml"


def workflow(path: Path = WORKFLOW) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, of the dev extra")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def instructions(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's (word, rest) pairs, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def options(host: str) -> dict[str, str]:
    """Return the variables that cibuildwheel gets in one row of the matrix."""
    job = workflow()["jobs"]["wheels"]
    (step,) = [step for step in job["steps"] if "CIBW_BUILD" in step.get("env", {})]
    (row,) = [row for row in job["strategy"]["matrix"]["include"] if row["host"] == host]
    return {
        name: re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: row[found[1]], text)
        for name, text in step["env"].items()
    }


def builds(given: dict[str, str]) -> dict[str, str]:
    """Let cibuildwheel read its options: the name of each wheel's build -> its commands."""
    read = pytest.importorskip("cibuildwheel.options", reason="a tool of the dev extra")
    selected = pytest.importorskip("cibuildwheel.platforms.linux").get_python_configurations
    arguments = read.CommandLineArguments.defaults()
    found = read.Options("linux", arguments, given)
    rows = selected(found.globals.build_selector, found.globals.architectures)
    every = {row.identifier: found.build_options(row.identifier) for row in rows}
    return {name: f"{one.build_frontend} {one.repair_command}" for name, one in every.items()}


@pytest.mark.parametrize(("host", "minors"), [("0", ["11"]), ("1", ["10", "11", "12", "13", "14"])])
def test_cibuildwheel_reads_its_options_and_builds_what_is_released(
    host: str, minors: list[str]
) -> None:
    found = builds(options(host))
    assert list(found) == [f"cp3{minor}-manylinux_{os.uname().machine}" for minor in minors]
    assert all("--no-build-isolation" in text for text in found.values())
    assert all("--exclude libtorch.so" in text for text in found.values())


def test_control_cibuildwheel_refuses_an_option_that_is_wrong() -> None:
    refused = pytest.importorskip("cibuildwheel.errors").ConfigurationError
    with pytest.raises(refused, match="npm"):
        builds({**options("0"), "CIBW_BUILD_FRONTEND": "npm"})


def lint(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = Path(sys.executable).with_name(tool)
    if not found.exists():
        pytest.skip(f"{tool} is not installed (dev extra)")
    return subprocess.run([str(found), *map(str, arguments)], capture_output=True, text=True)


SCHEMA = ("--builtin-schema", "vendor.github-workflows")
OFFLINE = ("--offline", "--quiet")


def test_the_workflows_fit_the_schema_and_the_image_its_linter() -> None:
    done = lint("check-jsonschema", *SCHEMA, *WORKFLOWS.glob("*.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = lint("hadolint", DOCKERFILE)
    assert done.returncode == 0, done.stdout + done.stderr
    done = lint("zizmor", *OFFLINE, WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_control_the_linters_see_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "release.yml"
    broken.write_text(WORKFLOW.read_text(encoding="utf-8").replace("runs-on:", "runs:"))
    assert lint("check-jsonschema", *SCHEMA, broken).returncode == 1
    text = DOCKERFILE.read_text(encoding="utf-8")
    (tmp_path / "Dockerfile").write_text(text.replace("WORKDIR /src", "WORKDIR src"))
    assert lint("hadolint", tmp_path / "Dockerfile").returncode == 1
    text = WORKFLOW.read_text(encoding="utf-8")
    broken.write_text(re.sub(r"checkout@\w+  #", "checkout@v7  #", text))
    done = lint("zizmor", *OFFLINE, broken)
    assert done.returncode not in (0, 1, 2), "its own failures"
    assert "unpinned-uses" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the build is for Linux")
def test_the_steps_of_the_image_run_here_without_docker(tmp_path: Path) -> None:
    archive = _wheel.build_sdist(tmp_path)
    tree = _wheel.unpack(archive, tmp_path / "unpacked")
    needed = ["setuptools", "wheel", "pybind11", "ninja", "numpy", "torch", "pip"]
    python = _wheel.environment(tmp_path / "venv", _wheel.requirements(needed, ["triton"]))
    pip = python.with_name("pip")
    pip.write_text(f'#!/bin/sh\nexec "{python}" -m pip "$@"\n')
    pip.chmod(0o755)
    ran: list[str] = []
    for word, line in instructions(DOCKERFILE.read_text(encoding="utf-8")):
        # What installs the system and the big packages is the image's; the rest must run as it is.
        if word != "RUN" or "apt-get" in line or "-m venv" in line or "constraints" in line:
            continue
        there = line.replace("/venv", str(tmp_path / "venv"))
        if shutil.which("nvcc") is None:
            there = there.replace("PE_CUDA=1", "PE_CUDA=0")
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        printed = run(["sh", "-c", there], tree, PATH=path, PE_CUDA_ARCHS="9.0")
        ran.append(line)
    assert len(ran) == 2
    assert "ok    cpu on cpu: plan" in printed


@pytest.mark.slow
def test_the_commands_of_the_workflow_run_here(tmp_path: Path) -> None:
    tree = _wheel.unpack(_wheel.build_sdist(tmp_path), tmp_path / "unpacked")
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert ".ci/run" in commands  # it is what runs this test
    version = re.search(r'^version = "(.+)"', (tree / "pyproject.toml").read_text(), re.M)
    assert version
    (tag,) = [line for line in commands if line.startswith("test ")]
    run(["bash", "-c", tag], tree, TAG=f"v{version[1]}")
    wrong = {**os.environ, "TAG": "v9.9.9"}
    assert subprocess.run(["bash", "-c", tag], cwd=tree, env=wrong).returncode == 1
    (sources,) = [line for line in commands if "setup.py" in line]
    run(["bash", "-c", sources.replace("python ", f"{sys.executable} ", 1)], tree)
    assert len(list(tree.glob("dist/*.tar.gz"))) == 1
    (time,) = [line for line in commands if "SOURCE_DATE_EPOCH" in line]
    written = tmp_path / "environment"
    run(["bash", "-c", time], ROOT, GITHUB_ENV=str(written))
    assert re.fullmatch(r"SOURCE_DATE_EPOCH=\d*\n", written.read_text())


@pytest.fixture
def extremes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return .ci/extremes.py as a module; its pip finds nothing."""
    pytest.importorskip("tomllib", reason="the tools need Python 3.11")
    monkeypatch.syspath_prepend(ROOT / ".ci")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return importlib.import_module("extremes")


def test_an_end_that_cannot_be_set_up_is_said_in_one_line(
    extremes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    low, high = extremes.ends()
    assert (low.packages, high.packages) == (extremes.OLDEST, extremes.NEWEST)
    packages = tmp_path / "packages.txt"
    packages.write_text("torch==0.0.1\n")
    reason = extremes.set_up(extremes.End(Path(sys.executable), "here", packages), tmp_path)
    assert "torch==0.0.1" in reason
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extremes, "ROOM_BYTES", 2**60)
        assert extremes.main(["no.whl"]) == 0
    lines = capfd.readouterr().out.splitlines()[-2:]
    assert all(re.fullmatch(r"extremes: .+ left out: less than .+ GB are free", x) for x in lines)


def test_control_a_wheel_that_fails_at_an_end_fails(
    extremes: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    one = extremes.End(Path(sys.executable), "here", extremes.OLDEST)
    monkeypatch.setattr(extremes, "ends", lambda: [one])
    monkeypatch.setattr(extremes, "set_up", lambda *_: Path(sys.executable))
    assert extremes.main(["no-such.whl"]) == 1
    assert "no-such.whl" in capfd.readouterr().out, "what went wrong is shown"


SLEEPS = "import sys, time; print('..' + sys.argv[1], flush=True); time.sleep(60)"


@pytest.mark.parametrize(("letter", "status"), [(".", 0), ("F", 1)])
def test_tests_that_take_too_long_are_stopped_and_judged_by_what_was_seen(
    extremes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], letter: str, status: int
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-c", SLEEPS, letter]
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    begun = time.monotonic()
    while not log.read_bytes():
        assert time.monotonic() < begun + 30
        time.sleep(0.01)
    end = extremes.End(Path(sys.executable), "here", extremes.OLDEST)
    assert extremes.Run(end, process, log, begun).result(begun) == status
    assert process.poll() is not None
    assert ", before the end\n" in capfd.readouterr().out
    assert time.monotonic() < begun + 30


def test_a_command_that_takes_too_long_ends_with_its_children(
    extremes: Any, tmp_path: Path
) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(subprocess.TimeoutExpired):
        extremes.ended([sys.executable, "-c", parent], 1.0)
    assert extremes.ended([sys.executable, "-c", "import sys; sys.exit('why')"], 60)[1] == "why\n"
    time.sleep(3)
    assert list(tmp_path.iterdir()) == []
