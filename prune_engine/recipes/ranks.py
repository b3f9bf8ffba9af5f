# SPDX-License-Identifier: Apache-2.0
"""A training on the ranks that torchrun started: who joins, who writes, what is summed."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prune_engine.epoch.ranks import gather, world
from prune_engine.errors import StateMismatchError

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Generator[str, None, None]:
    """Join the process group of the ranks that torchrun started; alone, do nothing.

    Args:
        device: of the training; ``"cuda"`` becomes this rank's own.

    Yields:
        The device of this rank.

    Example:
        >>> with joined("cpu") as device:
        ...     device
        'cpu'
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    cuda = torch.device(device).type == "cuda"
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this rank writes the files and prints; alone, it does."""
    return world()[0] == 0


def share_of(batch_size: int) -> int:
    """Return how many samples of each batch are this rank's.

    Args:
        batch_size: over all ranks.

    Returns:
        The same number on every rank.

    Raises:
        ValueError: the ranks cannot have equal shares.

    Example:
        >>> share_of(32)
        32
    """
    size = world()[1]
    if batch_size % size:
        raise ValueError(f"batch_size: expected a multiple of the {size} ranks, got {batch_size}")
    return batch_size // size


def averaged(model: nn.Module) -> nn.Module:
    """Return the model whose gradients are averaged over the ranks; alone, the model itself.

    Args:
        model: the same on every rank.

    Returns:
        For the forward pass of the training; parameters and evaluation stay with ``model``.
    """
    return DistributedDataParallel(model) if world()[1] > 1 else model


def summed(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks.

    Args:
        value: changed; the same shape on every rank.

    Returns:
        The argument.

    Example:
        >>> summed(torch.ones(1)).item()
        1.0
    """
    if world()[1] > 1:
        dist.all_reduce(value)  # pyright: ignore[reportUnknownMemberType]
    return value


def of_each(own: Mapping[str, Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    """Return what every rank has of some tensors: what a checkpoint must hold of ranks that differ.

    Args:
        own: this rank's, of the same names and shapes on all; with several ranks a collective.
        device: of the training.

    Returns:
        On the cpu, in the order of the ranks.

    Example:
        >>> of_each({"tau": torch.zeros(())}, torch.device("cpu"))
        [{'tau': tensor(0.)}]
    """
    every = {name: gather(tensor.to(device)).cpu() for name, tensor in own.items()}
    # Copies: torch takes a generator's state from memory of its own alone, and crashes on a view.
    return [
        {name: found[rank].clone() for name, found in every.items()} for rank in range(world()[1])
    ]


def own(every: Sequence[T]) -> T:
    """Return this rank's part of what ``of_each`` returned when it was saved.

    Args:
        every: one part for each rank.

    Returns:
        The part.

    Raises:
        StateMismatchError: it was saved by another number of ranks.

    Example:
        >>> own(["alone"])
        'alone'
    """
    rank, size = world()
    if len(every) != size:
        raise StateMismatchError(
            f"the training was saved by {len(every)} ranks, each with a part of its own, and "
            f"cannot be continued by {size}: start as many"
        )
    return every[rank]
