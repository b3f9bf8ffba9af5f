# SPDX-License-Identifier: Apache-2.0
"""The losses of a reference model, once for every token of a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.ops.checks import INDEX_DTYPES, check_int, check_vector

MAX_LENGTH = 2**31 - 1
LARGEST = 65504.0  # of float16


class ReferenceLosses:
    """A reference model's loss of each token, float16: 2 bytes a token, in place of its forward.

    Rho-1 (arXiv 2404.07965) and RHO-LOSS (Mindermann et al., ICML 2022) compare with a model that
    has seen other data; its losses do not change, so one pass over the data set does. Half
    precision rounds a loss by at most 0.05%.

    Args:
        num_samples: N.
        length: T, the largest number of tokens of a sample.
        device: where they live; default torch's default device.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is out of range.

    Example:
        >>> reference = ReferenceLosses(3, 2)
        >>> reference.store(torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [0.5, 0.25]]))
        >>> reference.of(torch.tensor([0])).tolist(), reference.complete
        ([[0.5, 0.25]], False)
    """

    def __init__(
        self, num_samples: int, length: int, *, device: torch.device | str | None = None
    ) -> None:
        shape = (
            check_int("num_samples", num_samples, 0, MAX_LENGTH),
            check_int("length", length, 1, MAX_LENGTH),
        )
        self.losses = torch.full(shape, torch.nan, dtype=torch.float16, device=device)

    @property
    def complete(self) -> bool:
        """Whether every sample has been stored; reads the device."""
        return not bool(self.losses[:, 0].isnan().any())

    def store(self, indices: Tensor, losses: Tensor) -> None:
        """Keep a batch's losses.

        Args:
            indices: [B] int64 | int32.
            losses: [B, t] floating with t <= T; where a token does not count, anything finite.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape does not fit.
        """
        check_vector("indices", indices, INDEX_DTYPES)
        most = self.losses.shape[1]
        if losses.dim() != 2 or losses.shape[0] != len(indices) or losses.shape[1] > most:
            raise ValueError(
                f"losses must be [{len(indices)}, at most {most}], got {tuple(losses.shape)}"
            )
        if not losses.is_floating_point():
            raise TypeError(f"losses must be floating, got {losses.dtype}")
        half = losses.detach().clamp(-LARGEST, LARGEST).to(self.losses.device, torch.float16)
        places = indices.to(self.losses.device, torch.int64)
        padded = self.losses.new_zeros((len(indices), most))
        padded[:, : losses.shape[1]] = half
        self.losses.index_copy_(0, places, padded)

    def of(self, indices: Tensor, length: int | None = None) -> Tensor:
        """Return a batch's losses.

        Args:
            indices: [B] int64 | int32.
            length: t, of a batch that is shorter; default T.

        Returns:
            float16 [B, t].

        Raises:
            ValueError: on the cpu, a sample was never stored; on a device its losses are nan, which
                ``TopTokens`` trains and so shows.
        """
        check_vector("indices", indices, INDEX_DTYPES)
        found = self.losses[indices.to(self.losses.device, torch.int64)]
        found = found if length is None else found[:, :length]
        if found.is_cpu and bool(found.isnan().any()):
            raise ValueError("indices must be of samples that were stored, got some that were not")
        return found
