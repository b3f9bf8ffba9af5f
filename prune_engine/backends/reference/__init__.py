# SPDX-License-Identifier: Apache-2.0
"""The reference backend: plain eager torch, and the specification that the others must equal.

It runs wherever torch runs with int64 and float64, and favours reading over speed. The arithmetic
is in :mod:`prune_engine.backends.reference.arithmetic` and exported again from here. Arguments are
described here and checked in ``prune_engine.ops``; only what depends on their values, and on
nothing else, is checked here.

**Load-bearing roundings**, easy to "simplify" wrongly:

1. A score is rounded to float32 once, first of all. Whether it is finite, its key and what it adds
   to the sum are all read from that float32: a float64 loss of 1e300 is a non-finite score.
2. No carry is ever propagated in the limbs of a sum: each is the plain sum of what the scores put
   there, or else it would not be a function of the records alone.
3. The mean is never rounded: a long division says which float32 is the smallest that reaches it. A
   mean taken in floating point moves samples across the threshold.
4. ``rescaled`` of a float16, bfloat16 or float32 loss is one float32 product, then one rounding to
   the dtype of the loss. The weight is not rounded to that dtype first. For float64 the weight is
   widened, which is exact, and the product rounds once.
5. -0.0 counts as +0.0, in scores and in thresholds; subnormal scores keep their own keys.

**What may be asserted.** Everything, bitwise: records, sums, counters, thresholds, classes, kept
sets, orders, weights, rescaled losses. One exception: where a product is NaN, that it is NaN is
asserted but not its payload, which differs from processor to processor. And
``cross_entropy_observe`` makes its scores by a float softmax, which no two backends round alike:
its records are asserted bitwise given the score that it returns, the score within the tolerance
that its test states.
"""

from prune_engine.backends.reference.activation_std import activation_std
from prune_engine.backends.reference.arithmetic import (
    addends,
    bijection,
    float_to_key,
    hash32,
    keep_draw,
    key_to_float,
    philox4x32,
)
from prune_engine.backends.reference.audit import audit
from prune_engine.backends.reference.cells import cells
from prune_engine.backends.reference.compact import compact
from prune_engine.backends.reference.cross_entropy_grad import cross_entropy_grad
from prune_engine.backends.reference.cross_entropy_observe import cross_entropy_observe
from prune_engine.backends.reference.draw import draw
from prune_engine.backends.reference.gelu_moments import gelu_moments
from prune_engine.backends.reference.mean_threshold import mean_threshold
from prune_engine.backends.reference.moments import moments
from prune_engine.backends.reference.observe import observe
from prune_engine.backends.reference.observe_mean import observe_mean
from prune_engine.backends.reference.order import order
from prune_engine.backends.reference.pick import pick
from prune_engine.backends.reference.plan import plan
from prune_engine.backends.reference.plan_levels import plan_levels
from prune_engine.backends.reference.plan_top import plan_top
from prune_engine.backends.reference.relu_moments import relu_moments, relu_moments_
from prune_engine.backends.reference.select import select
from prune_engine.backends.reference.shuffle import shuffle
from prune_engine.backends.reference.solve_levels import solve_levels
from prune_engine.backends.reference.top import top

__all__ = [
    "activation_std",
    "addends",
    "audit",
    "bijection",
    "cells",
    "compact",
    "cross_entropy_grad",
    "cross_entropy_observe",
    "draw",
    "float_to_key",
    "gelu_moments",
    "hash32",
    "keep_draw",
    "key_to_float",
    "mean_threshold",
    "moments",
    "observe",
    "observe_mean",
    "order",
    "philox4x32",
    "pick",
    "plan",
    "plan_levels",
    "plan_top",
    "relu_moments",
    "relu_moments_",
    "select",
    "shuffle",
    "solve_levels",
    "top",
]

CHECKS_ARGUMENTS = False
