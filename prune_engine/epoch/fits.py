# SPDX-License-Identifier: Apache-2.0
"""What a saved state must look like, piece by piece: a phrase for each that does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine.bands import check_weight_table, weighed_classes

MANY = 2**62  # more than any run counts, and within int64 together with as many again


def int_problems(state: Mapping[Any, Any], limits: Mapping[Any, int]) -> list[str]:
    """List the numbers of a state that are missing, no ints or out of range.

    Args:
        state: what was saved.
        limits: the largest allowed number by name; the smallest is 0.

    Returns:
        One phrase per difference.

    Example:
        >>> int_problems({"epoch": -1, "steps": 3}, {"epoch": 9, "steps": 9})
        ['epoch: expected an int in 0..9, got -1']
    """
    problems: list[str] = []
    for name, most in limits.items():
        came = state.get(name)
        if isinstance(came, bool) or not isinstance(came, int) or not 0 <= came <= most:
            problems.append(f"{name}: expected an int in 0..{most}, got {shown(came)}")
    return problems


def tensor_problems(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """List the tensors of a state that are missing, of another shape or dtype, or no plain data.

    Args:
        state: what was saved.
        expected: tensors by name.

    Returns:
        One phrase per difference.

    Example:
        >>> tensor_problems({}, {"alive": torch.zeros(2)})
        ['alive: expected a tensor, got NoneType']
    """
    problems: list[str] = []
    for name, have in expected.items():
        came = state.get(name)
        want = f"{name}: expected {have.dtype} {tuple(have.shape)}"
        if not isinstance(came, Tensor):
            problems.append(f"{name}: expected a tensor, got {type(came).__name__}")
        elif came.shape != have.shape or came.dtype != have.dtype:
            problems.append(f"{want}, got {came.dtype} {tuple(came.shape)}")
        elif came.layout != torch.strided or came.is_meta or came.requires_grad:
            kind = (
                "no data" if came.is_meta else "a gradient" if came.requires_grad else came.layout
            )
            problems.append(f"{want}, got one with {kind}")
    return problems


def class_problems(name: str, classes: Tensor, count: int) -> list[str]:
    """List a phrase where weight classes are not below a number: the others have no weight."""
    most = int(classes.max()) if classes.numel() else 0
    return [f"{name}: expected classes in 0..{count - 1}, got {most}"] if most >= count else []


def weighed(table: Tensor) -> int:
    """Return how many classes of a table have a weight, with that of the dropped."""
    return weighed_classes(tuple(float(weight) for weight in table))


def table_problems(name: str, table: Tensor) -> list[str]:
    """List a phrase where a weight table is none that a rule can have."""
    try:
        check_weight_table(tuple(float(weight) for weight in table))
    except ValueError as error:
        return [f"{name}: {error}"]
    return []


def differs(came: object, expected: object) -> bool:
    """Tell whether something is another value, whatever it says of a comparison.

    Args:
        came: anything, such as a tensor, which compares by element.
        expected: plain data.

    Returns:
        Whether it is not that.

    Example:
        >>> differs(3, 3), differs(torch.zeros(2), 3), differs({"a": torch.zeros(2)}, {"a": 3})
        (False, True, True)
    """
    if isinstance(came, Tensor):
        return True
    try:
        return bool(came != expected)
    except (RuntimeError, TypeError, ValueError):
        return True


def number_problems(name: str, came: Any, kind: type) -> list[str]:
    """List a phrase where something is not a number, or not a truth value, of a report.

    Args:
        name: of the number.
        came: what was saved.
        kind: ``int``, ``float`` or ``bool``.

    Returns:
        None or one phrase.

    Example:
        >>> number_problems("dsi", "x", float), number_problems("dsi", 0, float)
        (["dsi: expected float, got 'x'"], [])
    """
    fits = isinstance(came, int | float if kind is float else kind)
    if fits and (kind is bool or not isinstance(came, bool)):
        return []
    return [f"{name}: expected {kind.__name__}, got {shown(came)}"]


def shown(came: object, *, whole: bool = False) -> str:
    """Return a value for a message: what is plain as it prints, anything else by its type."""
    if isinstance(came, Tensor):
        return "Tensor"
    if came is None or isinstance(came, bool | int | float | str) or whole:
        text = repr(came)
        return text if whole or len(text) <= 40 else f"{text[:37]}..."
    return type(came).__name__


def rows(value: object) -> tuple[object, ...]:
    """Return the rows of a tuple, or none where it is no tuple.

    Args:
        value: what a state has under ``threshold``, ``history`` or ``ahead``.

    Returns:
        The same, or ().

    Example:
        >>> rows((1, 2)), rows(None)
        ((1, 2), ())
    """
    return cast("tuple[object, ...]", value) if isinstance(value, tuple) else ()


def row(value: object) -> Mapping[str, Any]:
    """Return a row that is a mapping; one without anything in place of another."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
