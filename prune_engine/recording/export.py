# SPDX-License-Identifier: Apache-2.0
"""A recording as a table that other tools read: one row per sample."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_engine.files import write_bytes
from prune_engine.recording.reader import Recording

Columns = dict[str, NDArray[Any]]


def export_scores(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a recording as a table of index, score, times_kept and times_seen.

    By ``index``, the position in the data set, it joins any other table: FiftyOne's samples, a
    CleanLab frame, a CSV of file names. A large set is a sample of the data set's positions.

    Args:
        path: the recording of ``engine.record``.
        out: a file whose name ends in ``.npz``, ``.csv`` or ``.parquet``.

    Returns:
        The file written, whole or not at all.

    Raises:
        TypeError: an argument names no file.
        FileNotFoundError: there is no recording.
        ValueError: the file is no recording, or ``out`` ends otherwise.
        ImportError: ``.parquet`` without pyarrow; the message names the extra.

    Example:
        >>> import tempfile, torch, prune_engine as pe
        >>> engine = pe.PruneEngine(2, pe.KeepAll(), num_epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     engine.record(folder + "/run.rec")
        ...     for index in engine.sampler():
        ...         _ = engine.observe(torch.ones(1), torch.tensor([index]))
        ...     _ = engine.end_epoch()
        ...     print(export_scores(folder + "/run.rec", folder + "/run.csv").read_text())
        index,score,times_kept,times_seen
        0,1.0625,1,1
        1,1.0625,1,1
        <BLANKLINE>
    """
    if not isinstance(out, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"out must be a string or a Path, got {out!r}")
    file = Path(out)
    if file.suffix not in WRITERS:
        raise ValueError(f"out must end in {', '.join(WRITERS)}, got {file.name!r}")
    recording = Recording(path)
    columns = {
        "index": recording.indices,
        "score": recording.last_scores(),
        "times_kept": recording.count("kept"),
        "times_seen": recording.count("seen"),
    }
    write_bytes(file, WRITERS[file.suffix](columns))
    return file


def _npz(columns: Columns) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **columns)
    return content.getvalue()


def _csv(columns: Columns) -> bytes:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns)]
    # A score that is missing is an empty field, as pandas and spreadsheets read it.
    lines += [
        f"{index},{'' if score != score else f'{score:.6g}'},{kept},{seen}"
        for index, score, kept, seen in rows
    ]
    return ("\n".join(lines) + "\n").encode()


def _parquet(columns: Columns) -> bytes:
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "out: .parquet needs pyarrow: pip install 'prune_engine[parquet]'"
        ) from error
    content = io.BytesIO()
    score = arrow.array(columns["score"], from_pandas=True)  # nan becomes null
    parquet.write_table(arrow.table({**columns, "score": score}), content)
    return content.getvalue()


WRITERS: dict[str, Callable[[Columns], bytes]] = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
