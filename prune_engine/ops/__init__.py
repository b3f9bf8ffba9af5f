# SPDX-License-Identifier: Apache-2.0
"""The operators as typed, checked, documented functions over tensors: the functional core.

Every function takes ``backend=``: ``"auto"`` (the best that serves the tensors' device),
``"cuda"``, ``"cpu"``, ``"triton"`` or ``"reference"``; all give the same bits.
"""

from prune_engine.ops.activation_std import activation_std
from prune_engine.ops.audit import audit
from prune_engine.ops.cells import cells
from prune_engine.ops.compact import compact
from prune_engine.ops.cross_entropy_observe import cross_entropy_observe
from prune_engine.ops.draw import draw
from prune_engine.ops.gelu_moments import gelu_moments
from prune_engine.ops.mean_threshold import mean_threshold
from prune_engine.ops.moments import merge_moments, moments
from prune_engine.ops.observe import observe
from prune_engine.ops.observe_mean import observe_mean
from prune_engine.ops.order import order
from prune_engine.ops.pick import pick
from prune_engine.ops.plan import plan
from prune_engine.ops.plan_levels import plan_levels
from prune_engine.ops.plan_top import plan_top
from prune_engine.ops.relu_moments import relu_moments
from prune_engine.ops.select import kth, percentiles, select
from prune_engine.ops.shuffle import shuffle, unshuffle
from prune_engine.ops.solve_levels import Levels, solve_levels
from prune_engine.ops.top import top

__all__ = [
    "Levels",
    "activation_std",
    "audit",
    "cells",
    "compact",
    "cross_entropy_observe",
    "draw",
    "gelu_moments",
    "kth",
    "mean_threshold",
    "merge_moments",
    "moments",
    "observe",
    "observe_mean",
    "order",
    "percentiles",
    "pick",
    "plan",
    "plan_levels",
    "plan_top",
    "relu_moments",
    "select",
    "shuffle",
    "solve_levels",
    "top",
    "unshuffle",
]
