# SPDX-License-Identifier: Apache-2.0
"""The installed distribution: its metadata, its two libraries, and how torch is found."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import prune_engine as pe

ROOT = Path(__file__).resolve().parents[2]
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files with readelf")
FORBIDDEN = re.compile(r"libpython|libc10|libtorch_|libcuda")


def package_dir() -> Path:
    """Find the package as Python does, without importing it."""
    spec = importlib.util.find_spec("prune_engine")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def run_python(code: str, cwd: Path, **environ: str) -> str:
    """Run code in a fresh interpreter outside the repository and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def readelf(option: str, path: Path) -> str:
    command = ["readelf", option, "--wide", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def needed(path: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("--dynamic", path))


def python_symbols(path: Path) -> list[str]:
    return re.findall(r"\s(_?Py[A-Z]?\w*)", readelf("--dyn-syms", path))


def host_library() -> Path:
    (path,) = package_dir().glob(f"_host.{sys.implementation.cache_tag}*.so")
    return path


def test_metadata_says_what_is_needed_and_under_which_licence() -> None:
    about = metadata.metadata("prune_engine")
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.10"
    required = [line for line in metadata.requires("prune_engine") or () if "extra ==" not in line]
    assert sorted(required) == ["jinja2", "numpy", "torch>=2.10"]
    extras = {"train", "test", "dev", "nvcc", "text", "parquet", "live", "optimizers"}
    extras |= {name for name, package in pe.integrations.EXTRAS.items() if package} | {"trl"}
    assert set(about.get_all("Provides-Extra") or ()) == extras


def test_the_command_is_installed() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="prune-engine")
    assert script.value == "prune_engine.cli:main"
    assert callable(script.load())


def test_the_version_is_written_once(tmp_path: Path) -> None:
    printed = run_python("import prune_engine as pe; print(pe.__version__)", tmp_path)
    assert printed.strip() == metadata.version("prune_engine")


def test_type_information_is_shipped() -> None:
    assert (package_dir() / "py.typed").is_file()


def test_the_package_imports_outside_the_repository_and_registers_its_operators(
    tmp_path: Path,
) -> None:
    code = (
        "import prune_engine as pe, torch; pe.backends.load('cpu');"
        "print(torch.ops.prune_engine.plan.default._schema)"
    )
    assert run_python(code, tmp_path).startswith("prune_engine::plan(Tensor records")


@ON_LINUX
def test_the_operators_need_libtorch_alone_and_no_python() -> None:
    library = package_dir() / "_ops.so"
    names = needed(library)
    assert "libtorch.so" in names
    assert [name for name in names if FORBIDDEN.search(name)] == []
    assert python_symbols(library) == []


@ON_LINUX
def test_the_host_module_knows_nothing_of_torch() -> None:
    names = needed(host_library())
    assert [name for name in names if FORBIDDEN.search(name) or "torch" in name] == []


@ON_LINUX
def test_python_symbols_and_libraries_would_be_seen() -> None:
    assert "PyInit__host" in python_symbols(host_library())
    assert FORBIDDEN.search("libtorch_cpu.so")
    assert FORBIDDEN.search("libc10.so")


@ON_LINUX
def test_the_libraries_name_no_folder_of_the_build_machine() -> None:
    for library in (package_dir() / "_ops.so", host_library()):
        content = library.read_bytes()
        assert str(ROOT).encode() not in content
        assert sys.prefix.encode() not in content


@pytest.fixture
def setuptools() -> None:
    """Leave out what runs setup.py where there is no setuptools that can."""
    pytest.importorskip("setuptools", "77", reason="setup.py needs setuptools 77")


FIND_TORCH = f"""
import json, runpy, sys
module = runpy.run_path({str(ROOT / "setup.py")!r}, run_name="setup")
found = module["torch_include"]()
print(json.dumps([str(found), "torch" in sys.modules]))
"""


@pytest.mark.usefixtures("setuptools")
def test_the_headers_of_torch_are_found_without_importing_it(tmp_path: Path) -> None:
    found, imported = json.loads(run_python(FIND_TORCH, tmp_path, PE_TORCH_INCLUDE=""))
    assert (Path(found) / "torch/csrc/stable/library.h").is_file()
    assert not imported


@pytest.mark.usefixtures("setuptools")
def test_a_named_folder_of_headers_comes_first_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    header = tmp_path / "torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    found, _ = json.loads(run_python(FIND_TORCH, tmp_path, PE_TORCH_INCLUDE=str(tmp_path)))
    assert found == str(tmp_path)
    with pytest.raises(AssertionError, match="PE_TORCH_INCLUDE must be a folder"):
        run_python(FIND_TORCH, tmp_path, PE_TORCH_INCLUDE=str(header.parent))


@pytest.mark.usefixtures("setuptools")
def test_without_torch_its_headers_are_asked_for(tmp_path: Path) -> None:
    code = f"""
import importlib.util, runpy, setuptools, sysconfig
setuptools.setup = lambda **words: print(words["setup_requires"])
importlib.util.find_spec = lambda name: None  # as an isolated build hides the user's packages
sysconfig.get_path = lambda name: "nowhere"
runpy.run_path({str(ROOT / "setup.py")!r}, run_name="__main__")
"""
    printed = run_python(code, tmp_path, PE_TORCH_INCLUDE="", VIRTUAL_ENV="")
    assert ast.literal_eval(printed) == ["torch>=2.10"]
