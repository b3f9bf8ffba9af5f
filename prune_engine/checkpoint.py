# SPDX-License-Identifier: Apache-2.0
"""One file that holds a whole run, written so that it is always whole: the old or the new."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from prune_engine import distributed
from prune_engine.types import StateMismatchError

FORMAT = "prune_engine checkpoint 1"


class Stateful(Protocol):
    """What has a state: an engine."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank."""
        ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state, all or nothing."""
        ...


def save_state(
    engine: Stateful,
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    process_group: Any = None,
) -> None:
    """Save an engine, and what must be of the same step, in one file.

    The file is written beside ``path``, read back, flushed to the disk and then renamed: a process
    killed at any moment leaves the previous file whole. (It may leave a ``.NAME.PID.tmp`` as well,
    which nothing reads.) With several ranks this is a collective, and rank 0 writes.

    Args:
        engine: the engine.
        path: the file; its folder must exist.
        extra: such as ``{"model": model.state_dict(), "optimizer": optimizer.state_dict()}``:
            tensors and plain data, the same on every rank. Model and engine belong in one file: of
            two, one may be a checkpoint older than the other after a crash.
        process_group: the engine's.

    Raises:
        ValueError: ``extra`` holds what ``weights_only=True`` does not load, or the engine's scores
            are divided among the ranks; ``path`` is untouched.
        OSError: the disk is full, or the folder is missing; ``path`` is untouched.

    Example:
        >>> import tempfile, prune_engine as pe
        >>> engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(engine, folder + "/run.pt", extra={"step": 7})
        ...     load_state(engine, folder + "/run.pt")
        {'step': 7}
    """
    saved = engine.state_dict()
    if "first" in saved["buffer"]:
        raise ValueError(
            "engine must hold all scores, got one with shard_scores=True: save engine.state_dict() "
            "of each rank in a file of its own, and restore from the list of these parts"
        )
    content = {"format": FORMAT, "engine": saved, "extra": dict(extra or {})}
    if distributed.world(process_group)[0] == 0:
        replace_file(Path(path), content)


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


def load_state(engine: Stateful, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Restore an engine from a file of ``save_state``; every rank reads it.

    Args:
        engine: made with the same arguments, in any world size.
        path: the file.

    Returns:
        ``extra``, with its tensors on the cpu; empty for a file of ``torch.save`` of
        ``engine.state_dict()``, which is read too.

    Raises:
        FileNotFoundError: there is no such file.
        StateMismatchError: it is torn, foreign or of another run; the engine has not changed.

    Example:
        >>> import prune_engine as pe
        >>> engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=2)
        >>> try:
        ...     load_state(engine, "run.pt")
        ... except FileNotFoundError:
        ...     print("a fresh run")
        a fresh run
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: no file {file}")
    loaded = read_file(file)
    content = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
    if content.get("format") == FORMAT and isinstance(content.get("engine"), dict):
        saved, extra = content["engine"], content["extra"]
    elif isinstance(content.get("buffer"), dict):
        saved, extra = content, {}
    else:
        raise StateMismatchError(f"{file} holds no state of an engine")
    try:
        engine.load_state_dict(saved)
    except StateMismatchError as error:
        raise StateMismatchError(f"{file}: {error}") from error
    return cast(dict[str, Any], extra)
