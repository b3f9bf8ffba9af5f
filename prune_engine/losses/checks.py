# SPDX-License-Identifier: Apache-2.0
"""Checks of what a loop passes to the losses, which lie below the operators."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.plain import plain

MANY = 2**31 - 1


def check_number(name: str, value: object, least: int) -> int:
    """Return an int in least..2^31-1 as a plain one; refuse any other."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int in {least}..{MANY}, got {value!r}")
    if not least <= value <= MANY:
        raise ValueError(f"{name} must be in {least}..{MANY}, got {value}")
    return value


def check_losses(losses: object) -> Tensor:
    """Return losses [B], detached, as float32; refuse what is no floating vector."""
    if not isinstance(losses, Tensor):
        raise TypeError(f"losses must be a tensor, got {type(losses).__name__}")
    if not losses.is_floating_point():
        raise TypeError(f"losses must be floating, got {losses.dtype}")
    if losses.dim() != 1:
        raise ValueError(f"losses must be a vector, got shape {tuple(losses.shape)}")
    return losses.detach().to(torch.float32)


def check_places(indices: object, size: int | None = None) -> Tensor:
    """Return indices [B]; refuse what is no vector of int64 or int32, or of another size."""
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices must be int64 or int32, got {indices.dtype}")
    if indices.dim() != 1 or size not in (None, indices.shape[0]):
        words = "a vector" if size is None else f"[{size}]"
        raise ValueError(f"indices must be {words}, got shape {tuple(indices.shape)}")
    return indices
