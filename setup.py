# SPDX-License-Identifier: Apache-2.0
"""Build the native half of prune_engine; pyproject.toml declares all the rest.

Two shared objects come out of csrc/:

* ``prune_engine/_ops.so``, the operators. They reach torch through its stable C ABI only and
  hold no Python, so one file loads on every torch >= 2.10 and every Python.
* ``prune_engine/_host.<suffix>``, the pybind11 module for NumPy users; it knows nothing of torch.

Instructions beyond the base architecture are chosen at run time, hence never an -march flag.

Environment: ``CXX`` (default g++), ``MAX_JOBS``, ``PE_WERROR=1`` (warnings are errors, as in CI),
``PE_TORCH_INCLUDE`` (folder with the torch headers, where they cannot be found), ``PE_CUDA`` (auto,
0 or 1).
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

PROBE = Path("torch/csrc/stable/library.h")
TORCH_TARGET = "0x020a000000000000ULL"  # 2.10: the first stable ABI with every call used here
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -pthread -Wall -Wextra"
NINJA = """\
# Written by setup.py.
ninja_required_version = 1.5
builddir = {out}
rule cxx
  command = {cxx} {flags} $extra -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
rule stub
  command = {cxx} -shared -x c++ /dev/null -o $out -Wl,-soname,libtorch.so
  description = stub $out
rule link
  command = {cxx} -shared -pthread $in -o $out $libs -Wl,-z,now -Wl,--exclude-libs,ALL -s
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


def say_cuda() -> None:
    """Obey ``PE_CUDA``: 1 refuses what cannot be built, auto says what is left out."""
    mode = os.environ.get("PE_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise PlatformError(f"PE_CUDA must be auto, 0 or 1, got {mode!r}")
    if not list(Path("csrc/cuda").glob("*.cu")):
        reason = "csrc/cuda has no .cu sources"
    elif not shutil.which("nvcc"):
        reason = "nvcc is not on PATH"
    else:
        reason = "this setup.py builds the CPU operators only"
    if mode == "1":
        raise PlatformError(f"PE_CUDA=1, but {reason}")
    if mode == "auto":
        print(f"prune_engine: building for the CPU only ({reason})")


def quoted(path: Path | str) -> str:
    """Quote one word for the shell and then for ninja."""
    return shlex.quote(str(path)).replace("$", "$$")


class NinjaBuild(build_ext):
    """Compile with ninja, which rebuilds only what changed, in a folder that outlives the build."""

    def get_ext_filename(self, fullname: str) -> str:
        """Name ``_ops`` without a Python suffix: it belongs to no Python."""
        if fullname.rpartition(".")[2] == "_ops":
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        """Write build.ninja, run ninja and copy both libraries to where setuptools wants them."""
        if sys.platform != "linux":
            raise PlatformError(f"prune_engine builds on Linux, not on {sys.platform}")
        say_cuda()
        out = Path("build") / f"native-{self.plat_name}-{sys.implementation.cache_tag}"
        out.mkdir(parents=True, exist_ok=True)
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

    def ninja_text(self, out: Path) -> str:
        """Return the build file; paths are relative, so no machine's path enters a library."""
        import pybind11  # a build requirement: absent while pip only asks what is required

        torch = torch_include()
        if torch is None:
            raise PlatformError("no torch headers found: install torch or set PE_TORCH_INCLUDE")
        python = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
        host_dirs = [pybind11.get_include(), *sorted(python)]
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
        flags = FLAGS + (" -Werror" if os.environ.get("PE_WERROR") == "1" else "")
        lines = [NINJA.format(out=out, cxx=os.environ.get("CXX", "g++"), flags=flags)]
        lines.append(f"build {stub}: stub")
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            objects = [f"{out}/{Path(source).with_suffix('.o')}" for source in ext.sources]
            for source, target in zip(ext.sources, objects, strict=True):
                lines += [f"build {target}: cxx {source}", f"  extra = {extra[name]}"]
            product = f"{out}/{Path(self.get_ext_filename(ext.name)).name}"
            lines.append(f"build {product}: link {' '.join(objects)} | {stub}")
            lines.append(f"  libs = {libs if name == '_ops' else ''}")
        return "\n".join(lines) + "\n"


def extensions() -> list[Extension]:
    """Return the two shared objects with their sources, found by name."""
    kernels = sorted(path.as_posix() for path in Path("csrc/cpu").glob("*.cpp"))
    return [
        Extension("prune_engine._ops", ["csrc/ops.cpp", *kernels]),
        Extension("prune_engine._host", ["csrc/host.cpp"]),
    ]


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": NinjaBuild},
        # build_meta reports these as extra build requirements (PEP 517), so a plain
        # `pip install .` uses the torch that is there and fetches one only where none is.
        setup_requires=[] if torch_include() else ["torch>=2.10"],
    )
