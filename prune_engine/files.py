# SPDX-License-Identifier: Apache-2.0
"""Files written whole: to a temporary neighbour, then moved into place."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What a file system says that cannot do it, or may not be asked: there is nothing to wait for.
NO_SYNC = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
    *(errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR),
}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Args:
        path: its folder is made if missing.
        data: the whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(descriptor: int) -> None:
    """Wait until a file or folder is on the disk, where its file system has such a thing.

    Args:
        descriptor: of the open file.

    Raises:
        OSError: the disk could not take it.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until what was renamed in a folder is so on the disk (see ``sync``).

    Args:
        folder: of the file; one that may be written and not listed is left alone.

    Raises:
        OSError: the disk could not take it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
