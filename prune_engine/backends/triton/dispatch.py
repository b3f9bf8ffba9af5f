# SPDX-License-Identifier: Apache-2.0
"""The Triton operators under their public names, for code that ``torch.compile`` traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.library import Library

NAMESPACE = "prune_engine"


def register(operators: Mapping[str, Callable[..., Any]], key: str = "CUDA") -> Library | None:
    """Let ``torch.ops.prune_engine`` find these functions, where the library has no kernels.

    A traced step names operators, and only the dispatcher knows their kernels. The schemas and the
    fake kernels are those of the compiled library, so a graph is the same whoever serves it.

    Args:
        operators: name -> function with the operator's arguments.
        key: the dispatch key of the tensors.

    Returns:
        What keeps the registration alive; None where nothing was registered, because the library
        has kernels for the key, or is not built and there is nothing to trace.

    Example:
        >>> register({}, "CPU") is None
        True
    """
    try:
        from prune_engine.backends import native  # declares the operators
    except (ImportError, OSError):
        return None  # eager calls come to these functions directly; backends.load says the rest
    if native.has_kernel(f"{NAMESPACE}::observe", key):
        return None
    library = Library(NAMESPACE, "IMPL")
    for name, function in operators.items():
        library.impl(name, function, key)  # pyright: ignore[reportUnknownMemberType]
    return library
