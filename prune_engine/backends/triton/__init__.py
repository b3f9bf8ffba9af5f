# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: what a GPU user without nvcc gets; needs no compiler when installed.

One module per operator; ``arithmetic`` is what ``csrc/semantics.h``, ``philox.h`` and
``bijection.h`` are to the compiled backends. Each operator is specified by the function of the same
name in :mod:`prune_engine.backends.reference` and gives the same bits. As on any device nothing
waits for the host, so what the reference refuses by value is answered without raising: an index out
of range is counted, a position out of range gives -2^31.

Traced code (``torch.compile``) calls the operators by name; where the compiled library has no CUDA
kernels, the dispatcher finds these (:mod:`~prune_engine.backends.triton.dispatch`).

With ``TRITON_INTERPRET=1`` in the environment before the first import the kernels run on CPU
tensors, slowly; that is how they are tested without a GPU.
"""

import os

import torch

try:
    from prune_engine.backends.triton.activation_std import activation_std
    from prune_engine.backends.triton.audit import audit
    from prune_engine.backends.triton.cells import cells
    from prune_engine.backends.triton.compact import compact
    from prune_engine.backends.triton.cross_entropy_grad import cross_entropy_grad
    from prune_engine.backends.triton.cross_entropy_observe import cross_entropy_observe
    from prune_engine.backends.triton.dispatch import register
    from prune_engine.backends.triton.draw import draw
    from prune_engine.backends.triton.gelu_moments import gelu_moments
    from prune_engine.backends.triton.mean_threshold import mean_threshold
    from prune_engine.backends.triton.moments import moments
    from prune_engine.backends.triton.observe import observe
    from prune_engine.backends.triton.observe_mean import observe_mean
    from prune_engine.backends.triton.order import order
    from prune_engine.backends.triton.pick import pick
    from prune_engine.backends.triton.plan import plan
    from prune_engine.backends.triton.plan_levels import plan_levels
    from prune_engine.backends.triton.plan_top import plan_top
    from prune_engine.backends.triton.relu_moments import relu_moments, relu_moments_
    from prune_engine.backends.triton.select import select
    from prune_engine.backends.triton.shuffle import shuffle
    from prune_engine.backends.triton.solve_levels import solve_levels
    from prune_engine.backends.triton.top import top
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise ImportError("triton is not installed; run `pip install triton`") from error

__all__ = [
    "OPERATORS",
    "activation_std",
    "audit",
    "cells",
    "compact",
    "cross_entropy_grad",
    "cross_entropy_observe",
    "draw",
    "gelu_moments",
    "mean_threshold",
    "moments",
    "observe",
    "observe_mean",
    "order",
    "pick",
    "plan",
    "plan_levels",
    "plan_top",
    "refusal",
    "relu_moments",
    "relu_moments_",
    "select",
    "shuffle",
    "solve_levels",
    "top",
]

CHECKS_ARGUMENTS = False
OPERATORS = {
    "activation_std": activation_std,
    "audit": audit,
    "cells": cells,
    "compact": compact,
    "cross_entropy_grad": cross_entropy_grad,
    "cross_entropy_observe": cross_entropy_observe,
    "draw": draw,
    "gelu_moments": gelu_moments,
    "mean_threshold": mean_threshold,
    "moments": moments,
    "observe": observe,
    "observe_mean": observe_mean,
    "order": order,
    "pick": pick,
    "plan": plan,
    "plan_levels": plan_levels,
    "plan_top": plan_top,
    "relu_moments": relu_moments,
    "relu_moments_": relu_moments_,
    "select": select,
    "shuffle": shuffle,
    "solve_levels": solve_levels,
    "top": top,
}
REGISTERED = register(OPERATORS)  # lives as long as this module


def refusal() -> str:
    """Say why the Triton kernels cannot run here.

    Returns:
        A phrase, or "" where they can.

    Example:
        >>> refusal() == "" or "no device" in refusal()
        True
    """
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "torch finds no device for it (TRITON_INTERPRET=1 runs it on CPU tensors, slowly)"
