# SPDX-License-Identifier: Apache-2.0
"""Tensors that last: they outlive ``torch.inference_mode()``, and stay where they are for life."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Make what a function keeps or hands out fit for training, also under inference mode.

    A tensor made under ``torch.inference_mode()`` can neither be changed outside of it nor be saved
    for a backward pass: an engine made in a validation pass would fail at its first step.

    Args:
        function: it makes tensors that need no gradient.

    Returns:
        The function; under inference mode it runs without it, and without gradients.

    Example:
        >>> with torch.inference_mode():
        ...     torch.zeros(1).is_inference(), lasting(torch.zeros)(1).is_inference()
        (True, False)
    """

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        # What is compiled cannot ask, and is made anew where the mode differs.
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return outside


def stay(*tensors: Tensor) -> None:
    """Tell ``torch.compile`` that tensors stay at their addresses for life.

    With ``mode="reduce-overhead"`` torch makes no CUDA graph of a step that changes any other
    input, and copies what a graph only reads before each replay. The mark is an attribute of the
    tensor, the one that ``torch._dynamo.mark_static_address(tensor)`` sets: to import that module
    would take a process longer than torch itself, and most never compile.

    Args:
        tensors: changed in place alone. Where others take their place, torch captures anew.

    Example:
        >>> counts = torch.zeros(2)
        >>> stay(counts)
        >>> vars(counts)
        {'_dynamo_static_input_type': 'unguarded'}
    """
    for tensor in tensors:
        tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]


def saveable(tensor: Tensor) -> Tensor:
    """Return a tensor that a backward pass may be given; a copy of one made in inference mode.

    Args:
        tensor: of the user's.

    Returns:
        The same tensor, but where torch would refuse to save it: after the batch was recorded.

    Example:
        >>> with torch.inference_mode():
        ...     targets = torch.tensor([1])
        >>> saveable(targets).is_inference()
        False
    """
    if torch.compiler.is_compiling():
        return tensor
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return tensor.clone()
    return tensor
