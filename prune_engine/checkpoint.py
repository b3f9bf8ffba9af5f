# SPDX-License-Identifier: Apache-2.0
"""One file that holds a whole run, written so that it is always whole: the old or the new."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import Saved
from prune_engine.epoch.state_file import read_file
from prune_engine.errors import StateMismatchError
from prune_engine.plain import plain
from prune_engine.sharding import parts

FORMAT = "prune_engine checkpoint 1"


class Stateful(Protocol):
    """What has a state: an engine."""

    buffer: ScoreBuffer

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank, or a rank's part of it."""
        ...

    def load_state_dict(self, saved: Saved) -> None:
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

    With ``shard_scores`` every rank writes its part beside the file, as ``NAME.SET-RANK-of-SIZE``,
    and rank 0 the file that names the set once all parts are whole: on a file system that all ranks
    see. The set before is removed then. It is saved where this returns, on any rank.

    Args:
        engine: the engine.
        path: the file; its folder must exist.
        extra: such as ``{"model": model.state_dict(), "optimizer": optimizer.state_dict()}``:
            tensors and plain data, the same on every rank. Model and engine belong in one file: of
            two, one may be a checkpoint older than the other after a crash.
        process_group: the engine's.

    Raises:
        TypeError: ``extra`` is no mapping, or another argument is of the wrong kind.
        ValueError: ``extra`` holds what ``weights_only=True`` does not load; ``path`` is untouched.
        OSError: the disk is full, or the folder is missing or read-only; ``path`` is untouched.
            With ``shard_scores`` all ranks raise where one cannot write. A file system that cannot
            flush a folder is none of these: the file is whole there as well.

    Example:
        >>> import tempfile, prune_engine as pe
        >>> engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(engine, folder + "/run.pt", extra={"step": 7})
        ...     load_state(engine, folder + "/run.pt")
        {'step': 7}
    """
    if extra is not None and not isinstance(extra, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"extra must be a mapping, got {type(extra).__name__}")
    _check_call(engine, path)
    content = {"format": FORMAT, "engine": engine.state_dict(), "extra": plain(dict(extra or {}))}
    parts.write(Path(path), content, engine.buffer.device, process_group)


def load_state(
    engine: Stateful, path: str | os.PathLike[str], *, process_group: Any = None
) -> dict[str, Any]:
    """Restore an engine from a file of ``save_state``; every rank reads it.

    Of parts, a rank reads those with samples that it owns. They may be of any number of ranks, and
    scores that were divided when they were saved need not be now, nor the other way round.

    Args:
        engine: made with the same arguments, in any world size.
        path: the file.
        process_group: the engine's; where its scores are divided, this is a collective.

    Returns:
        ``extra``, with its tensors on the cpu; empty for a file of ``torch.save`` of
        ``engine.state_dict()``, which is read too.

    Raises:
        TypeError: an argument is of the wrong kind.
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        StateMismatchError: it is torn, foreign, of another run or not whole: a part is missing or
            of another set. The engine has not changed, on any rank.

    Example:
        >>> import prune_engine as pe
        >>> engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=2)
        >>> try:
        ...     load_state(engine, "run.pt")
        ... except FileNotFoundError:
        ...     print("a fresh run")
        a fresh run
    """
    _check_call(engine, path)
    file, buffer = Path(path), engine.buffer
    saved, extra = parts.read(lambda: _read_state(file, buffer), file, buffer, process_group)
    try:
        engine.load_state_dict(saved)
    except StateMismatchError as error:
        raise StateMismatchError(f"{file}: {error}") from error
    return extra


def _check_call(engine: object, path: object) -> None:
    """Refuse a model for an engine, and what names no file."""
    if isinstance(engine, type) or not isinstance(getattr(engine, "buffer", None), ScoreBuffer):
        raise TypeError(f"engine must be a PruneEngine, got {engine!r}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a Path, got {path!r}")


def _read_state(file: Path, buffer: ScoreBuffer) -> tuple[Saved, dict[str, Any]]:
    """Read what an engine with this buffer needs of a file and its parts."""
    if not file.is_file():
        raise FileNotFoundError(f"path: no file {file}")
    loaded = read_file(file)
    content = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
    if content.get("format") == FORMAT and isinstance(content.get("engine"), dict):
        return content["engine"], parts.extra_of(file, content)
    if isinstance(content.get("buffer"), dict):
        return content, {}
    return parts.read_set(file, content, buffer)
