# SPDX-License-Identifier: Apache-2.0
"""What goes to a GPU machine and what comes back: the pack, the calls to send, the results."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu import ledger, tables
from gpu.calls import CALLS, SECONDS

LIBRARY, BUILD_INFO = Path("prune_engine/_ops.so"), Path("prune_engine/_build_info.json")
OLD = Path("build/sitting/old/_ops.so")
PACK = Path("build/sitting/sitting.tar.gz")
LIMIT_MIB, COMMAND_CHARACTERS = 64, 2000
MARGIN_SECONDS = 15  # above a call's own: it ends by itself, with its table
ARCH = "90"


class NotReady(Exception):
    """A sitting packed now would be wasted."""


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise NotReady(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def tree(root: Path) -> list[Path]:
    """Tracked files and those that git would not ignore."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = [Path(name) for name in sorted(set(listed.split("\0"))) if name]
    return [path for path in paths if (root / path).is_file()]


def check_library(root: Path) -> None:
    """Refuse a library that is missing, for another GPU, or older than its sources.

    Raises:
        NotReady: with what to do.
    """
    if not (root / LIBRARY).is_file() or not (root / BUILD_INFO).is_file():
        raise NotReady(f"{LIBRARY} and {BUILD_INFO} must be there: run make nvcc build")
    archs = json.loads((root / BUILD_INFO).read_text(encoding="utf-8"))["cuda_archs"]
    if ARCH not in [arch.removesuffix("+PTX") for arch in archs]:
        raise NotReady(f"{LIBRARY} must have code for sm_{ARCH}, got {archs}: run make nvcc build")
    built = (root / LIBRARY).stat().st_mtime
    sources = [
        path for path in (root / "csrc").rglob("*") if re.search(r"\.(cpp|cu|cuh|h)$", path.name)
    ]
    newer = sorted(path for path in sources if path.stat().st_mtime > built)
    if newer:
        raise NotReady(f"{LIBRARY} is older than {newer[0].relative_to(root)}: run make build")


def pack(root: Path, old: Path | None) -> list[dict[str, Any]]:
    """Make the archive of what travels and the calls that go with it.

    Args:
        root: of the repository.
        old: an older ``_ops.so`` to be compared with.

    Returns:
        A dictionary for each call: the command, the ignored paths that it needs, its limit.

    Raises:
        NotReady: nothing has been packed.
    """
    check_library(root)
    carried = [LIBRARY, BUILD_INFO]
    if old is not None:
        (root / OLD).parent.mkdir(parents=True, exist_ok=True)
        if old.resolve() != (root / OLD).resolve():
            shutil.copyfile(old, root / OLD)
    if (root / OLD).is_file():
        carried.append(OLD)
    paths = [*tree(root), *carried]
    size = sum((root / path).stat().st_size for path in paths)
    if size > LIMIT_MIB << 20:
        raise NotReady(f"{size / 2**20:.1f} MiB would travel, more than {LIMIT_MIB}")
    target = root / PACK
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:gz") as archive:
        for path in paths:
            archive.add(root / path, path)
    head = _git(root, "rev-parse", "--short=12", "HEAD").strip()
    changed = _git(root, "status", "--porcelain", "--untracked-files=no").strip()
    return calls(head + "+changes" * bool(changed), [path.as_posix() for path in carried])


def calls(commit: str, carry: Sequence[str]) -> list[dict[str, Any]]:
    """The three commands, ready to send."""
    found: list[dict[str, Any]] = []
    for number in CALLS:
        command = f"python3 bench/sitting.py {number} --commit {commit}"
        if number == 3 and OLD.as_posix() in carry:
            command += f" --old {OLD}"
        if len(command) > COMMAND_CHARACTERS:
            raise NotReady(f"a command may have {COMMAND_CHARACTERS} characters")
        limit = int(SECONDS[number]) + MARGIN_SECONDS
        found.append({"command": command, "carry": list(carry), "timeout_s": limit})
    return found


def take(folders: Sequence[Path], results: Path) -> Path:
    """Put what came back among the results and make its tables.

    Args:
        folders: with ``call-<n>.json`` files, anywhere below; a later file of a call replaces an
            earlier one.
        results: where ``<device>-<date>-call-<n>.json`` and ``<device>-<date>.md`` go.

    Returns:
        The Markdown file.

    Raises:
        NotReady: there is nothing to take, or the calls are not of one sitting.
        ValueError: a file is not a call's.
    """
    found: dict[int, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("call-*.json")):
            document = ledger.load(path)
            number = document["call"]
            if number not in found or document["started"] >= found[number]["started"]:
                found[number] = document
    if not found:
        raise NotReady(f"no call-<n>.json below {', '.join(map(str, folders))}")
    documents = [found[number] for number in sorted(found)]
    told = {(d["facts"].get("device"), d["facts"].get("library_sha256")) for d in documents}
    if len(told) > 1:
        raise NotReady(f"the calls are not of one GPU and one library: {sorted(map(str, told))}")
    device = str(documents[0]["facts"].get("device", "unknown")).lower()
    date = documents[0]["started"][:10]
    stem = f"{re.sub(r'[^a-z0-9]+', '-', device).strip('-')}-{date}"
    results.mkdir(parents=True, exist_ok=True)
    for document in documents:
        text = json.dumps(document, indent=1)
        flat = re.sub(r"\[[-+.\deE,\snul]*\]", lambda m: re.sub(r"\s+", " ", m.group()), text)
        ledger.replace(results / f"{stem}-call-{document['call']}.json", flat + "\n")
    page = results / f"{stem}.md"
    ledger.replace(page, f"# {stem}\n\n{tables.markdown(documents)}")
    return page
