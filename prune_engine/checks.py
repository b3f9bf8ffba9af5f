# SPDX-License-Identifier: Apache-2.0
"""What the operators refuse: the argument's name, what was expected, what came."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from prune_engine.types import MAX_EPOCH, MAX_SEED

LOSS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_DTYPES = (torch.int64, torch.int32)


def check_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], expected: str) -> None:
    """Refuse a tensor of another dtype.

    Args:
        name: the argument's name, for the message.
        tensor: what came.
        dtypes: those allowed.
        expected: the same in words.

    Raises:
        TypeError: it has none of them.

    Example:
        >>> check_dtype("records", torch.zeros(1).long(), (torch.int64,), "int64")
    """
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {expected}, got {tensor.dtype}")


def check_vector(name: str, tensor: object, size: int | None, device: torch.device) -> Tensor:
    """Refuse what is not a vector of a size on a device.

    Args:
        name: the argument's name, for the message.
        tensor: what came.
        size: the number of elements, or None for any.
        device: where it must be.

    Returns:
        The same tensor.

    Raises:
        TypeError: not a tensor.
        ValueError: wrong dimensions, size or device.

    Example:
        >>> check_vector("losses", torch.zeros(2), 2, torch.device("cpu"))
        tensor([0., 0.])
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dim() != 1 or (size is not None and tensor.shape[0] != size):
        expected = "a vector" if size is None else f"a vector of {size} elements"
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    return tensor


def check_seed_epoch(seed: int, epoch: int) -> None:
    """Refuse a seed or an epoch that the counters of the generator cannot hold.

    Args:
        seed: must be in 0..2^63-1.
        epoch: must be in 0..2^31-2.

    Raises:
        ValueError: one is not.

    Example:
        >>> check_seed_epoch(0, 0)
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in 0..2^63-1, got {seed}")
    if not 0 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch must be in 0..2^31-2, got {epoch}")


def check_batch(
    losses: object, indices: object, score: object, records: Tensor, weight_class: Tensor
) -> None:
    """Refuse a batch that does not fit the records, naming the argument.

    Args:
        losses: must be [B] floating; a scalar is told about ``reduction="none"`` (edge case 12).
        indices: must be [B] int64 | int32.
        score: None, or must be [B] floating.
        records: [N], whose device counts.
        weight_class: must be [N].

    Raises:
        TypeError: not a tensor, or a dtype does not fit.
        ValueError: a shape or device does not fit.

    Example:
        >>> records, classes = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.uint8)
        >>> check_batch(torch.zeros(1), torch.zeros(1, dtype=torch.int32), None, records, classes)
    """
    device = records.device
    if isinstance(losses, Tensor) and losses.dim() == 0:
        raise ValueError(
            'losses must be one per sample, got a scalar: compute the loss with reduction="none"'
        )
    losses = check_vector("losses", losses, None, device)
    check_dtype("losses", losses, LOSS_DTYPES, "float16, bfloat16, float32 or float64")
    size = losses.shape[0]
    indices = check_vector("indices", indices, size, device)
    check_dtype("indices", indices, INDEX_DTYPES, "int64 or int32")
    check_vector("weight_class", weight_class, records.shape[0], device)
    if score is not None:
        score = check_vector("score", score, size, device)
        check_dtype("score", score, LOSS_DTYPES, "float16, bfloat16, float32 or float64")


def raise_index_error(error: Exception) -> NoReturn:
    """Re-raise a kernel's error, as IndexError where the kernel says it is one.

    Args:
        error: what a compiled operator raised; the stable ABI knows RuntimeError only.

    Raises:
        IndexError: the message is marked ``IndexError:``.
        Exception: any other, as it came.
    """
    text = str(error)
    at = text.find("IndexError: ")
    if at < 0:
        raise error
    raise IndexError(text[at + len("IndexError: ") :].splitlines()[0]) from None
