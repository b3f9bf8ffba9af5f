# SPDX-License-Identifier: Apache-2.0
"""Building the distribution as a user does, and environments away from the source."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EPOCH = "1700000000"
# What a reader of the README has before the block; at its end, what must have come of it.
BEFORE = """
import torch, prune_engine as pe
from torch.nn import functional as F
x = torch.randn(640, 8)
dataset = torch.utils.data.TensorDataset(x, x[:, :3].argmax(dim=1))
model, num_epochs = torch.nn.Linear(8, 3), 8
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
AFTER = """
print(pe.__file__, *(report.served for report in engine.history))
"""


def run(command: Iterable[str | Path], cwd: Path, **environ: str) -> str:
    """Run a command, without anything of the source on the path; return what it prints."""
    hidden = ("PYTHONPATH", "PE_", "TRITON_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env={**kept, **environ}, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def build_sdist(into: Path, root: Path = ROOT) -> Path:
    """Make the source archive of a tree."""
    egg_info = ["egg_info", "--egg-base", str(into)]  # not into the tree: nothing there changes
    command = [sys.executable, "setup.py", "--quiet", *egg_info, "sdist", "--dist-dir", str(into)]
    run(command, root)
    (archive,) = into.glob("*.tar.gz")
    return archive


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a source archive; return its folder."""
    with tarfile.open(archive) as opened:
        if hasattr(tarfile, "data_filter"):
            opened.extractall(into, filter="data")
        else:
            opened.extractall(into)
    (folder,) = into.iterdir()
    return folder


def build_wheel(tree: Path, into: Path, **environ: str) -> Path:
    """Build a wheel from a tree, offline, as on a cluster."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index"]
    options = ["--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", into, "."]
    run([*command, *options], tree, SOURCE_DATE_EPOCH=EPOCH, **environ)
    (wheel,) = into.glob("*.whl")
    return wheel


def requirements(names: Iterable[str], without: Iterable[str] = ()) -> set[str]:
    """Return the distributions that are needed by some, themselves included."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            key = re.sub(r"[-_.]+", "-", needed.name).lower()
            if wanted and key not in found and key not in without:
                waiting.add(key)
    return found


def environment(folder: Path, names: Iterable[str]) -> Path:
    """Make a virtual environment that holds some distributions of this one; return its python.

    They are linked, not installed: torch is large, and the environment has nothing else.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in names:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    return folder / "bin" / "python"


def install(wheel: Path, python: Path) -> None:
    """Install a wheel into an environment, from the file alone."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--no-index", "--no-deps", "--quiet", wheel], wheel.parent)


def check_readmes_loop(python: Path, cwd: Path) -> None:
    """Run the README's second block, the loop with the engine, in an environment."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    loop = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    assert "engine.observe(" in loop
    program = BEFORE + loop + AFTER
    file, *served = run([python, "-W", "error", "-c", program], cwd).split()
    assert Path(file).is_relative_to(python.parent.parent)
    first, *middle, last = map(int, served)
    assert first == last == 640, "the first epoch has no scores, the last keeps everything"
    assert all(64 <= number < 640 for number in middle)
