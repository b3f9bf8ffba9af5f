# SPDX-License-Identifier: Apache-2.0
"""Build the native half of prune_engine; pyproject.toml declares all the rest.

Two shared objects come out of csrc/:

* ``prune_engine/_ops.so``, the operators. They reach torch through its stable C ABI only and
  hold no Python, so one file loads on every torch >= 2.10 and every Python.
* ``prune_engine/_host.<suffix>``, the pybind11 module for NumPy users; it knows nothing of torch.

``prune_engine/_build_info.json`` beside them says what they were built with. The same sources and
tools give the same bytes, in whatever folder.

Instructions beyond the base architecture are chosen at run time, hence never an -march flag.

Environment: ``CXX`` (default g++), ``MAX_JOBS``, ``PE_WERROR=1`` (warnings are errors, as in CI),
``PE_TORCH_INCLUDE`` (folder with the torch headers, where they cannot be found), ``PE_HOST=0``
(leave the NumPy module out: the wheel is then py3-none, for every Python). CUDA operators:
``PE_CUDA`` (auto: where there is nvcc; 0; 1: refuse to build without), ``NVCC``, ``CUDA_HOME``,
``PE_CUDA_ARCHS`` or ``TORCH_CUDA_ARCH_LIST`` ("8.0;9.0+PTX"; default: csrc/build/toolkit.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

# What finds nvcc and its parts.
TOOLKIT = runpy.run_path(str(Path(__file__).parent / "csrc/build/toolkit.py"))
PROBE = Path("torch/csrc/stable/library.h")
BUILD_INFO = "_build_info.json"
TORCH_TARGET = "0x020a000000000000ULL"  # 2.10: the first stable ABI with every call used here
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -pthread -Wall -Wextra"
# Contraction would change bits. The headers of torch stay out of .cu files: nvcc is slow on them.
NVCC_FLAGS = (
    "-O3 -std=c++17 -fmad=false -Xptxas=-warn-spills "
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"
)
# -fvisibility=hidden spares neither an ifunc nor what a library linked in brings along.
EXPORTS = "{ global: PyInit_*; local: *; };\n"
# nvcc names kernels after the absolute path of their file, unless told another.
NINJA = """\
# Written by setup.py.
ninja_required_version = 1.5
builddir = {out}
rule cxx
  command = {cxx} {flags} $extra -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule nvcc
  command = {nvcc} {nvcc_flags} -Xcudafe --orig_src_path_name=$in -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule stub
  command = {cxx} -shared -x c++ /dev/null -o $out -Wl,-soname,libtorch.so
  description = stub $out
rule link
  command = {cxx} -shared -pthread $in -o $out $libs -Wl,-z,now -s -Wl,--version-script={exports}
  description = link $out
"""


def torch_include() -> Path | None:
    """Find the folder with torch's headers without importing torch; None where there is none.

    pip's isolated builds hide the user's packages from ``sys.path`` but run the same interpreter,
    so sysconfig still names the place; uv hides that as well, but leaves ``VIRTUAL_ENV``.
    """
    given = os.environ.get("PE_TORCH_INCLUDE")
    if given:
        if not (Path(given) / PROBE).is_file():
            raise PlatformError(f"PE_TORCH_INCLUDE must be a folder with {PROBE}, got {given!r}")
        return Path(given)
    return next((path for path in _torch_places() if (path / PROBE).is_file()), None)


def _torch_places() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")
    for place in (spec.submodule_search_locations if spec else None) or ():
        yield Path(place) / "include"
    for scheme in ("purelib", "platlib"):
        yield Path(sysconfig.get_path(scheme)) / "torch" / "include"
    if venv := os.environ.get("VIRTUAL_ENV"):
        for site in sorted(Path(venv).glob("lib/python*/site-packages")):
            yield site / "torch" / "include"


def choose_toolkit() -> Any:
    """Obey ``PE_CUDA``: 1 refuses what cannot be built, auto says what is built or left out.

    None: no CUDA.
    """
    mode = os.environ.get("PE_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise PlatformError(f"PE_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return None
    found = TOOLKIT["find_toolkit"]()
    if not isinstance(found, str):
        archs = ", ".join(f"sm_{arch}{'+PTX' * ptx}" for arch, ptx in found.archs)
        print(f"prune_engine: building for the CPU and for CUDA ({found.nvcc}: {archs})")
        return found
    if mode == "1":
        raise PlatformError(f"PE_CUDA=1, but {found}")
    print(f"prune_engine: building for the CPU only ({found})")
    return None


def quoted(path: Path | str) -> str:
    """Quote one word for the shell and then for ninja."""
    return shlex.quote(str(path)).replace("$", "$$")


def with_host() -> bool:
    """Obey ``PE_HOST``."""
    mode = os.environ.get("PE_HOST", "1")
    if mode not in ("0", "1"):
        raise PlatformError(f"PE_HOST must be 0 or 1, got {mode!r}")
    return mode == "1"


def build_info(toolkit: Any, torch: Path, cxx: str) -> dict[str, Any]:
    """Return what ``prune-engine info`` and the wheel's SBOM say of this build."""
    if shutil.which(shlex.split(cxx)[0]) is None:
        raise PlatformError(f"no C++ compiler: {cxx!r} is not a program here; see CXX")
    header = (torch / "torch/headeronly/version.h").read_text(encoding="utf-8")
    version = TOOLKIT["says"](toolkit.nvcc, "--version") if toolkit else ""
    release = re.search(r"release (\d+\.\d+)", version)
    compiler = subprocess.run([*shlex.split(cxx), "--version"], capture_output=True, text=True)
    return {
        "compiler": compiler.stdout.partition("\n")[0],
        "cuda": release.group(1) if release else None,
        "cuda_archs": [f"{arch}{'+PTX' * ptx}" for arch, ptx in toolkit.archs] if toolkit else [],
        "pybind11": metadata.version("pybind11") if with_host() else None,
        "torch_headers": ".".join(re.findall(r"TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)),
    }


class Wheel(bdist_wheel):
    """Pack what this build made and nothing older; without the NumPy module, for every Python."""

    def run(self) -> None:
        """Begin with an empty folder: what an earlier build left there would be packed too."""
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none where no library belongs to one Python."""
        tag = super().get_tag()
        return tag if with_host() else ("py3", "none", tag[2])

    def write_wheelfile(self, wheelfile_base: str, *args: Any, **words: Any) -> None:
        """Add the SBOM to the metadata."""
        super().write_wheelfile(wheelfile_base, *args, **words)
        if self.distribution.get_command_obj("editable_wheel", create=False) is not None:
            return  # a link to this folder: nothing is packed, and nothing built yet
        (found,) = Path(self.bdist_dir).rglob(BUILD_INFO)
        about = self.distribution.metadata
        sbom = runpy.run_path("csrc/build/sbom.py")["sbom"]
        text = sbom(about.get_name(), about.get_version(), json.loads(found.read_text()))
        target = Path(wheelfile_base) / "sboms" / "prune_engine.cdx.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


class NinjaBuild(build_ext):
    """Compile with ninja, which rebuilds only what changed, in a folder that outlives the build.

    The operators' objects there serve every Python.
    """

    def get_ext_filename(self, fullname: str) -> str:
        """Name ``_ops`` without a Python suffix: it belongs to no Python."""
        if fullname.rpartition(".")[2] == "_ops":
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Write build.ninja, run ninja and copy both libraries to where setuptools wants them."""
        if sys.platform != "linux":
            raise PlatformError(f"prune_engine builds on Linux, not on {sys.platform}")
        out = Path("build") / f"native-{self.plat_name}"
        out.mkdir(parents=True, exist_ok=True)
        exports = out / "exports.map"
        if not exports.exists() or exports.read_text(encoding="utf-8") != EXPORTS:
            exports.write_text(EXPORTS, encoding="utf-8")  # a newer one would be linked anew
        (out / "build.ninja").write_text(self.ninja_text(out), encoding="utf-8")
        command = [sys.executable, "-m", "ninja", "-f", str(out / "build.ninja")]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command).returncode:
            raise CompileError("the native build failed; ninja's output above says where")
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name))
            self.mkpath(str(target.parent))
            self.copy_file(str(out / target.name), str(target))
        text = json.dumps(self.info, indent=1) + "\n"
        Path(self.build_lib, "prune_engine", BUILD_INFO).write_text(text, encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Copy also what is said of them, in an editable or in-place build."""
        super().copy_extensions_to_source()
        self.copy_file(str(Path(self.build_lib, "prune_engine", BUILD_INFO)), "prune_engine")

    def ninja_text(self, out: Path) -> str:
        """Return the build file; paths are relative, so no machine's path enters a library."""
        torch = torch_include()
        if torch is None:
            raise PlatformError("no torch headers found: install torch or set PE_TORCH_INCLUDE")
        host_dirs = sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})
        if with_host():
            import pybind11  # a build requirement: absent while pip only asks what is required

            host_dirs.insert(0, pybind11.get_include())
        extra = {
            "_ops": f"-DTORCH_TARGET_VERSION={TORCH_TARGET} -isystem {quoted(torch)} "
            f"-ffile-prefix-map={quoted(torch)}=.",
            "_host": " ".join(
                f"-isystem {quoted(path)} -ffile-prefix-map={quoted(path)}=." for path in host_dirs
            ),
        }
        # A stub is enough to record NEEDED libtorch.so: the library is linked against no torch,
        # and libtorch.so brings in whatever parts the user's torch has.
        stub = f"{out}/stub/libtorch.so"
        libs = f"-L{out}/stub -Wl,--no-as-needed -ltorch -Wl,--as-needed"
        # A newer compiler's new warning must not stop a user's installation, only our own.
        strict = os.environ.get("PE_WERROR") == "1"
        cxx = os.environ.get("CXX", "g++")
        nvcc_flags = NVCC_FLAGS + " -Werror all-warnings" * strict
        if "CXX" in os.environ and shutil.which(cxx):  # one program, no words around it
            nvcc_flags += f" -ccbin {quoted(cxx)}"
        cuda_sources: list[str] = []
        toolkit = choose_toolkit()
        self.info = build_info(toolkit, torch, cxx)
        if toolkit:
            found = [*Path("csrc/cuda").glob("*.cu"), *Path("csrc/cuda").glob("*.cpp")]
            cuda_sources = [path.as_posix() for path in sorted(found)]
            extra["_ops"] += " -DUSE_CUDA"
            if toolkit.include:
                folder = quoted(toolkit.include)
                extra["_ops"] += f" -isystem {folder} -ffile-prefix-map={folder}=."
            libs += f" -L{quoted(toolkit.libraries)} -lcudart_static -ldl -lrt"
            nvcc_flags += f" {toolkit.flags}"
            # Half the wheel. The drivers of CUDA 13, which its runtime needs anyway, can unpack it.
            if int((self.info["cuda"] or "0").partition(".")[0]) >= 13:
                nvcc_flags += " --compress-mode=size"
        lines = [
            NINJA.format(
                out=out,
                cxx=cxx,
                exports=f"{out}/exports.map",
                flags=FLAGS + " -Werror" * strict,
                nvcc=quoted(toolkit.nvcc) if toolkit else "nvcc",
                nvcc_flags=nvcc_flags,
            )
        ]
        lines.append(f"build {stub}: stub")
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            sources = [*ext.sources, *(cuda_sources if name == "_ops" else [])]
            folder = f"{out}/{sys.implementation.cache_tag}" if name == "_host" else str(out)
            objects = [f"{folder}/{source}.o" for source in sources]
            for source, target in zip(sources, objects, strict=True):
                if source.endswith(".cu"):
                    lines.append(f"build {target}: nvcc {source}")
                else:
                    # What checks and launches: half the bytes, and no loop to lose.
                    size = " -Os" * source.startswith(("csrc/check", "csrc/cuda/"))
                    lines += [f"build {target}: cxx {source}", f"  extra = {extra[name]}{size}"]
            product = f"{out}/{Path(self.get_ext_filename(ext.name)).name}"
            lines.append(f"build {product}: link {' '.join(objects)} | {stub} {out}/exports.map")
            lines.append(f"  libs = {libs if name == '_ops' else ''}")
        return "\n".join(lines) + "\n"


def extensions() -> list[Extension]:
    """Return the shared objects with their sources, found by name."""
    kernels = sorted(path.as_posix() for path in Path("csrc/cpu").glob("*.cpp"))
    found = [Extension("prune_engine._ops", ["csrc/ops.cpp", *kernels, "csrc/check.cpp"])]
    return [*found, Extension("prune_engine._host", ["csrc/host.cpp"])] if with_host() else found


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": NinjaBuild, "bdist_wheel": Wheel},
        # build_meta reports these as extra build requirements (PEP 517), so a plain
        # `pip install .` uses the torch that is there and fetches one only where none is.
        setup_requires=[] if torch_include() else ["torch>=2.10"],
    )
