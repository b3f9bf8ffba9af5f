# SPDX-License-Identifier: Apache-2.0
"""A fixed subset chosen by any score, and the file that takes it to any loader."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prune_engine.files import read_integers, write_bytes
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import plain

FORMAT = 1
KEEP = ("hard", "easy", "moderate")


def select_subset(
    scores: Tensor, k: int, keep: Literal["hard", "easy", "moderate"] = "hard"
) -> Tensor:
    """Choose k samples by their scores: exactly, ties to the smaller index.

    ``hard``: the k highest (EL2N and GraNd: Paul et al., NeurIPS 2021, section 3; forgetting:
    Toneva et al., ICLR 2019, section 4). ``easy``: the k lowest (better where data are scarce:
    Sorscher et al., NeurIPS 2022, section 2). ``moderate``: the k nearest to the median score
    (Moderate-DS: Xia et al., ICLR 2023, section 3, with the score for its distance).

    Args:
        scores: [N] floating, low = easy, such as ``engine.scores()``; inf is allowed, nan is not.
        k: how many, in 0..N.
        keep: which.

    Returns:
        int64 [k] on the device of the scores, ascending.

    Raises:
        TypeError: scores are not a floating tensor, or k is no int.
        ValueError: not a vector, a score is nan (never seen), or k or keep does not fit.

    Example:
        >>> scores = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.4])
        >>> [select_subset(scores, 2, keep).tolist() for keep in ("hard", "easy", "moderate")]
        [[0, 2], [1, 4], [2, 3]]
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(map(repr, KEEP))}, got {keep!r}")
    if not isinstance(scores, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"scores must be a tensor, got {type(scores).__name__}")
    k = plain(k)
    if isinstance(k, bool) or not isinstance(k, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"k must be an int, got {k!r}")
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating, got {scores.dtype}")
    if scores.dim() != 1:
        raise ValueError(f"scores must be a vector, got shape {tuple(scores.shape)}")
    if not 0 <= k <= scores.shape[0]:
        raise ValueError(f"k must be in 0..{scores.shape[0]}, got {k}")
    values = scores.detach().to(torch.float64)
    unseen = int(torch.isnan(values).sum())
    if unseen:
        raise ValueError(f"scores must not be nan, got {unseen} of them (samples never seen)")
    if keep == "moderate" and k:
        # The middle of the two middle ones, and no distance between equal infinities.
        ordered = torch.sort(values).values
        n = values.shape[0]
        low, high = ordered[(n - 1) // 2], ordered[n // 2]
        median = torch.where(low == high, low, low / 2 + high / 2)
        values = torch.where(values == median, 0.0, (values - median).abs())
    ranking = torch.sort(values, stable=True, descending=keep == "hard").indices
    return torch.sort(ranking[:k]).values


def save_subset(
    path: str | Path,
    indices: Tensor,
    num_samples: int,
    *,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a subset as ``.npy`` with a small JSON beside it, each whole or not at all.

    The array is little-endian int64 and holds no pickled object: NumPy, torch or anything else that
    knows the format reads it. The JSON (``PATH.json``) says of how many samples it is a subset and
    carries a SHA-256, so that the two cannot be mixed up.

    Args:
        path: ends in ``.npy``.
        indices: [k] integers in 0..num_samples-1, ascending, no two alike.
        num_samples: N of the whole data set.
        about: what else to note, ready for JSON: the score, the rule, the run.

    Returns:
        The path of the array.

    Raises:
        TypeError: the indices are no tensor of integers.
        ValueError: the name or an index does not fit; nothing is written then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = save_subset(f"{folder}/hard.npy", torch.tensor([1, 4]), 5)
        ...     load_subset(path, num_samples=5).tolist()
        [1, 4]
    """
    path, num_samples = Path(path), plain(num_samples)
    if path.suffix != ".npy":
        raise ValueError(f"path must end in .npy, got {path.name!r}")
    if not isinstance(indices, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"indices must be a tensor, got {type(indices).__name__}")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    array = np.array(host_ints(indices.detach().cpu()), dtype="<i8")
    _check_indices(array, num_samples, "indices")
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    data = content.getvalue()
    note = {
        "format": FORMAT,
        "num_samples": num_samples,
        "count": len(array),
        "sha256": hashlib.sha256(data).hexdigest(),
        "about": plain(dict(about or {})),
    }
    text = json.dumps(note, indent=2, allow_nan=False) + "\n"
    # The array first: without its note, or with the note of another, loading refuses it.
    write_bytes(path, data)
    write_bytes(_note_path(path), text.encode())
    return path


def load_subset(path: str | Path, *, num_samples: int | None = None) -> NDArray[np.int64]:
    """Read what ``save_subset`` wrote, and check it.

    Args:
        path: of the array.
        num_samples: N of the data set it will be used on, where known.

    Returns:
        int64 [k], ascending: for ``torch.utils.data.Subset(dataset, indices)`` or any loader.

    Raises:
        FileNotFoundError: the array or its JSON is missing.
        ValueError: they do not belong together, or to a data set of this size.

    Example:
        >>> load_subset("no/such.npy")
        Traceback (most recent call last):
        FileNotFoundError: subset: no file no/such.npy
    """
    path = Path(path)
    for file in (path, _note_path(path)):
        if not file.is_file():
            raise FileNotFoundError(f"subset: no file {file}")
    note = _read_note(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != note["sha256"]:
        raise ValueError(f"{path}: it is not the array that {_note_path(path).name} describes")
    if num_samples is not None and note["num_samples"] != num_samples:
        raise ValueError(
            f"{path}: a subset of {note['num_samples']} samples, expected one of {num_samples}"
        )
    array = read_integers(data, path).astype(np.int64, copy=False)
    _check_indices(array, note["num_samples"], str(path))
    return array


def _read_note(path: Path) -> dict[str, Any]:
    """Read the JSON beside an array, which must say what ``load_subset`` needs to know."""
    file = _note_path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, or of the JSON in it
        raise ValueError(f"{file}: not a JSON object ({error})") from error
    note = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if note.get("format") != FORMAT:
        raise ValueError(f"{file}: expected format {FORMAT}, got {note.get('format')!r}")
    for name, kind in (("sha256", str), ("num_samples", int)):
        if not isinstance(note.get(name), kind):
            raise ValueError(f"{file}: {name}: expected {kind.__name__}, got {note.get(name)!r}")
    return note


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _check_indices(array: NDArray[np.int64], num_samples: int, name: str) -> None:
    if array.ndim != 1 or (len(array) and not 0 <= array[0] <= array[-1] < num_samples):
        raise ValueError(f"{name} must be a vector of positions in 0..{num_samples - 1}")
    if not bool((np.diff(array) > 0).all()):
        raise ValueError(f"{name} must ascend, no two alike")
