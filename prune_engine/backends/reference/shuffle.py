# SPDX-License-Identifier: Apache-2.0
"""The bijection of an epoch's positions in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine.backends.reference.arithmetic import PIECE, bijection, inverse_bijection


def shuffle(places: Tensor, n: int, inverse: bool, seed: int, epoch: int) -> Tensor:
    """Evaluate the keyed permutation of [0, n), or its inverse, without a list of n entries.

    Args:
        places: [M] int64, values in [0, n).
        n: in [0, 2^62].
        inverse: whether to go from ranks to positions.
        seed: in [0, 2^63).
        epoch: in [0, 2^31 - 2].

    Returns:
        int64 [M]: see :func:`bijection`.

    Raises:
        IndexError: a place is out of range.

    Example:
        >>> ranks = shuffle(torch.arange(9), 9, False, seed=3, epoch=0)
        >>> shuffle(ranks, 9, True, seed=3, epoch=0).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    network = inverse_bijection if inverse else bijection
    result = torch.empty_like(places)
    for at in range(0, places.shape[0], PIECE):
        result[at : at + PIECE] = network(places[at : at + PIECE], n, seed, epoch)
    return result
