# SPDX-License-Identifier: Apache-2.0
"""The artefact, not the tree: source archive -> wheel -> clean environment -> a user's first hour.

The wheel here is the one for every Python, without CUDA; ``test_wheels.py`` (slow) builds the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import _wheel
import pytest
from _wheel import ROOT, run

pytestmark = [
    pytest.mark.full("builds a wheel"),
    pytest.mark.skipif(sys.platform != "linux", reason="the build is for Linux"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _wheel.build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = _wheel.unpack(archive, tmp_path_factory.mktemp("unpacked"))
    return _wheel.build_wheel(tree, tmp_path_factory.mktemp("wheel"), PE_CUDA="0", PE_HOST="0")


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the python of an environment with the wheel and what its metadata asks for."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(opened.read(name).decode())
    asked = about.get_all("Requires-Dist", [])
    plain = {re.split(r"[<>=]", text)[0] for text in asked if "extra ==" not in text}
    assert plain == {"jinja2", "numpy", "torch"}
    needed = _wheel.requirements(plain, without=["triton"])
    python = _wheel.environment(tmp_path_factory.mktemp("bare") / "env", needed)
    _wheel.install(wheel, python)
    return python


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_archive_holds_every_tracked_file(archive: Path, tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    folder = _wheel.unpack(archive, tmp_path)
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert tracked - held == set()
    made = {"PKG-INFO", "setup.cfg"}
    extra = {name for name in held - tracked - made if ".egg-info" not in name}
    untracked = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert extra <= set(untracked.stdout.splitlines()), "nothing built, nothing ignored"


def test_it_is_for_every_python_and_small(wheel: Path) -> None:
    assert re.fullmatch(r"prune_engine-[^-]+-py3-none-linux_\w+\.whl", wheel.name)
    assert wheel.stat().st_size < 2_000_000
    libraries = [name for name in members(wheel) if ".so" in name]
    assert libraries == ["prune_engine/_ops.so"], "no library belongs to one Python"


def test_it_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    names = {name for name in members(wheel) if ".dist-info/" not in name}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "prune_engine").rglob("*.py")}
    templates = (ROOT / "prune_engine").glob("recipes/report/templates/*")
    package |= {path.relative_to(ROOT).as_posix() for path in templates}
    made = {"prune_engine/_ops.so", "prune_engine/_build_info.json"}
    typed = {"prune_engine/py.typed", "prune_engine/_host.pyi"}
    assert names == package | made | typed


def test_licences_and_the_bill_of_materials_are_inside(wheel: Path) -> None:
    held = {name.partition(".dist-info/")[2]: data for name, data in members(wheel).items()}
    assert held["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    notices = held["licenses/csrc/THIRD_PARTY.txt"].decode()
    for owner in ("PyTorch", "pybind11", "Wenzel Jakob", "NVIDIA"):
        assert owner in notices
    bill = json.loads(held["sboms/prune_engine.cdx.json"])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["name"]: part["version"] for part in bill["components"]}
    assert set(parts) == {"pytorch-stable-headers"}, "this wheel has neither pybind11 nor CUDA"
    assert re.fullmatch(r"2\.\d+\.\d+", parts["pytorch-stable-headers"])
    about = Parser().parsestr(held["METADATA"].decode())
    assert about["License-Expression"] == "Apache-2.0"
    assert about.get_all("License-File") == ["LICENSE", "csrc/THIRD_PARTY.txt"]


def symbols(library: Path, kind: str) -> set[str]:
    command = ["nm", "--dynamic", f"--{kind}-only", "--format=posix", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split()[0].partition("@")[0] for line in done.stdout.splitlines()}


def test_the_library_is_stripped_and_shows_nothing(bare: Path) -> None:
    (library,) = bare.parent.parent.rglob("prune_engine/_ops.so")
    assert symbols(library, "defined") == set()
    read = ["readelf", "--sections", "--wide", str(library)]
    sections = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert ".dynsym" in sections
    assert re.findall(r"\.(?:symtab|debug\w*)", sections) == []


def unstable(names: set[str]) -> set[str]:
    """Return the symbols of torch's C++ API: only the C shim is stable."""
    return {name for name in names if re.match(r"_ZNK?[KVr]*(?:2at|3c10|5torch|6caffe2)", name)}


def test_it_uses_the_stable_abi_of_torch_alone(bare: Path) -> None:
    (library,) = bare.parent.parent.rglob("prune_engine/_ops.so")
    used = symbols(library, "undefined")
    assert unstable(used) == set()
    assert len([name for name in used if name.startswith(("aoti_torch_", "torch_"))]) > 30


def test_control_the_unstable_abi_would_be_seen() -> None:
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    assert len(unstable(symbols(library, "undefined"))) > 100


def test_the_readmes_loop_trains_and_prunes_in_a_bare_environment(
    bare: Path, tmp_path: Path
) -> None:
    _wheel.check_readmes_loop(bare, tmp_path)
    missing = "import importlib.util as u; print([u.find_spec(n) for n in ('triton', 'sklearn')])"
    assert run([bare, "-c", missing], tmp_path).strip() == "[None, None]"


def test_its_self_test_passes_there(bare: Path, tmp_path: Path) -> None:
    command = bare.parent / "prune-engine"
    facts = json.loads(run([command, "info", "--check", "--json"], tmp_path))
    assert facts["build"]["cuda"] is None
    assert facts["git_commit"] is None
    assert {check["name"] for check in facts["check"]} >= {"cpu on cpu: plan"}
    assert all(check["ok"] for check in facts["check"])
    assert "prune_engine.host, is not in this wheel" in facts["mismatches"][-1]


def test_what_this_wheel_leaves_out_is_said_when_it_is_used(bare: Path, tmp_path: Path) -> None:
    code = """
import prune_engine as pe
try:
    pe.host
except ImportError as error:
    print(error)
"""
    printed = run([bare, "-c", code], tmp_path)
    assert "not in this wheel" in printed
    assert "install the wheel of your Python" in printed


def test_without_the_extras_training_names_them(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(bare.parent / "prune-engine"), "train", "--limit", "10", "--no-pictures"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "prune_engine[train]" in done.stderr


@pytest.mark.slow
def test_with_the_extras_training_works(wheel: Path, tmp_path: Path) -> None:
    needed = _wheel.requirements(["torch", "numpy", "scikit-learn", "matplotlib"])
    python = _wheel.environment(tmp_path / "env", needed)
    _wheel.install(wheel, python)
    arguments = ["train", "--limit", "200", "--epochs", "2", "--batch-size", "16", "--seed", "0"]
    arguments += ["--pictures"]
    run([python.parent / "prune-engine", *arguments, "--out", tmp_path / "run"], tmp_path)
    for name in ("pruned.png", "report.html"):
        assert (tmp_path / "run" / name).is_file()


@pytest.mark.slow
def test_another_folder_gives_the_same_bytes(archive: Path, wheel: Path, tmp_path: Path) -> None:
    tree = _wheel.unpack(archive, tmp_path / "a folder of another name")
    again = _wheel.build_wheel(tree, tmp_path / "out", PE_CUDA="0", PE_HOST="0")
    assert again.name == wheel.name
    assert (
        hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()
    )
    # The control: one more character in the sources is seen.
    with (tree / "prune_engine" / "types.py").open("a", encoding="utf-8") as file:
        file.write("#\n")
    other = _wheel.build_wheel(tree, tmp_path / "other", PE_CUDA="0", PE_HOST="0")
    assert other.read_bytes() != wheel.read_bytes()


IMPORT = """
import time, torch
begin = time.perf_counter()
import prune_engine as pe
pe.PruneEngine, pe.InfoBatch, pe.ops, pe.losses
pe.backends.load("cpu")
print(time.perf_counter() - begin)
"""


@pytest.mark.slow
def test_importing_costs_little_over_torch(bare: Path, tmp_path: Path) -> None:
    run([bare, "-c", IMPORT], tmp_path)  # writes the byte code
    times = [float(run([bare, "-c", IMPORT], tmp_path)) for _ in range(5)]
    assert min(times) < 0.150, f"seconds over torch's own import: {times}"
