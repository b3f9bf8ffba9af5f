# SPDX-License-Identifier: Apache-2.0
"""What a policy must be to be run, checked before anything is trained, and what it must return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, cast, get_args

from torch import Tensor

from prune_engine.epoch.policy import Policy
from prune_engine.ops.rule import AnyRule, Selection

RULES: tuple[type, ...] = get_args(AnyRule)


def check_policy(policy: object) -> None:
    """Refuse what cannot be told, compared and saved, where the engine is made.

    Args:
        policy: must be a ``Policy`` whose ``describe()`` is plain data: a frozen dataclass of
            numbers, strings, tuples and ``PerSample``, or one with a ``describe`` of its own.

    Raises:
        TypeError: it is not.

    Example:
        >>> from prune_engine import KeepAll
        >>> check_policy(KeepAll())
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, such as InfoBatch(), got {policy!r}")
    name = type(policy).__name__
    if type(policy).describe is Policy.describe:
        parameters: Any = getattr(type(policy), "__dataclass_params__", None)
        # A dataclass that a base class was does not know the fields of this one.
        own = is_dataclass(policy) and "__dataclass_fields__" in vars(type(policy))
        if not own or not parameters.frozen:
            raise TypeError(
                f"policy must be a frozen dataclass or have a describe() of its own, got {name}: "
                "write @dataclass(frozen=True) above it"
            )
    described = cast("object", policy.describe())
    if not isinstance(described, dict):
        raise TypeError(f"describe() of {name} must return a dict, got {type(described).__name__}")
    for parameter, value in cast("dict[Any, Any]", described).items():
        _check_plain(f"{parameter} of {name}", value)
    try:
        hash(policy)
    except TypeError as error:
        raise TypeError(
            f"policy must have a hash: take tuples for lists in {name} ({error})"
        ) from None


def _check_plain(name: str, value: object) -> None:
    """Refuse a parameter that a state could not hold or compare."""
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, tuple | list):
        for entry in cast("list[object]", value):
            _check_plain(name, entry)
        return
    if isinstance(value, Mapping):
        for entry in cast("Mapping[Any, object]", value).values():
            _check_plain(name, entry)
        return
    hint = ": wrap it in PerSample" if isinstance(value, Tensor) or hasattr(value, "dtype") else ""
    raise TypeError(
        f"{name} must be a number, a string, None or a tuple of such, got "
        f"{type(value).__name__}{hint}"
    )


def check_rule(policy: Policy, rule: object, epoch: int) -> AnyRule:
    """Refuse what a policy's ``rule`` must not return.

    Args:
        policy: whose.
        rule: what came.
        epoch: the epoch that it is for.

    Returns:
        The same.

    Raises:
        TypeError: it is no rule.

    Example:
        >>> from prune_engine import KeepAll
        >>> from prune_engine.ops.rule import TopRule
        >>> check_rule(KeepAll(), TopRule(3), 0)
        TopRule(k=3, cut=0)
    """
    if isinstance(rule, RULES):
        return cast("AnyRule", rule)
    hint = (
        ": wrap the classes, Selection(classes, weight_table())" if isinstance(rule, Tensor) else ""
    )
    names = ", ".join(kind.__name__ for kind in RULES[:-1])
    raise TypeError(
        f"rule() of {type(policy).__name__} must return a {names} or {Selection.__name__}, got "
        f"{type(rule).__name__} for epoch {epoch}{hint}"
    )
