# SPDX-License-Identifier: Apache-2.0
"""Losses and scores of a batch: reductions, reducers of other shapes, score functions."""

from prune_engine.losses.reduce import (
    REDUCTIONS,
    check_reduction,
    cross_entropy,
    reduce_losses,
    refuse_nonfinite,
)
from prune_engine.losses.reducers import (
    BatchScalar,
    MixedPairs,
    Pixels,
    Reduced,
    Reducer,
    Tokens,
    mix_targets,
)

__all__ = [
    "REDUCTIONS",
    "BatchScalar",
    "MixedPairs",
    "Pixels",
    "Reduced",
    "Reducer",
    "Tokens",
    "check_reduction",
    "cross_entropy",
    "mix_targets",
    "reduce_losses",
    "refuse_nonfinite",
]
