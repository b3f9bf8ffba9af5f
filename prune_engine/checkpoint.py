# SPDX-License-Identifier: Apache-2.0
"""One file that holds a whole run, written so that it is always whole: the old or the new.

Where the scores are divided, each rank writes a part and the file names the set of them. Parts of
another set have other names, and the file is written last: until then it names the set before.
"""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol, cast

import torch

from prune_engine.bands import StateMismatchError
from prune_engine.epoch import ranks
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import Saved
from prune_engine.files import naming, sync, sync_folder
from prune_engine.sharding.layout import edges
from prune_engine.sharding.run import assemble

FORMAT = "prune_engine checkpoint 1"
SET_FORMAT = "prune_engine set of parts 1"
PART_FORMAT = "prune_engine part 1"
SET_FACTS = ("set", "size", "num_samples")  # which parts there are, in numbers


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
        TypeError: ``extra`` is no mapping.
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
    saved, file = engine.state_dict(), Path(path)
    if "shards" in saved["buffer"]:
        _save_parts(saved, dict(extra or {}), file, engine.buffer.device, process_group)
    elif ranks.world(process_group)[0] == 0:
        _commit(file, {"format": FORMAT, "engine": saved, "extra": dict(extra or {})})


def _save_parts(
    saved: Mapping[str, Any], extra: dict[str, Any], file: Path, device: torch.device, group: Any
) -> None:
    """Write every rank's part, then the file that makes them the saved set."""
    rank, size = ranks.world(group)
    numbers = [0]

    def choose() -> None:
        if rank == 0:  # for all: the first number after those of any part that is there
            numbers.append(1 + max((number for number, _ in _parts(file)), default=0))

    def write() -> None:
        replace_file(part, {"format": PART_FORMAT, "set": number, "engine": saved})

    def commit() -> None:
        if rank == 0:
            facts = zip(SET_FACTS, (number, size, saved["num_samples"]), strict=True)
            _commit(file, {"format": SET_FORMAT, **dict(facts), "extra": extra}, number)

    def undo() -> None:  # nothing names these parts
        part.unlink(missing_ok=True)

    _together(choose, file, device, group)
    told = torch.tensor([max(numbers)], device=device)
    number = int(ranks.gather(told, group)[0].item())
    part = _part(file, number, rank, size)
    _together(write, file, device, group, undo)
    _together(commit, file, device, group)


def _commit(file: Path, content: Mapping[str, Any], number: int | None = None) -> None:
    """Write the file, then remove the parts of all sets but the one that it names."""
    replace_file(file, content)
    for other, part in _parts(file):
        if other != number:
            part.unlink(missing_ok=True)


def _together(
    work: Callable[[], None],
    file: Path,
    device: torch.device,
    group: Any,
    undo: Callable[[], None] | None = None,
) -> None:
    """Do something on every rank; where it fails on one, undo it on all, and all raise.

    A rank that is not told how the others fared must undo nothing: rank 0 may have been told, and
    have gone on to name the parts.
    """
    problem: Exception | None = None
    try:
        work()
    except Exception as error:
        problem = error
    failed = ranks.first_failure(problem, device, group)
    if failed is None:
        return
    if undo is not None:
        undo()
    raise problem or OSError(f"rank {failed} could not write its part of {file}")


def _part(file: Path, number: int, rank: int, size: int) -> Path:
    return file.with_name(f"{file.name}.{number}-{rank}-of-{size}")


def _parts(file: Path) -> list[tuple[int, Path]]:
    """List the parts that are there: of the saved set, and of others that were not finished."""
    name = re.compile(re.escape(file.name) + r"\.(\d+)-\d+-of-\d+")
    found = [(name.fullmatch(path.name), path) for path in file.parent.iterdir()]
    return [(int(match[1]), path) for match, path in found if match is not None]


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
    file, buffer = Path(path), engine.buffer
    saved: Saved = {}
    extra: dict[str, Any] = {}
    problem: OSError | StateMismatchError | None = None
    try:
        saved, extra = _read_state(file, buffer)
    except (OSError, StateMismatchError) as error:
        problem = error
    if buffer.shard is not None:
        ranks.fail_together(
            problem,
            lambda rank: StateMismatchError(f"{file}: rank {rank} could not read its samples"),
            buffer.device,
            process_group,
        )
    elif problem is not None:
        raise problem
    try:
        engine.load_state_dict(saved)
    except StateMismatchError as error:
        raise StateMismatchError(f"{file}: {error}") from error
    return extra


def _read_state(file: Path, buffer: ScoreBuffer) -> tuple[Saved, dict[str, Any]]:
    """Read what an engine with this buffer needs of a file and its parts."""
    if not file.is_file():
        raise FileNotFoundError(f"path: no file {file}")
    loaded = read_file(file)
    content = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
    if content.get("format") == FORMAT and isinstance(content.get("engine"), dict):
        return content["engine"], content["extra"]
    if isinstance(content.get("buffer"), dict):
        return content, {}
    if content.get("format") != SET_FORMAT:
        raise StateMismatchError(f"{file} holds no state of an engine")
    parts = _read_parts(file, content, buffer)
    return parts if buffer.shard is not None else assemble(parts, buffer), content["extra"]


def _read_parts(
    file: Path, facts: Mapping[str, Any], buffer: ScoreBuffer
) -> list[Mapping[str, Any]]:
    """Read the parts of a set that have samples of a buffer."""
    number, size, num_samples = (int(facts[name]) for name in SET_FACTS)
    if num_samples != buffer.num_samples:
        raise StateMismatchError(
            f"{file}: num_samples: expected {buffer.num_samples}, got {num_samples}"
        )
    own = buffer.owned
    parts: list[Mapping[str, Any]] = []
    ranges = enumerate(pairwise(edges(num_samples, size)))
    ranks = [q for q, (at, end) in ranges if max(at, own.start) < min(end, own.stop)]
    for rank in ranks or [0]:  # whoever owns nothing needs to know where the run is
        part = _part(file, number, rank, size)
        if not part.is_file():
            raise StateMismatchError(f"{file} has {size} parts, but there is no {part.name}")
        loaded = read_file(part)
        content = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
        if content.get("format") != PART_FORMAT or content.get("set") != number:
            raise StateMismatchError(f"{part} is no part of the set that {file} names")
        parts.append(content["engine"])
    return parts
