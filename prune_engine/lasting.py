# SPDX-License-Identifier: Apache-2.0
"""Tensors that outlive ``torch.inference_mode()``: made under it, used in training later."""

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
