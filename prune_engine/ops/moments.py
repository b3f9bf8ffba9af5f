# SPDX-License-Identifier: Apache-2.0
"""How much the activations of a batch vary: moments of many tensors, and fused activations.

Exported again from :mod:`prune_engine.ops`. These are measurements, not decisions: every backend is
within a relative error of 1e-6 of the float64 two-pass reference (SEMANTICS 3.9) and gives the same
bits from run to run, but not the bits of another backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine.backends import kernels_for
from prune_engine.ops.checks import check_sample, dense_tensors


def moments(tensors: Sequence[Tensor], *, sample: int = 1, backend: str = "auto") -> Tensor:
    """Count, mean and sum of squared deviations of each tensor, in one pass over all of them.

    Blocks are centred on their own mean and merged by Chan, Golub and LeVeque ("Updating formulae
    and a pairwise algorithm for computing sample variances", 1979), so that nothing cancels even
    where mean / std is 1e5. A dense tensor is read in the order of its storage; a strided one is
    copied first. A nan or an infinity makes the sum of squares nan and the mean not finite.

    Args:
        tensors: L >= 1 tensors, float16 | bfloat16 | float32 | float64, of any shapes and layouts,
            on one device; they are detached.
        sample: in 1..2^31-1: 1 reads everything; k reads one of every k blocks of 256 neighbours,
            drawn by a fixed hash of the block's number: an estimate.
        backend: which kernels.

    Returns:
        float64 [L, 3] on the same device, in the order of the tensors: elements read, mean, sum of
        squared deviations. Zeros for an empty tensor, which ``merge_moments`` passes over.

    Raises:
        TypeError: one is not a floating tensor, or sample is no int.
        ValueError: there is none, they are on several devices, or sample is out of range.

    Example:
        >>> moments([torch.tensor([1.0, 3.0]), torch.zeros(0)]).tolist()
        [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    """
    table, sample = dense_tensors(tensors), check_sample(sample)
    return kernels_for(backend, table[0]).moments(table, sample)


def merge_moments(parts: Tensor) -> Tensor:
    """Merge the moments of several parts, such as ranks, into those of their union.

    ``mean = mean_a + delta * n_b / n``, ``M2 = M2_a + M2_b + delta^2 * n_a * n_b / n`` with
    ``delta = mean_b - mean_a`` (Chan, Golub and LeVeque, 1979), in the order of the parts.

    Args:
        parts: float64 [W, ..., 3], W >= 1: count, mean, sum of squared deviations.

    Returns:
        float64 [..., 3]. Parts of count 0 change nothing.

    Raises:
        TypeError: not float64.
        ValueError: the shape does not fit.

    Example:
        >>> merge_moments(moments([torch.tensor([1.0]), torch.tensor([3.0])])).tolist()
        [2.0, 2.0, 2.0]
    """
    if parts.dtype != torch.float64:
        raise TypeError(f"parts must be float64, got {parts.dtype}")
    if parts.dim() < 2 or parts.shape[0] < 1 or parts.shape[-1] != 3:
        raise ValueError(f"parts must be [W, ..., 3] with W >= 1, got {tuple(parts.shape)}")
    count, mean, squares = parts[0].unbind(-1)
    for part in parts[1:]:
        more, more_mean, more_squares = part.unbind(-1)
        total = count + more
        share = more / total.clamp(min=1.0)
        delta = more_mean - mean
        merged = mean + delta * share, squares + more_squares + delta * delta * count * share
        there = more > 0
        mean = torch.where(there, torch.where(count > 0, merged[0], more_mean), mean)
        squares = torch.where(there, torch.where(count > 0, merged[1], more_squares), squares)
        count = total
    return torch.stack([count, mean, squares], dim=-1)
