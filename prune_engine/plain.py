# SPDX-License-Identifier: Apache-2.0
"""Arguments as plain Python: what is stored can be saved, compared and read back anywhere."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np

T = TypeVar("T")


def plain(value: T) -> T:
    """Return a value of Python's own types in place of one that only behaves like it.

    ``np.float64`` is a float, an enumeration of strings a string: they pass every check, but a file
    that holds one cannot be read with ``weights_only=True``.

    Args:
        value: a NumPy scalar, a subclass of bool, int, float or str, a tuple, list or dict of such,
            or anything else.

    Returns:
        The plain value; a float32 as the decimal that it prints as. Anything else as it came.

    Example:
        >>> import numpy as np
        >>> plain((np.float64(0.5), np.bool_(True), np.float32(0.1))), plain(None)
        ((0.5, True, 0.1), None)
    """
    return cast("T", _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        scalar = cast("Any", value)
        short = isinstance(value, np.floating) and scalar.itemsize < 8
        value = float(str(scalar)) if short else scalar.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if type(value) in (tuple, list):
        entries = cast("list[Any]", value)
        return type(entries)(_plain(entry) for entry in entries)
    if type(value) is dict:
        return {_plain(key): _plain(entry) for key, entry in cast("dict[Any, Any]", value).items()}
    return value


def store_plain(frozen: Any, *names: str) -> None:
    """Make some attributes of a frozen dataclass plain: the first thing in its ``__post_init__``.

    Args:
        frozen: the object.
        names: of its attributes; default all that were given.
    """
    for name in names or tuple(cast("dict[str, Any]", vars(frozen))):
        object.__setattr__(frozen, name, plain(getattr(frozen, name)))
