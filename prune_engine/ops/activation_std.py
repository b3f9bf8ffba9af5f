# SPDX-License-Identifier: Apache-2.0
"""The mean over many tensors of their standard deviations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prune_engine.backends import kernels_for
from prune_engine.ops.checks import check_sample, check_vector, dense_tensors, raise_index_error
from prune_engine.plain import plain


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
        ValueError: a shape or device does not fit, there is no tensor, or sample is out of range.
        IndexError: slot is out of range; of a slot on a device nothing is raised and nothing
            written.

    Example:
        >>> out = torch.zeros(3, dtype=torch.float64)
        >>> activation_std([torch.tensor([1.0, 3.0]), torch.zeros(4)], out, 2, unbiased=False)
        >>> out.tolist()
        [0.0, 0.0, 0.5]
    """
    table, sample = dense_tensors(tensors), check_sample(sample)
    slot = plain(slot)
    check_vector("out", out, (torch.float64,), device=table[0].device, changed=True)
    target, place = out, None
    if isinstance(slot, Tensor):
        place = check_vector("slot", slot, (torch.int64,), size=1, device=out.device)
    elif isinstance(slot, bool) or not isinstance(slot, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"slot must be an int or a tensor, got {slot!r}")
    elif 0 <= slot < out.shape[0]:
        target = out.narrow(0, slot, 1)
    else:
        raise IndexError(f"slot must be in 0..{out.shape[0] - 1}, got {slot}")
    try:
        kernels_for(backend, table[0]).activation_std(table, target, place, unbiased, sample)
    except RuntimeError as error:
        raise_index_error(error)
    torch.autograd.graph.increment_version(out)
