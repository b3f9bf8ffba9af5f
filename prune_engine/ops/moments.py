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
from prune_engine.ops.checks import (
    check_vector,
    dense,
    dense_tensors,
    is_dense,
    raise_index_error,
)
from prune_engine.ops.gradient import differentiable_gelu, differentiable_relu

APPROXIMATIONS = ("none", "tanh")


def moments(tensors: Sequence[Tensor], *, sample: int = 1, backend: str = "auto") -> Tensor:
    """Count, mean and sum of squared deviations of each tensor, in one pass over all of them.

    Blocks are centred on their own mean and merged by Chan, Golub and LeVeque ("Updating formulae
    and a pairwise algorithm for computing sample variances", 1979), so that nothing cancels even
    where mean / std is 1e5. A dense tensor is read in the order of its storage; a strided one is
    copied first. A nan or an infinity makes the sum of squares nan and the mean not finite.

    Args:
        tensors: L >= 1 tensors, float16 | bfloat16 | float32 | float64, of any shapes and layouts,
            on one device; they are detached.
        sample: 1 reads everything; k reads one of every k blocks of 256 neighbouring elements,
            drawn by a fixed hash of the block's number: an estimate.
        backend: which kernels.

    Returns:
        float64 [L, 3] on the same device, in the order of the tensors: elements read, mean, sum of
        squared deviations. Zeros for an empty tensor, which ``merge_moments`` passes over.

    Raises:
        TypeError: one is not a floating tensor.
        ValueError: there is none, they are on several devices, or sample is below 1.

    Example:
        >>> moments([torch.tensor([1.0, 3.0]), torch.zeros(0)]).tolist()
        [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    """
    table = dense_tensors(tensors, sample)
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


def activation_std(
    tensors: Sequence[Tensor],
    out: Tensor,
    slot: Tensor | int,
    *,
    unbiased: bool = True,
    sample: int = 1,
    backend: str = "auto",
) -> None:
    """Write the mean over layers of the standard deviation of each into one place of a buffer.

    ``out[slot] = (1 / L) sum_l sqrt(M2_l / (n_l - 1))``, the X(b) of B-PAS ("Batch Pruning by
    Activation Stability", ICLR 2026; SEMANTICS 3.8), see ``moments`` for how. nan where a tensor
    has no freedom (it is empty, or of one element and unbiased) or a value that is not finite.

    Args:
        tensors: L >= 1 activations, see ``moments``.
        out: [num_batches] float64, contiguous, on the same device; changed in one place.
        slot: which place, in 0..num_batches-1: a number, or int64 [1] on the device where a
            captured graph is replayed for other batches.
        unbiased: whether to divide by n - 1 instead of n.
        sample: see ``moments``.
        backend: which kernels.

    Raises:
        TypeError: a dtype is not one of those.
        ValueError: a shape or device does not fit, there is no tensor, or sample is below 1.
        IndexError: slot is out of range; of a slot on a device nothing is raised and nothing
            written.

    Example:
        >>> out = torch.zeros(3, dtype=torch.float64)
        >>> activation_std([torch.tensor([1.0, 3.0]), torch.zeros(4)], out, 2, unbiased=False)
        >>> out.tolist()
        [0.0, 0.0, 0.5]
    """
    table = dense_tensors(tensors, sample)
    check_vector("out", out, (torch.float64,), device=table[0].device, changed=True)
    target, place = out, None
    if isinstance(slot, Tensor):
        place = check_vector("slot", slot, (torch.int64,), size=1, device=out.device)
    elif 0 <= slot < out.shape[0]:
        target = out.narrow(0, slot, 1)
    else:
        raise IndexError(f"slot must be in 0..{out.shape[0] - 1}, got {slot}")
    try:
        kernels_for(backend, table[0]).activation_std(table, target, place, unbiased, sample)
    except RuntimeError as error:
        raise_index_error(error)
    torch.autograd.graph.increment_version(out)


def relu_moments(
    x: Tensor, *, inplace: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """ReLU that measures what it writes, so that nothing is read again.

    ``y = max(x, 0)``, nan staying nan, as ``torch.relu``; its moments as ``moments([y])``.

    Args:
        x: float16 | bfloat16 | float32 | float64, any shape and layout; what is strided is copied.
        inplace: write y over x.
        backend: which kernels.

    Returns:
        y in the shape, dtype and (where dense) layout of x, differentiable; with ``inplace``, x
        itself. And float64 [3], not differentiable.

    Raises:
        TypeError: x is not a floating tensor.
        RuntimeError: inplace, and x is a leaf that requires a gradient.

    Example:
        >>> relu_moments(torch.tensor([-1.0, 4.0]))
        (tensor([0., 4.]), tensor([2., 2., 8.], dtype=torch.float64))
    """
    plain = dense("x", x)
    wants_grad = x.requires_grad and torch.is_grad_enabled()
    if inplace and wants_grad and x.is_leaf:
        raise RuntimeError("x must not be a leaf that requires a gradient where inplace is True")
    if inplace and (
        torch.compiler.is_compiling() or not is_dense(x) or (wants_grad and x._is_view())
    ):
        # A compiler makes it functional anyway, what has gaps is computed beside and copied in, and
        # an autograd function with two results must not change a view.
        y, measured = relu_moments(x, backend=backend)
        return x.copy_(y), measured
    if wants_grad:
        return differentiable_relu(x if is_dense(x) else x.contiguous(), backend, inplace)
    kernels = kernels_for(backend, plain)
    if not inplace:
        return kernels.relu_moments(plain)
    measured = kernels.relu_moments_(plain)
    torch.autograd.graph.increment_version(x)
    return x, measured


def gelu_moments(
    x: Tensor, approximate: str = "none", *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """GELU that measures what it writes, so that nothing is read again.

    ``y = x * Phi(x)``, or its tanh approximation (Hendrycks and Gimpel, "Gaussian Error Linear
    Units", 2016), as ``torch.nn.functional.gelu``; its moments as ``moments([y])``.

    Args:
        x: float16 | bfloat16 | float32 | float64, any shape and layout; what is strided is copied.
        approximate: ``"none"`` or ``"tanh"``.
        backend: which kernels.

    Returns:
        y in the shape, dtype and (where dense) layout of x, differentiable; float64 [3], not
        differentiable.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: no such approximation.

    Example:
        >>> gelu_moments(torch.zeros(2))[0]
        tensor([0., 0.])
    """
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    plain = dense("x", x)
    if x.requires_grad and torch.is_grad_enabled():
        return differentiable_gelu(x if is_dense(x) else x.contiguous(), backend, approximate)
    return kernels_for(backend, plain).gelu_moments(plain, approximate == "tanh")
