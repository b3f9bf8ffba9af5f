# SPDX-License-Identifier: Apache-2.0
"""The statistics of activations in eager torch: float64 and two passes, the specification.

Exported again from :mod:`prune_engine.backends.reference`. What other backends owe it is closeness
(a relative error of at most 1e-6, SEMANTICS 3.9) and not bits: each adds in an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32, hash32
from prune_engine.bands import SAMPLE_BLOCK


def memory_order(tensor: Tensor) -> Tensor:
    """Read a tensor as a vector in the order of its storage.

    Args:
        tensor: of any shape, dense: its elements fill their storage without gap or overlap.

    Returns:
        [numel], a view where the tensor is dense.

    Example:
        >>> memory_order(torch.arange(6).view(2, 3).t()).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    falling = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
    return tensor.permute(falling).reshape(-1)


def sampled(vector: Tensor, sample: int) -> Tensor:
    """Take one block of ``SAMPLE_BLOCK`` elements out of every ``sample``.

    Which one of a group is ``hash32(group) % sample``: a regular stride would meet the same
    channels of every image, whose planes are powers of two long.

    Args:
        vector: [n].
        sample: at least 1, which takes everything.

    Returns:
        The elements taken, in their order.

    Example:
        >>> sampled(torch.arange(5 * 256), 2).view(-1, 256)[:, 0].tolist()
        [0, 768, 1024]
    """
    if sample == 1:
        return vector
    blocks = -(-vector.numel() // SAMPLE_BLOCK)
    first = torch.arange(0, blocks, sample, device=vector.device)
    key = torch.zeros((), dtype=torch.int64, device=vector.device)
    chosen = first + hash32((first // sample) & MASK32, key) % (blocks - first).clamp(max=sample)
    offsets = torch.arange(SAMPLE_BLOCK, device=vector.device)
    at = (chosen[:, None] * SAMPLE_BLOCK + offsets).flatten()
    return vector[at[at < vector.numel()]]


def moments(tensors: Sequence[Tensor], sample: int) -> Tensor:
    """Count, mean and sum of squared deviations of each tensor.

    Args:
        tensors: L dense floating tensors of any shape.
        sample: 1 for all elements, k for the blocks that :func:`sampled` takes.

    Returns:
        float64 [L, 3]; zeros for an empty tensor.

    Example:
        >>> moments([torch.tensor([1.0, 3.0])], 1).tolist()
        [[2.0, 2.0, 2.0]]
    """
    return torch.stack([moments_of(tensor, sample) for tensor in tensors])


def moments_of(tensor: Tensor, sample: int) -> Tensor:
    """Return the moments of one tensor, float64 [3]."""
    values = sampled(memory_order(tensor.detach()), sample).to(torch.float64)
    if values.numel() == 0:
        return values.new_zeros(3)
    # Seen from an element of its own, a constant tensor has exactly no deviations.
    deviations = values - values[0]
    mean = deviations.mean()
    squares = (deviations - mean).square().sum()
    return torch.stack([torch.full_like(mean, values.numel()), values[0] + mean, squares])
