# SPDX-License-Identifier: Apache-2.0
"""A policy written on the command line: ``name(keep=0.3)`` or ``mymodule:MyPolicy(keep=0.3)``."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from prune_engine.epoch.fit_policy import check_policy
from prune_engine.policies import TABLE, Policy

T = TypeVar("T")
FORM = "name(parameter=value, ...) of a policy here, or module:Class(parameter=value, ...)"


def is_spec(text: str) -> bool:
    """Say whether a text is a call or names a module, and not just a name.

    Args:
        text: what was given as a policy.

    Returns:
        Whether ``read_policy`` is for it.

    Example:
        >>> is_spec("infobatch"), is_spec("orderdp(keep=0.3)"), is_spec("mine:Mine")
        (False, True, True)
    """
    return ":" in text or "(" in text


def read_policy(text: str) -> Policy:
    """Make the policy that a text describes; its arguments are literals, and nothing is evaluated.

    Args:
        text: such as ``"orderdp(keep=0.3)"``, of ``policies.TABLE``, or ``"mymodule:MyPolicy"``;
            the module is imported, from the current folder too.

    Returns:
        The policy, checked.

    Raises:
        ValueError: the text has another form, an argument is no literal or does not fit, or there
            is no such policy.

    Example:
        >>> read_policy("orderdp(0.3, pool=0.75)").pool
        0.75
    """
    module, _, call = text.rpartition(":")
    name, positional, named = read_call(text, call)
    kind = _find(text, module, name)

    def make(*given: Any, **words: Any) -> Policy:
        policy = kind(*given, **words)
        check_policy(policy)
        return policy

    return make_called(text, make, positional, named)


def make_called(
    text: str, make: Callable[..., T], positional: list[Any], named: dict[str, Any]
) -> T:
    """Make what a text describes of its arguments, and say which text it was that does not fit."""
    try:
        return make(*positional, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy: {text!r} cannot be made: {error}") from error


def spec_name(text: str) -> str:
    """Return a name for tables and folders.

    Args:
        text: a policy.

    Returns:
        Letters, digits, dots and underscores.

    Example:
        >>> spec_name("mymodule:MyPolicy(keep=0.3)")
        'mymodule_MyPolicy_keep_0.3'
    """
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def read_call(text: str, call: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Read a name and its literal arguments."""
    try:
        found = ast.parse(call.strip(), mode="eval").body
        if isinstance(found, ast.Name):
            return found.id, [], {}
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Name):
            if any(each.arg is None for each in found.keywords):
                raise ValueError("** is not a literal")
            named = {str(each.arg): ast.literal_eval(each.value) for each in found.keywords}
            return found.func.id, [ast.literal_eval(each) for each in found.args], named
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"policy: expected {FORM}, of literals, got {text!r}: {error}") from error
    raise ValueError(f"policy: expected {FORM}, got {text!r}")


def _find(text: str, module: str, name: str) -> Any:
    """Return the class, of the table or of a module."""
    if not module:
        if name not in TABLE:
            raise ValueError(f"policy: expected one of {', '.join(TABLE)}, got {name!r}")
        return TABLE[name]
    if module.startswith("."):
        raise ValueError(f"policy: {text!r} cannot be found: name the module from its package on")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        kind: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy: {text!r} cannot be found: {error}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(kind, type) or not issubclass(kind, Policy):
        raise ValueError(f"policy: {module}:{name} must be a Policy, got {kind!r}")
    return kind
