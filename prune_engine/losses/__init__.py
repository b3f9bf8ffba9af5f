# SPDX-License-Identifier: Apache-2.0
"""Losses and scores of a batch: reductions, reducers of other shapes, score functions."""

from prune_engine.losses import scores
from prune_engine.losses.reduce import cross_entropy
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
    "BatchScalar",
    "MixedPairs",
    "Pixels",
    "Reduced",
    "Reducer",
    "Tokens",
    "cross_entropy",
    "mix_targets",
    "scores",
]
