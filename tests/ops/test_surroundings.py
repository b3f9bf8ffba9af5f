# SPDX-License-Identifier: Apache-2.0
"""One sentence for whatever does not fit: faked surroundings, passed in, never patched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import surroundings
from prune_engine.backends.surroundings import Surroundings, cuda_refusal, mismatches
from prune_engine.recipes import diagnostics

H100 = ("NVIDIA H100", 9, 0)
ARCHS = ("80+PTX", "90", "100", "120")
FITS = Surroundings(
    torch="2.13.0+cu130",
    torch_cuda="13.0",
    driver=(13, 0),
    gpus=(H100,),
    kernels=True,
    cuda="13.0",
    archs=ARCHS,
)
CASES = {
    "rocm": (replace(FITS, torch_cuda=None, torch_hip="7.1"), "built for ROCm 7.1"),
    "no CUDA in this wheel": (replace(FITS, kernels=False), "wheel was built without CUDA"),
    "CPU torch beside a driver": (replace(FITS, torch_cuda=None), "install a build of torch for"),
    "no driver": (replace(FITS, driver=None, gpus=()), "no NVIDIA driver is found"),
    "driver too old for torch": (
        replace(FITS, driver=(12, 4), gpus=()),
        "it serves CUDA 12.4, and torch 2.13.0+cu130 was built with CUDA 13.0: update the driver",
    ),
    "driver too old for this wheel": (
        replace(FITS, torch="2.13.0+cu126", torch_cuda="12.6", driver=(12, 8)),
        "it serves CUDA 12.8, and this wheel was built with CUDA 13.0: update the driver",
    ),
    "no GPU": (replace(FITS, gpus=()), "torch finds no GPU, though the driver is there"),
    "GPU too old": (replace(FITS, gpus=(("Tesla V100", 7, 0),)), "PE_CUDA_ARCHS=7.0"),
    "torch too old": (replace(FITS, torch="2.9.1+cu130"), "older than 2.10"),
    "no NumPy module": (replace(FITS, host=False), "prune_engine.host, is not in this wheel"),
}


def test_where_everything_fits_nothing_is_said() -> None:
    assert mismatches(FITS) == []
    assert mismatches(Surroundings("2.13.0+cpu")) == [], "a CPU machine lacks nothing"


@pytest.mark.parametrize("case", CASES)
def test_a_mismatch_is_one_sentence(case: str) -> None:
    here, message = CASES[case]
    (sentence,) = mismatches(here)
    assert message in sentence
    assert re.fullmatch(r"[A-Z].*[^.]\.", sentence)
    assert len(sentence) < 260
    assert re.search(r"\. [A-Z]", sentence) is None, "one sentence"


def test_no_two_mismatches_are_said_alike() -> None:
    assert len({tuple(mismatches(here)) for here, _ in CASES.values()}) == len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_info_prints_it(case: str) -> None:
    here, _ = CASES[case]
    facts = diagnostics.info(read=lambda: here)
    _, found, text = diagnostics.render(facts).partition("\nwhat does not fit here\n")
    assert found
    assert text.splitlines() == [f"  {sentence}" for sentence in mismatches(here)]


@pytest.mark.parametrize(
    ("capability", "archs", "served"),
    [
        ((8, 0), ARCHS, True),
        ((8, 9), ARCHS, True),  # machine code of its own generation, for an earlier minor version
        ((11, 0), ARCHS, True),  # PTX of 8.0
        ((12, 1), ARCHS, True),
        ((13, 0), ARCHS, True),  # PTX of 8.0 again
        ((7, 5), ARCHS, False),
        ((10, 3), ("90",), False),
        ((10, 3), ("90+PTX",), True),
        ((9, 0), ("90a",), True),
        ((10, 0), ("90a+PTX",), False),  # for that chip alone
        ((10, 3), ("100f",), True),
        ((12, 0), ("100f",), False),
        ((8, 0), ("86",), False),
        ((8, 0), (), True),  # not recorded: the launch will say
    ],
)
def test_which_gpus_a_build_serves(
    capability: tuple[int, int], archs: tuple[str, ...], served: bool
) -> None:
    here = replace(FITS, gpus=(("GPU", *capability),), archs=archs)
    assert (cuda_refusal(here) == "") == served


def test_one_old_gpu_beside_a_new_one_does_not_refuse_both() -> None:
    assert cuda_refusal(replace(FITS, gpus=(("Tesla V100", 7, 0), H100))) == ""


@pytest.mark.parametrize("driver", [(13, 0), (13, 2), (14, 0)])
def test_a_driver_of_the_same_major_version_or_newer_serves(driver: tuple[int, int]) -> None:
    assert cuda_refusal(replace(FITS, driver=driver, cuda="13.2")) == ""


@pytest.mark.parametrize(
    ("error", "phrase"),
    [
        ("libc.so.6: version `GLIBC_2.38' not found (required by x)", "lacks GLIBC_2.38"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "lacks GLIBCXX_3.4.32"),
        ("something else", "something else"),
    ],
)
def test_a_loaders_refusal_is_put_into_words(error: str, phrase: str) -> None:
    assert phrase in surroundings.load_refusal(OSError(error))


def test_a_wheel_of_a_newer_system_says_what_this_one_lacks(tmp_path: Path) -> None:
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    if cxx is None:
        pytest.skip("no C++ compiler")
    package = tmp_path / "prune_engine"
    shutil.copytree(
        Path(pe.__file__).parent, package, ignore=shutil.ignore_patterns("_ops.so", "__pycache__")
    )
    # A library that asks for a function of a later version than the system's library then has.
    (tmp_path / "system.cpp").write_text('extern "C" int newer() { return 1; }\n')
    (tmp_path / "ops.cpp").write_text('extern "C" int newer();\nint used = newer();\n')
    system, shared = tmp_path / "libsystem.so", [cxx, "-shared", "-fPIC"]
    for version in ("GLIBC_9.99", "GLIBC_2.2"):
        (tmp_path / "versions").write_text(f"{version} {{ global: newer; }};\n")
        script = f"-Wl,--version-script={tmp_path / 'versions'},-soname,libsystem.so"
        subprocess.run([*shared, script, tmp_path / "system.cpp", "-o", system], check=True)
        if version == "GLIBC_9.99":
            linked = [tmp_path / "ops.cpp", system, f"-Wl,-rpath,{tmp_path}"]
            subprocess.run([*shared, *linked, "-o", package / "_ops.so"], check=True)
    code = "import prune_engine as pe; pe.backends.load('cpu')"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: backend 'cpu' cannot be loaded: this system lacks GLIBC_9.99, with which "
        "the wheel was built: build from source here"
    )


@pytest.mark.parametrize(
    ("version", "old"),
    [("2.9.1", True), ("1.13.1+cu117", True), ("2.10.0a0+git12", False), ("3.0.0", False)],
)
def test_versions_are_compared_as_numbers(version: str, old: bool) -> None:
    assert (surroundings.torch_refusal(Surroundings(version)) != "") == old


def test_what_is_read_here_is_what_torch_says() -> None:
    here = surroundings.read()
    assert here.torch == torch.__version__
    assert here.torch_cuda == torch.version.cuda
    assert (len(here.gpus) > 0) == torch.cuda.is_available()
    assert surroundings.torch_refusal(here) == ""
    assert (cuda_refusal(here) == "") == backends.describe()[0].available


def test_the_cuda_backend_says_why_it_is_refused() -> None:
    (status,) = [row for row in backends.describe() if row.name == "cuda"]
    assert status.devices == ("cuda",)
    assert status.available == (status.reason == backends.TABLE[0].summary)
    if not torch.cuda.is_available():
        assert not status.available
        assert "cannot serve here: " in status.reason
