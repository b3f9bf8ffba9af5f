# SPDX-License-Identifier: Apache-2.0
"""The statistics of activations in eager torch: float64 and two passes, the specification.

Exported again from :mod:`prune_engine.backends.reference`. What other backends owe it is closeness
(a relative error of at most 1e-6, SEMANTICS 3.9) and not bits: each adds in an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu

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
    return torch.stack([_moments(tensor, sample) for tensor in tensors])


def _moments(tensor: Tensor, sample: int) -> Tensor:
    values = sampled(memory_order(tensor.detach()), sample).to(torch.float64)
    if values.numel() == 0:
        return values.new_zeros(3)
    # Seen from an element of its own, a constant tensor has exactly no deviations.
    deviations = values - values[0]
    mean = deviations.mean()
    squares = (deviations - mean).square().sum()
    return torch.stack([torch.full_like(mean, values.numel()), values[0] + mean, squares])


def activation_std(
    tensors: Sequence[Tensor], out: Tensor, slot: Tensor | None, unbiased: bool, sample: int
) -> None:
    """Mean over the tensors of the standard deviation of each, into one slot.

    Args:
        tensors: L >= 1 dense floating tensors of any shape.
        out: [num_batches] float64, changed in one place.
        slot: int64 [1], which place; None for the first. Out of range, on a device: nothing is
            written.
        unbiased: whether to divide by count - 1.
        sample: see :func:`moments`.

    Raises:
        IndexError: slot is out of range and the tensors are on the cpu.

    Example:
        >>> out = torch.zeros(2, dtype=torch.float64)
        >>> activation_std([torch.tensor([1.0, 3.0])], out, torch.tensor([1]), False, 1)
        >>> out.tolist()
        [0.0, 1.0]
    """
    if slot is None:
        slot = torch.zeros(1, dtype=torch.int64, device=out.device)
    if slot.device.type == "cpu" and not 0 <= int(slot) < out.numel():
        raise IndexError(f"slot must be in 0..{out.numel() - 1}, got {int(slot)}")
    count, _, squares = moments(tensors, sample).unbind(1)
    freedom = (count - 1.0 if unbiased else count).clamp(min=0.0)
    value = (squares / freedom).sqrt().mean()
    places = torch.arange(out.numel(), device=out.device)
    out.copy_(torch.where(places == slot, value, out))


def relu_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """ReLU of x, and the moments of the result.

    Args:
        x: dense floating tensor of any shape.

    Returns:
        The shape, dtype and layout of x; float64 [3].

    Example:
        >>> relu_moments(torch.tensor([-1.0, 4.0]))
        (tensor([0., 4.]), tensor([2., 2., 8.], dtype=torch.float64))
    """
    y = x.relu()
    return y, _moments(y, 1)


def relu_moments_(x: Tensor) -> Tensor:
    """ReLU of x in place, and the moments of the result.

    Args:
        x: dense floating tensor of any shape, changed.

    Returns:
        float64 [3].

    Example:
        >>> relu_moments_(torch.tensor([-1.0, 4.0])).tolist()
        [2.0, 2.0, 8.0]
    """
    return _moments(x.relu_(), 1)


def gelu_moments(x: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """GELU of x, and the moments of the result as it is stored.

    Args:
        x: dense floating tensor of any shape.
        tanh: whether to take the tanh approximation.

    Returns:
        The shape, dtype and layout of x; float64 [3].

    Example:
        >>> gelu_moments(torch.zeros(2), False)[0]
        tensor([0., 0.])
    """
    y = gelu(x, approximate="tanh" if tanh else "none")
    return y, _moments(y, 1)
