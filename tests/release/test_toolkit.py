# SPDX-License-Identifier: Apache-2.0
"""The search for a CUDA compiler: what is found in each layout of a toolkit, and what is said."""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup_module() -> dict[str, Any]:
    """Run setup.py without building anything."""
    pytest.importorskip("setuptools", "77", reason="setup.py needs setuptools 77")
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


@pytest.fixture(scope="module")
def toolkit(setup_module: dict[str, Any]) -> dict[str, Any]:
    """Return what csrc/build/toolkit.py defines."""
    return setup_module["TOOLKIT"]


def fake_nvcc(folder: Path, *lines: str) -> Path:
    """Write an nvcc that answers what a build asks of one: its plan, and the chips it knows."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    plan = "\n".join(f"#$ {line}" for line in lines)
    nvcc.write_text(
        f"""#!/bin/sh
case $1 in
-dryrun) cat >&2 <<'PLAN'
{plan}
PLAN
;;
--list-gpu-arch) echo compute_80; echo compute_90;;
esac
"""
    )
    nvcc.chmod(0o755)
    return nvcc


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def fake_cxx(folder: Path, headers: bool) -> Path:
    """Write a C++ compiler that finds the CUDA headers by itself, or does not."""
    cxx = folder / "cxx"
    cxx.write_text(f"#!/bin/sh\necho read\nexit {0 if headers else 1}\n")
    cxx.chmod(0o755)
    return cxx


@pytest.fixture
def look(toolkit: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the search, with one nvcc named and nothing else of this machine's."""

    def search(nvcc: Path, cxx: Path) -> Any:
        monkeypatch.chdir(ROOT)
        for name in ("PE_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NVCC", str(nvcc))
        monkeypatch.setenv("CXX", str(cxx))
        return toolkit["find_toolkit"]()

    return search


@pytest.mark.parametrize(
    ("include", "libraries"),
    [
        ("include", "lib64"),  # NVIDIA's installer
        ("include", "lib"),  # PyPI's packages; their nvcc names lib64 all the same
        ("targets/x86_64-linux/include", "targets/x86_64-linux/lib"),  # conda's packages
        ("targets/sbsa-linux/include", "targets/sbsa-linux/lib"),  # the same, for ARM
    ],
)
def test_a_toolkit_with_a_root_is_found(
    look: Any, tmp_path: Path, include: str, libraries: str
) -> None:
    home = tmp_path / "a toolkit"
    nvcc = fake_nvcc(home, f"TOP={home}/bin/..", f'LIBRARIES=  "-L{home}/bin/..//lib64"')
    touch(home / include / "cuda_runtime_api.h")
    touch(home / libraries / "libcudart_static.a")
    found = look(nvcc, fake_cxx(tmp_path, headers=True))
    assert (found.nvcc, found.include) == (str(nvcc), home / include)
    assert found.libraries == home / libraries
    assert found.archs == (("80", True), ("90", False)), "what it knows of the default"


def test_a_distributions_toolkit_without_a_root_is_found(look: Any, tmp_path: Path) -> None:
    library = touch(tmp_path / "usr lib" / "libcudart_static.a")
    line = f'LIBRARIES=  -L{tmp_path}/stubs "-L{library.parent}"'
    nvcc = fake_nvcc(tmp_path / "wrapper", line)
    found = look(nvcc, fake_cxx(tmp_path, headers=True))
    assert (found.include, found.libraries) == (None, library.parent)


def test_what_a_toolkit_lacks_is_said(look: Any, tmp_path: Path) -> None:
    library = touch(tmp_path / "lib" / "libcudart_static.a")
    cxx = fake_cxx(tmp_path, headers=False)
    without = fake_nvcc(tmp_path / "one", f"TOP={tmp_path}/nowhere")
    assert look(without, cxx) == f"{without} does not say where libcudart_static.a is"
    bare = fake_nvcc(tmp_path / "two", f"LIBRARIES= -L{library.parent}")
    assert look(bare, cxx) == f"{bare} does not say where cuda_runtime_api.h is"
    # The compiler finds headers, but they are not those of this toolkit.
    parts = fake_nvcc(tmp_path / "three", f"TOP={library.parent.parent}")
    others = fake_cxx(tmp_path, headers=True)
    assert look(parts, others) == f"{parts} does not say where cuda_runtime_api.h is"


def test_the_compiler_that_is_asked_for_headers_may_have_words_around_it(
    toolkit: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = shutil.which(os.environ.get("CXX", "g++").split()[0])
    if real is None:
        pytest.skip("no C++ compiler")
    touch(tmp_path / "cuda_runtime_api.h")
    has = toolkit["_has_headers"]
    monkeypatch.setenv("CXX", f"{real} -I{tmp_path}")
    assert has(None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has(None)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("9.0", (("90", False),)),
        ("80;90a;12.0+PTX", (("80", False), ("90a", False), ("120", True))),
        ("8.6 10.0f,12.1", (("86", False), ("100f", False), ("121", False))),
    ],
)
def test_architectures_are_read(toolkit: dict[str, Any], text: str, want: object) -> None:
    assert toolkit["read_archs"](text) == want


def test_an_old_nvcc_builds_what_it_knows_and_ptx_for_the_rest(toolkit: dict[str, Any]) -> None:
    read, default = toolkit["read_archs"], toolkit["DEFAULT_ARCHS"]
    assert read(default, {"80", "86", "90"}) == (("80", True), ("90", False))
    assert read(default, {"90", "100", "130"}) == (("90", True), ("100", False))
    assert read(default, {"50"}) == ()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PE_CUDA": "maybe"}, "PE_CUDA must be auto, 0 or 1"),
        ({"PE_CUDA": "1"}, "PE_CUDA=1, but nvcc is not"),
    ],
)
def test_what_cannot_be_built_is_refused(
    setup_module: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    message: str,
) -> None:
    choose = setup_module["choose_toolkit"]
    places = setup_module["TOOLKIT"]["find_toolkit"].__globals__
    monkeypatch.chdir(ROOT)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(places, "_nvcc_places", lambda: iter(["no-such-nvcc", None]))
    with pytest.raises(setup_module["PlatformError"], match=message):
        choose()


def test_without_nvcc_the_build_says_what_it_leaves_out(
    setup_module: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose = setup_module["choose_toolkit"]
    places = setup_module["TOOLKIT"]["find_toolkit"].__globals__
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PE_CUDA", "auto")
    monkeypatch.setitem(places, "_nvcc_places", lambda: iter(()))
    assert choose() is None
    assert "for the CPU only (nvcc is not" in capsys.readouterr().out
