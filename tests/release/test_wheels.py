# SPDX-License-Identifier: Apache-2.0
"""What ``make wheel`` releases: every wheel in the Python it is for, and the same bytes twice.

Slow: it compiles for every Python found here, whose build requirements come from pip.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import _wheel
import pytest
from _wheel import ROOT, run

import prune_engine as pe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the build is for Linux"),
]

PLAN = """
import hashlib, sys
import numpy as np
from prune_engine import host
assert "torch" not in sys.modules
plan = host.plan(np.arange(9001, dtype=np.float32) % 97, prune_ratio=0.5, seed=3, epoch=1)
order = plan.order(range(len(plan)))
print(hashlib.sha256(plan.weight_class.tobytes() + order.tobytes()).hexdigest())
"""


def release(tree: Path, into: Path, *options: str, **environ: str) -> list[str]:
    """Run .ci/wheels.py; return what it printed."""
    command = [sys.executable, tree / ".ci/wheels.py", "--dist", into, *options]
    return run(command, tree, SOURCE_DATE_EPOCH=_wheel.EPOCH, **environ).splitlines()


def copy(tmp_path: Path) -> Path:
    """Return a fresh tree, as the source archive has it."""
    archive = _wheel.build_sdist(tmp_path)
    return _wheel.unpack(archive, tmp_path / "unpacked")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("auditwheel", reason="a release needs the dev extra")
    dist = tmp_path_factory.mktemp("dist")
    release(copy(tmp_path_factory.mktemp("copy")), dist, PE_CUDA="0")
    return dist


def member(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as opened:
        return opened.read(name)


def pythons() -> dict[str, Path]:
    """Return the interpreters that wheels.py finds, by their tag."""
    module = runpy.run_path(str(ROOT / ".ci/wheels.py"), run_name="wheels")
    found: dict[str, Path] = {}
    for path in module["at_hand"]():
        tag, _ = module["probe"](path)
        found[tag.replace("cpython-", "cp")] = path
    return found


def test_one_wheel_for_every_python_one_for_each_and_the_sources(released: Path) -> None:
    (universal,) = released.glob("*.whl")
    assert "-py3-none-manylinux_2_" in universal.name
    assert len(list(released.glob("*.tar.gz"))) == 1
    tags = {wheel.name.split("-")[2] for wheel in released.glob("cpython/*.whl")}
    assert tags == set(pythons())
    wheels = [universal, *released.glob("cpython/*.whl")]
    assert all("-manylinux_2_" in wheel.name for wheel in wheels)
    limit = runpy.run_path(str(ROOT / ".ci/wheels.py"), run_name="wheels")["MAX_BYTES"]
    assert all(wheel.stat().st_size < limit for wheel in wheels)


def test_the_operators_are_the_same_file_in_every_wheel_and_libtorch_in_none(
    released: Path,
) -> None:
    wheels = list(released.rglob("*.whl"))
    assert len({member(wheel, "prune_engine/_ops.so") for wheel in wheels}) == 1
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            libraries = [Path(name).name for name in opened.namelist() if ".so" in name]
        assert all(name.startswith(("_ops", "_host")) for name in libraries)
        host = [name for name in libraries if name.startswith("_host")]
        assert len(host) == (0 if "-py3-none-" in wheel.name else 1)


@pytest.mark.parametrize("tag", pythons())
def test_the_wheel_of_a_python_works_there_without_torch(
    released: Path, tmp_path: Path, tag: str
) -> None:
    (wheel,) = released.glob(f"cpython/*-{tag}-*.whl")
    run([pythons()[tag], "-m", "venv", "--without-pip", tmp_path / "env"], tmp_path)
    python = tmp_path / "env/bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    constraints = ["--constraint", ROOT / "constraints.txt"]
    run([*pip, "install", "--quiet", *constraints, "numpy"], tmp_path)
    _wheel.install(wheel, python)
    here = run([sys.executable, "-c", PLAN], tmp_path, PYTHONPATH=str(ROOT))
    assert run([python, "-W", "error", "-c", PLAN], tmp_path) == here


def test_pip_finds_its_requirements_met_and_the_readmes_loop_works(
    released: Path, tmp_path: Path
) -> None:
    (wheel,) = released.glob("*.whl")
    python = _wheel.environment(tmp_path / "env", _wheel.requirements(["torch", "numpy"]))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--no-index", "--quiet", wheel], tmp_path)  # with its dependencies
    _wheel.check_readmes_loop(python, tmp_path)
    without = _wheel.environment(tmp_path / "without", ["numpy"])
    command = [*pip[:-1], without, "install", "--no-index", "--quiet", wheel]
    # A machine may have told pip of a folder with a torch in it.
    environ = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, env=environ)
    assert done.returncode == 1, "the control: torch is missing"
    assert "torch>=2.10" in done.stderr


def test_the_oldest_torch_is_the_one_that_the_metadata_names(
    released: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch_abi_audit", reason="needs the dev extra")
    library = tmp_path / "_ops.so"
    (wheel,) = released.glob("*.whl")
    library.write_bytes(member(wheel, "prune_engine/_ops.so"))
    tool = Path(sys.executable).with_name("torch-abi-audit")
    found = run([tool, "--json", "--check", "torch", library], tmp_path)
    assert '"min_torch_version": "2.10.0"' in found
    assert '"unknown_shim_symbols": []' in found
    assert (
        "torch>=2.10" in member(wheel, f"prune_engine-{pe.__version__}.dist-info/METADATA").decode()
    )


def test_with_cuda_two_folders_give_the_same_bytes_and_any_torch_loads_them(
    tmp_path: Path,
) -> None:
    pytest.importorskip("auditwheel", reason="a release needs the dev extra")
    environ = {"PE_CUDA": "1", "PE_CUDA_ARCHS": "9.0"}
    wheels: list[Path] = []
    for name in ("one", "another name"):
        (tmp_path / name).mkdir()
        tree = copy(tmp_path / name)
        done = runpy.run_path(str(tree / "setup.py"), run_name="setup")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tree)
            found = done["TOOLKIT"]["find_toolkit"]()
        if isinstance(found, str):
            pytest.skip(f"no nvcc here: {found}")
        release(tree, tmp_path / name / "dist", "--python", **environ)
        wheels += (tmp_path / name / "dist").glob("*.whl")
    one, another = (hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
    assert one == another
    assert json.loads(member(wheels[0], "prune_engine/_build_info.json"))["cuda_archs"] == ["90"]
    needed = _wheel.requirements(["torch", "numpy"], without=["triton"])
    python = _wheel.environment(tmp_path / "env", needed)
    _wheel.install(wheels[0], python)
    printed = run([python, "-m", "prune_engine", "info", "--check"], tmp_path)
    assert "for 90; no NumPy module" in printed
    assert "  ok    cpu on cpu: plan\n" in printed


def test_an_interpreter_that_cannot_build_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / ".ci/wheels.py", "--dist", tmp_path, "--python", "no-python"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1
    assert "no-python: no working CPython with its headers" in done.stderr
    assert list(tmp_path.rglob("*.whl")) == [], "said before anything is built"
