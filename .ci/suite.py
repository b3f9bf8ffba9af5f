# SPDX-License-Identifier: Apache-2.0
"""Run the tests against an installed wheel: ``python .ci/suite.py WHEEL [-- pytest arguments]``.

The wheel goes into an environment of its own, which borrows the other packages of the interpreter
named by ``--python``; the tests run in a copy of the tree without the package
(``make test-wheel``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("tests", "csrc", "bench", ".ci", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FILES = ("Makefile", "LICENSE", "pyproject.toml", "setup.py", "MANIFEST.in", "constraints.txt")
# What torchrun is tested with. A folder without modules does not hide the installed package.
PAGES = ("prune_engine/data/README.md",)
# These judge the source tree or build from it; nothing of an installed wheel is in them.
OF_THE_TREE = (
    "test_layout.py",
    "test_cross_entropy_emulated.py",
    "test_cuda_build.py",
    "test_cuda_emulated.py",
    "test_guide.py",
    "test_moments_emulated.py",
    "test_release.py",
    "test_semantics.py",
    "test_setup.py",
    "test_toolkit.py",
    "test_wheel.py",
    "test_wheels.py",
)
# A py3-none wheel has no NumPy module: what is about it cannot pass.
OF_THE_HOST = ("test_host.py", "test_host_workers.py", "test_stream.py", "test_docs.py")
NAMED_HOST = (
    "the_host_module or readme_has_python_blocks or python_symbols"
    " or name_no_folder_of_the_build_machine"
)
# All of them: an environment may see those of the Python that it was made from.
SITES = (
    "import sys;"
    "print(*(p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))), sep='\\n')"
)
WHERE = "import prune_engine; print(prune_engine.__file__)"


def say(command: Sequence[str | Path], cwd: Path) -> str:
    """Run a command without anything of the source on the path; return what it prints."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = list(map(str, command))
    return subprocess.run(
        words, cwd=cwd, env=environ, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def environment(python: Path, wheel: Path, home: Path) -> Path:
    """Install a wheel beside the packages of an interpreter; return the python that sees both."""
    say([python, "-m", "venv", "--without-pip", home], home.parent)
    inside = home / "bin" / "python"
    # Added by a .pth file, the borrowed packages come after the wheel, and no .pth of theirs (an
    # editable installation of this very package) is read.
    borrowed = say([python, "-c", SITES], home)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(borrowed, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", inside]
    say([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel.resolve()], home)
    found = Path(say([inside, "-c", WHERE], home).strip())
    if site not in found.parents:
        sys.exit(f"the tests would not be of the wheel: prune_engine is {found}")
    return inside


def main(argv: Sequence[str] | None = None) -> int:
    """Return pytest's exit code."""
    parser = argparse.ArgumentParser(description="run the tests against an installed wheel")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), metavar="EXE")
    parser.epilog = "what follows -- goes to pytest"
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    given = words[end + 1 :]
    arguments = parser.parse_args(words[:end])
    wheel: Path = arguments.wheel
    ignored = [*OF_THE_TREE]
    if "-py3-none-" in wheel.name:
        ignored += OF_THE_HOST
        given = ["-k", f"not ({NAMED_HOST})", *given]
    # Ended from outside, it still removes its folder.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        tree, home = Path(folder) / "tree", Path(folder) / "env"
        tree.mkdir()
        python = environment(arguments.python.absolute(), wheel, home)
        for name in (*COPIED, *FILES, *PAGES):
            source = ROOT / name
            hidden = shutil.ignore_patterns("*.so", "__pycache__", ".*_cache")
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=hidden)
            else:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, tree / name)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--ignore-glob=*/{name}" for name in ignored]
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run([*map(str, command), *given], cwd=tree, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
