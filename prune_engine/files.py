# SPDX-License-Identifier: Apache-2.0
"""Files written whole: to a temporary neighbour, then moved into place."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        with naming(path):
            temporary.write_bytes(data)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Generator[None, None, None]:
    """Name a file in errors of the body: a disk that is full does not say which it was."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_integers(data: bytes, path: Path) -> NDArray[np.integer[Any]]:
    """Read an ``.npy`` of integers.

    Args:
        data: what the file holds.
        path: of the file, for the message.

    Returns:
        An array of one dimension or more.

    Raises:
        ValueError: it is empty, torn, a single number, or of something else than integers.
    """
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an .npy file of integers ({error})") from error
    if array.ndim == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: expected an array of integers, got {array.dtype} of shape {array.shape}"
        )
    return array


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
