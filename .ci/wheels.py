# SPDX-License-Identifier: Apache-2.0
"""Build what is released: ``python .ci/wheels.py [--python EXE ...]`` (``make wheel``).

``dist/`` gets the source archive and one wheel for every Python (py3-none: the operators alone),
``dist/cpython/`` a wheel per Python with the NumPy module as well. The environment variables of
setup.py apply; ``SOURCE_DATE_EPOCH`` is the commit's time unless it is set, so that two builds of
one commit have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 2_600_000  # each node of a cluster takes it; an operator more is about 15 kB
MINORS = range(10, 15)
PROBE = (
    "import sys, sysconfig, pathlib;"
    "print(sys.implementation.cache_tag, '%d.%d' % sys.version_info[:2],"
    "(pathlib.Path(sysconfig.get_path('include')) / 'Python.h').is_file())"
)
EARLIEST = "315532800"  # 1980, the first year that a zip archive can name


def run(command: Sequence[str | Path], **environ: str) -> None:
    """Run a command in the repository; stop where it fails."""
    subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, **environ}, check=True)


def probe(python: str | Path) -> tuple[str, str] | None:
    """Return an interpreter's (cache tag, version); None where it cannot build for itself."""
    try:
        done = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True)
    except OSError:
        return None
    words = done.stdout.split()
    return (words[0], words[1]) if done.returncode == 0 and words[2] == "True" else None


def at_hand() -> Iterator[Path]:
    """Yield this interpreter and one per further version of Python found here."""
    yield Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in MINORS:
        if minor == sys.version_info[1]:
            continue
        on_path = shutil.which(f"python3.{minor}")
        managed = sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python3.{minor}"), reverse=True)
        found = ([Path(on_path)] if on_path else []) + managed
        working = next((path for path in found if probe(path)), None)
        if working:
            yield working


def builder(python: Path) -> Path:
    """Return an interpreter of that version that has the build requirements.

    This one has them. For another, an environment in build/ is made, once, from the packages that
    pyproject.toml requires, at the versions of constraints.txt.
    """
    found = probe(python)
    if found is None:
        sys.exit(f"{python}: no working CPython with its headers (Python.h)")
    tag, version = found
    if tag == sys.implementation.cache_tag:
        return Path(sys.executable)
    home = ROOT / "build" / "wheel-envs" / tag
    if not (home / ".ready").exists():
        print(f"setting up the build requirements for Python {version}", flush=True)
        run([python, "-m", "venv", "--clear", home])
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        pip = [home / "bin/python", "-m", "pip", "--disable-pip-version-check", "install"]
        needs = project["build-system"]["requires"]
        run([*pip, "--quiet", "--constraint", ROOT / "constraints.txt", *needs])
        (home / ".ready").touch()
    return home / "bin/python"


def epoch() -> str:
    """Return SOURCE_DATE_EPOCH, or the time of the commit, or in an unpacked archive 1980."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    command = ["git", "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return EARLIEST
    return done.stdout.strip() if done.returncode == 0 else EARLIEST


def build_wheel(python: Path, into: Path, **environ: str) -> Path:
    """Build one wheel and give it the tag of the oldest system that it runs on.

    auditwheel reads the symbol versions of both libraries and finds that tag; libtorch.so, which
    is the user's, is left out of what it would otherwise copy into the wheel.
    """
    raw = ROOT / "build" / "raw-wheel"
    shutil.rmtree(raw, ignore_errors=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation"]
    run([*pip, "--quiet", "--no-deps", "--wheel-dir", raw, "."], **environ)
    (built,) = raw.glob("*.whl")
    into.mkdir(parents=True, exist_ok=True)
    before = set(into.glob("*.whl"))
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    auditwheel = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch.so"]
    run([*auditwheel, "-z", "9", "--wheel-dir", into, built], **environ, **tools)
    (wheel,) = set(into.glob("*.whl")) - before
    if wheel.stat().st_size > MAX_BYTES:
        sys.exit(f"{wheel.name} has {wheel.stat().st_size} bytes; {MAX_BYTES} are the limit")
    return wheel


def main(argv: Sequence[str] | None = None) -> int:
    """Build everything and print what was built."""
    parser = argparse.ArgumentParser(description="build the wheels and the source archive")
    parser.add_argument(
        "--python",
        nargs="*",
        metavar="EXE",
        help="interpreters for wheels with the NumPy module (default: all found here; "
        "none after the option: only the wheel for every Python)",
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="default: dist/")
    arguments = parser.parse_args(argv)
    dist: Path = arguments.dist.resolve()
    os.umask(0o022)  # the modes of files are in the archive too
    os.chdir(ROOT)
    headers = runpy.run_path("setup.py", run_name="setup")["torch_include"]()
    if headers is None:
        sys.exit("no torch headers found: install torch or set PE_TORCH_INCLUDE")
    environ = {"SOURCE_DATE_EPOCH": epoch(), "PE_TORCH_INCLUDE": str(headers)}
    named = arguments.python
    pythons = list(at_hand()) if named is None else [Path(shutil.which(p) or p) for p in named]
    builders = [builder(python) for python in pythons]
    for folder in (dist, dist / "cpython"):
        for old in (*folder.glob("*.whl"), *folder.glob("*.tar.gz")):
            old.unlink()
    wheels = [build_wheel(Path(sys.executable), dist, PE_HOST="0", **environ)]
    for python in builders:
        wheels.append(build_wheel(python, dist / "cpython", PE_HOST="1", **environ))
    run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", dist], **environ)
    print(f"SOURCE_DATE_EPOCH={environ['SOURCE_DATE_EPOCH']}")
    for path in (*wheels, *dist.glob("*.tar.gz")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest}  {path.stat().st_size:>9,}  {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
