# SPDX-License-Identifier: Apache-2.0
"""Losses and scores of a batch: reductions, reducers of other shapes, score functions."""

from prune_engine.losses import scores
from prune_engine.losses.diversified import DivBS
from prune_engine.losses.pick_values import (
    EvolvedSampling,
    ImportanceSampling,
    SelectiveBackprop,
)
from prune_engine.losses.reduce import cross_entropy
from prune_engine.losses.reducers import (
    BatchScalar,
    MixedPairs,
    Pixels,
    Reduced,
    Reducer,
    Tokens,
    TopTokens,
    mix_targets,
)
from prune_engine.losses.reference_losses import ReferenceLosses

__all__ = [
    "BatchScalar",
    "DivBS",
    "EvolvedSampling",
    "ImportanceSampling",
    "MixedPairs",
    "Pixels",
    "Reduced",
    "Reducer",
    "ReferenceLosses",
    "SelectiveBackprop",
    "Tokens",
    "TopTokens",
    "cross_entropy",
    "mix_targets",
    "scores",
]
