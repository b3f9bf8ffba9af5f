# SPDX-License-Identifier: Apache-2.0
"""Find what builds the CUDA operators: nvcc, its headers, its static runtime, the targets.

``python csrc/build/toolkit.py``, beside setup.py, says why there is none and fails, or is silent.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import PlatformError

# Machine code for data centre and consumer chips of four generations, which serves later chips of
# each (8.6, 10.3, 12.1) too; the oldest PTX, for every chip between and after them.
DEFAULT_ARCHS = "8.0+PTX;9.0;10.0;12.0"


@dataclass(frozen=True)
class Toolkit:
    """What the CUDA operators are built with.

    Args:
        nvcc: the compiler.
        include: folder with ``cuda_runtime_api.h``; None where the C++ compiler finds it by itself,
            as with a distribution's own package: its folder named once more would hide others.
        libraries: folder with the static runtime, so that a user's driver is all that is needed.
        archs: (number such as "90", whether PTX goes in as well).
    """

    nvcc: str
    include: Path | None
    libraries: Path
    archs: tuple[tuple[str, bool], ...]

    @property
    def flags(self) -> str:
        """The targets, as nvcc wants them."""
        return " ".join(
            f"-gencode 'arch=compute_{arch},code="
            + (f"[sm_{arch},compute_{arch}]'" if ptx else f"sm_{arch}'")
            for arch, ptx in self.archs
        )


def _nvcc_places() -> Iterator[str | None]:
    yield os.environ.get("NVCC")
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        yield f"{home}/bin/nvcc" if home else None
    yield "nvcc"
    for scheme in ("purelib", "platlib"):  # PyPI's nvidia-cuda-nvcc
        yield from map(str, sorted(Path(sysconfig.get_path(scheme)).glob("nvidia/cu*/bin/nvcc")))
    yield "/usr/local/cuda/bin/nvcc"


def says(program: str, *options: str) -> str:
    """Run a program; return what it prints, nothing where it fails or is none."""
    try:
        done = subprocess.run([program, *options], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def read_archs(text: str, known: set[str] | None = None) -> tuple[tuple[str, bool], ...]:
    """Read "8.0;9.0+PTX" (also "80 90", "90a"); with ``known``, leave out what nvcc does not know.

    An nvcc knows neither later chips nor those given up; the PTX of the oldest serves all later.
    """
    archs: list[tuple[str, bool]] = []
    for word in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX)?", word)
        if match is None:
            raise PlatformError(f"PE_CUDA_ARCHS must be like '8.0;9.0+PTX', got {word!r}")
        major, minor, suffix, ptx = match.groups()
        if known is None or major + minor in known:
            archs.append((major + minor + suffix, ptx is not None))
    if known is not None and archs:
        archs[0] = (archs[0][0], True)
    return tuple(archs)


def _folders(nvcc: str) -> tuple[list[Path | None], list[Path]]:
    """Return where the headers and the libraries of an nvcc may be, the likeliest first.

    It names its root and the folders of its linker. A distribution's package has no root: its
    headers are where the C++ compiler looks (None). One with a root goes with its own headers
    alone: what the compiler finds may be of another CUDA.
    """
    plan = says(nvcc, "-dryrun", "-x", "cu", "-c", os.devnull)
    roots: list[Path] = []
    for top in re.findall(r"\bTOP=(.+)", plan):
        root = Path(os.path.normpath(top.strip()))
        roots += [root, *sorted(root.glob("targets/*-linux"))]
    named = "".join(re.findall(r"\bLIBRARIES=(.*)", plan))
    words = re.findall(r'"-L([^"]+)"|-L(\S+)', named)
    linked = [Path(quoted or plain) for quoted, plain in words]
    headers: list[Path | None] = [root / "include" for root in roots]
    return headers or [None], [root / name for root in roots for name in ("lib64", "lib")] + linked


def _has_headers(folder: Path | None) -> bool:
    if folder is not None:
        return (folder / "cuda_runtime_api.h").is_file()
    cxx = os.environ.get("CXX", "g++").split()
    return bool(cxx and says(*cxx, "-E", "-x", "c++", "-include", "cuda_runtime_api.h", os.devnull))


def find_toolkit() -> Toolkit | str:
    """Find what builds the CUDA operators; where there is none, a phrase that says why."""
    if not list(Path("csrc/cuda").glob("*.cu")):
        return "csrc/cuda has no .cu sources"
    found = (shutil.which(place) for place in _nvcc_places() if place)
    nvcc = next((path for path in found if path), None)
    if nvcc is None:
        return "nvcc is not on PATH, in CUDA_HOME or in NVCC"
    headers, folders = _folders(nvcc)
    libraries = next((path for path in folders if (path / "libcudart_static.a").is_file()), None)
    if libraries is None:
        return f"{nvcc} does not say where libcudart_static.a is"
    served = [path for path in headers if _has_headers(path)]
    if not served:
        return f"{nvcc} does not say where cuda_runtime_api.h is"
    given = os.environ.get("PE_CUDA_ARCHS") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    known = set(re.findall(r"compute_(\d+)\b", says(nvcc, "--list-gpu-arch")))
    archs = read_archs(given) if given else read_archs(DEFAULT_ARCHS, known)
    if not archs:
        return f"{nvcc} knows none of {DEFAULT_ARCHS}"
    return Toolkit(nvcc, served[0], libraries, archs)


if __name__ == "__main__":
    result = find_toolkit()
    sys.exit(result if isinstance(result, str) else 0)
