# SPDX-License-Identifier: Apache-2.0
"""What is here (torch, driver, GPUs, this build), and one sentence for whatever does not fit."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).resolve().parent.parent / "_ops.so"
BUILD_INFO = LIBRARY.with_name("_build_info.json")
OLDEST_TORCH = (2, 10)  # TORCH_TARGET of setup.py


@dataclass(frozen=True)
class Surroundings:
    """What decides whether the compiled operators can serve.

    Args:
        torch: its version.
        torch_cuda: the CUDA version that torch was built for; None: for none.
        torch_hip: the ROCm version that torch was built for; None: for none.
        driver: the CUDA version that the NVIDIA driver serves; None: there is no driver.
        gpus: name and compute capability of what torch finds.
        kernels: whether this build has CUDA kernels.
        cuda: the CUDA version that they were built with; None: none, or not known.
        archs: what they were built for, such as ``"90"`` or ``"80+PTX"``; empty: not known.
        host: whether this build has the NumPy module.
    """

    torch: str
    torch_cuda: str | None = None
    torch_hip: str | None = None
    driver: tuple[int, int] | None = None
    gpus: tuple[tuple[str, int, int], ...] = ()
    kernels: bool = False
    cuda: str | None = None
    archs: tuple[str, ...] = ()
    host: bool = True


def build() -> dict[str, Any]:
    """Read what setup.py wrote of this build; empty where it wrote nothing.

    Example:
        >>> sorted(build()) in ([], ["compiler", "cuda", "cuda_archs", "pybind11", "torch_headers"])
        True
    """
    if not BUILD_INFO.is_file():
        return {}
    return json.loads(BUILD_INFO.read_text(encoding="utf-8"))


def read() -> Surroundings:
    """Look at this process and this machine; changes nothing.

    Example:
        >>> read().torch == torch.__version__
        True
    """
    built = build()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return Surroundings(
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        torch_hip=torch.version.hip,
        driver=_driver(),
        gpus=tuple(
            (torch.cuda.get_device_name(gpu), *torch.cuda.get_device_capability(gpu))
            for gpu in gpus
        ),
        kernels=built.get("cuda") is not None,
        cuda=built.get("cuda"),
        archs=tuple(built.get("cuda_archs", ())),
        host=importlib.util.find_spec("prune_engine._host") is not None,
    )


def _driver() -> tuple[int, int] | None:
    """Ask the NVIDIA driver, which answers this without being initialised."""
    number = ctypes.c_int()
    try:
        refused = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return None
    return None if refused else (number.value // 1000, number.value % 1000 // 10)


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def torch_refusal(here: Surroundings) -> str:
    """Say why this torch cannot load the compiled operators.

    Args:
        here: of :func:`read`.

    Returns:
        A phrase, or "" where it can.

    Example:
        >>> torch_refusal(Surroundings("2.9.1+cu128"))
        'torch 2.9.1+cu128 is older than 2.10, the oldest that these operators load on: upgrade it'
    """
    if _numbers(here.torch) >= OLDEST_TORCH:
        return ""
    oldest = ".".join(map(str, OLDEST_TORCH))
    return (
        f"torch {here.torch} is older than {oldest}, the oldest that these operators load on: "
        "upgrade it"
    )


def load_refusal(error: BaseException) -> str:
    """Say in plain words why the system's loader refused the library.

    Args:
        error: what was raised. torch names only the file and keeps the loader's words as the cause.

    Returns:
        A phrase.

    Example:
        >>> load_refusal(OSError("libm.so.6: version `GLIBC_2.38' not found (required by x)"))
        'this system lacks GLIBC_2.38, with which the wheel was built: build from source here'
    """
    error = error.__cause__ or error
    found = re.search(r"version `((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found", str(error))
    if found is None:
        return str(error)
    return f"this system lacks {found[1]}, with which the wheel was built: build from source here"


def cuda_refusal(here: Surroundings) -> str:
    """Say why the CUDA kernels cannot serve here.

    Args:
        here: of :func:`read`.

    Returns:
        A phrase, or "" where they can.

    Example:
        >>> cuda_refusal(Surroundings("2.13.0", torch_hip="7.1", kernels=True))
        'torch 2.13.0 is built for ROCm 7.1, and these kernels for NVIDIA: Triton serves AMD GPUs'
    """
    if here.torch_hip is not None:  # its tensors call themselves cuda
        return (
            f"torch {here.torch} is built for ROCm {here.torch_hip}, and these kernels for NVIDIA: "
            "Triton serves AMD GPUs"
        )
    if not here.kernels:
        return (
            "this wheel was built without CUDA: install one that was, or build from source where "
            "nvcc is (PE_CUDA=1); Triton serves GPUs without either"
        )
    if here.torch_cuda is None:
        return f"torch {here.torch} is built without CUDA: install a build of torch for CUDA"
    if here.driver is None:
        return "no NVIDIA driver is found (libcuda.so.1): this is no GPU node, or a bare container"
    return _driver_refusal(here) or _gpu_refusal(here)


def _driver_refusal(here: Surroundings) -> str:
    driver = "{}.{}".format(*here.driver) if here.driver else "none"
    for version, what, cure in (
        (here.torch_cuda, f"torch {here.torch}", "install a torch for an older CUDA"),
        (here.cuda, "this wheel", "build from source with an older nvcc"),
    ):
        # Within a major version an older driver runs what a newer toolkit built.
        if here.driver and version and here.driver[0] < _numbers(version)[0]:
            return (
                f"the NVIDIA driver is too old: it serves CUDA {driver}, and {what} was built "
                f"with CUDA {version}: update the driver, or {cure}"
            )
    return ""


def _gpu_refusal(here: Surroundings) -> str:
    if not here.gpus:
        return (
            "torch finds no GPU, though the driver is there: see nvidia-smi, CUDA_VISIBLE_DEVICES"
        )
    served = [any(_serves(arch, *gpu[1:]) for arch in here.archs) for gpu in here.gpus]
    if not here.archs or any(served):
        return ""
    name, major, minor = here.gpus[0]
    return (
        f"{name} has compute capability {major}.{minor}, and this wheel was built for "
        f"{', '.join(here.archs)}: build from source with PE_CUDA_ARCHS={major}.{minor}"
    )


def _serves(arch: str, major: int, minor: int) -> bool:
    """Whether code for ``arch`` runs on a GPU of that compute capability."""
    number, _, ptx = arch.partition("+")
    found = re.fullmatch(r"(\d+)(\d)([af]?)", number)
    if found is None:
        return False
    built = (int(found[1]), int(found[2]))
    if found[3] == "a":  # for one chip alone, PTX included
        return built == (major, minor)
    same_generation = built[0] == major and built[1] <= minor
    return same_generation or (bool(ptx) and found[3] == "" and built <= (major, minor))


def mismatches(here: Surroundings) -> list[str]:
    """Say what does not fit together here, one sentence each.

    A machine without anything of a GPU lacks nothing.

    Args:
        here: of :func:`read`.

    Returns:
        Sentences; empty where everything fits.

    Example:
        >>> mismatches(Surroundings("2.13.0+cpu"))
        []
    """
    found = [torch_refusal(here)]
    if here.driver or here.torch_cuda or here.torch_hip:
        reason = cuda_refusal(here)
        found.append(f"the CUDA kernels cannot serve: {reason}" if reason else "")
    if not here.host:
        found.append(
            "the NumPy module, prune_engine.host, is not in this wheel, which serves every Python: "
            "where it is needed, install the wheel of this Python"
        )
    return [f"{text[0].upper()}{text[1:]}." for text in found if text]
