# SPDX-License-Identifier: Apache-2.0
"""One file of tensors and plain data, always whole: the old one or the new one."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prune_engine.errors import StateMismatchError


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
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        try:
            read_file(temporary)
        except StateMismatchError as error:
            raise ValueError(f"extra must be tensors and plain data: {error}") from error
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path) -> Any:
    """Read a file of ``torch.save``, trusting neither its pickles nor its bytes.

    Args:
        path: the file.

    Returns:
        Tensors, on the cpu, and plain data.

    Raises:
        StateMismatchError: it is torn, damaged, not such a file, or holds more than data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for what is torn or another program's
        raise StateMismatchError(f"{path} is torn, or no file of torch.save: {error}") from error
    raise StateMismatchError(f"{path} is damaged: the checksum of {damaged} is wrong")
