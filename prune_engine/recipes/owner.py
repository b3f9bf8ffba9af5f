# SPDX-License-Identifier: Apache-2.0
"""Who owns a run folder: one process at a time, by a lock that names it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, cast

LOCK = "run.lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def owned(folder: Path) -> Generator[None, None, None]:
    """Own a run folder while the body runs.

    The kernel holds the lock and lets go of it when the process ends, however it ends: what a
    killed run left on this host is no obstacle. What one of another host left is, for a file system
    need not carry locks from host to host.

    Args:
        folder: of the run; made if missing.

    Raises:
        ValueError: another run owns it; the message names its process, its host and the way out.
        OSError: the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, owned(Path(folder)):
        ...     [path.name for path in Path(folder).iterdir()]
        ['run.lock']
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = _open(path)
    with file:
        found = _read(file)
        if (
            not _taken(file, found)
            or found.get("host", socket.gethostname()) != socket.gethostname()
        ):
            raise ValueError(_words(folder, found))
        file.seek(0)
        file.truncate()
        json.dump(_self(), file)
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: nobody waits for this file


def _open(path: Path) -> IO[str]:
    """Open the lock file, making it where there is none, without a look at what it holds."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")


def _taken(file: IO[str], found: dict[str, Any]) -> bool:
    """Take the kernel's lock on a file that is still the one of its name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return not _alive(found.get("process"))
    return os.fstat(file.fileno()).st_nlink > 0  # else its owner has ended between the two calls


def _alive(process: object) -> bool:
    """Say whether a process of this host runs, where the file system has no locks to ask."""
    if not isinstance(process, int) or process < 1:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(file: IO[str]) -> dict[str, Any]:
    try:
        found = json.load(file)
    except ValueError:  # empty, or being written
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _self() -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "began": now}


def _words(folder: Path, found: dict[str, Any]) -> str:
    who = f"process {found.get('process', 'unknown')} on {found.get('host', 'this host')}"
    return (
        f"out: {folder} belongs to a run that has not ended ({who}, since "
        f"{found.get('began', 'a moment ago')}): give another --out, or, if it has ended, remove "
        f"{folder / LOCK}"
    )
