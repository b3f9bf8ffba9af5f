# SPDX-License-Identifier: Apache-2.0
"""One file of tensors and plain data, always whole: the old one or the new one."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from prune_engine.errors import StateMismatchError
from prune_engine.files import naming, sync, sync_folder
from prune_engine.lasting import lasting


def replace_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of tensors and plain data, whole or not at all.

    Args:
        path: the file.
        content: what it will hold.

    Raises:
        ValueError: it holds what ``weights_only=True`` does not load.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                _write(dict(content), file)
                file.flush()
                sync(file.fileno())
            try:
                read_file(temporary)
            except StateMismatchError as error:
                raise ValueError(f"extra must be tensors and plain data: {error}") from error
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)  # the rename itself must reach the disk


class _Sink:
    """A file that remembers why it could not be written, which torch says in words of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write with torch; its errors, which are of many kinds, become the two that are promised."""
    sink = _Sink(file)
    try:
        torch.save(content, cast("IO[bytes]", sink))
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if sink.error is not None:
            raise sink.error from error
        raise ValueError(f"extra must be tensors and plain data: {error}") from error


@lasting
def read_file(path: Path) -> Any:
    """Read a file of ``torch.save``, trusting neither its pickles nor its bytes.

    Args:
        path: the file.

    Returns:
        Tensors, on the cpu, and plain data.

    Raises:
        StateMismatchError: it is torn, damaged, not such a file, or holds more than data.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, for what is torn or another program's
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # it cannot be read, so nothing is known of what is in it
        raise StateMismatchError(f"{path} is torn, or no file of torch.save: {error}") from error
    raise StateMismatchError(f"{path} is damaged: the checksum of {damaged} is wrong")
