# SPDX-License-Identifier: Apache-2.0
"""The circumstances a number is worth nothing without: machine, versions, commit, load."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import harness
import numpy as np
import torch

import prune_engine as pe

REPOSITORY = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """The CPU's name as /proc/cpuinfo has it, else what `platform` knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        [git, "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str:
    """The commit of the working tree, with "+changes" if tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "none"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{head}+changes" if changed else head


def transparent_huge_pages() -> str:
    """The kernel's setting in force, for example "madvise"."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file():
        return "unknown"
    chosen = [word for word in setting.read_text().split() if word.startswith("[")]
    return chosen[0].strip("[]") if chosen else "unknown"


def describe() -> dict[str, str | int]:
    """All of it but the load, which is written down per table."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "last_level_cache_mib": harness.last_level_cache_mib(),
        "huge_pages": transparent_huge_pages(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "prune_engine": pe.__version__,
        "commit": commit(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
