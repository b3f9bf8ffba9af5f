# SPDX-License-Identifier: Apache-2.0
"""Data pruning inside training: skip the samples that a model has already learned."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_engine import (
        backends,
        coresets,
        data,
        epoch,
        host,
        integrations,
        loggers,
        losses,
        ops,
        policies,
        recording,
        sharding,
    )
    from prune_engine.checkpoint import load_state, save_state
    from prune_engine.engine import PruneEngine
    from prune_engine.epoch import EpochReport
    from prune_engine.errors import (
        CoverageError,
        NonFiniteLossError,
        PruneEngineError,
        StateMismatchError,
    )
    from prune_engine.losses import scores
    from prune_engine.policies import (
        BPAS,
        UCB,
        ActivationMonitor,
        Budget,
        EpsilonGreedy,
        InfoBatch,
        InfoBatchQuantile,
        KeepAll,
        RandomBatches,
        RandomSubset,
    )
    from prune_engine.recording import export_scores
    from prune_engine.terminal_view import live

__version__ = "0.1.0"

__all__ = [
    "BPAS",
    "UCB",
    "ActivationMonitor",
    "Budget",
    "CoverageError",
    "EpochReport",
    "EpsilonGreedy",
    "InfoBatch",
    "InfoBatchQuantile",
    "KeepAll",
    "NonFiniteLossError",
    "PruneEngine",
    "PruneEngineError",
    "RandomBatches",
    "RandomSubset",
    "StateMismatchError",
    "__version__",
    "backends",
    "coresets",
    "data",
    "epoch",
    "export_scores",
    "host",
    "integrations",
    "live",
    "load_state",
    "loggers",
    "losses",
    "ops",
    "policies",
    "recording",
    "save_state",
    "scores",
    "sharding",
]

# The module that each public name comes from; "" where the name is itself a module. They are
# imported when first asked for (PEP 562): most need torch, which takes seconds to import, and
# prune_engine.host is for data-loading workers that never do.
_HOMES: dict[str, str] = {
    **dict.fromkeys(("backends", "coresets", "data", "epoch", "host"), ""),
    **dict.fromkeys(("integrations", "loggers", "losses", "ops", "policies"), ""),
    **dict.fromkeys(("recording", "sharding"), ""),
    "scores": "losses",
    "PruneEngine": "engine",
    "EpochReport": "epoch",
    "export_scores": "recording",
    "live": "terminal_view",
    **dict.fromkeys(("load_state", "save_state"), "checkpoint"),
    **dict.fromkeys(("ActivationMonitor", "BPAS", "Budget", "EpsilonGreedy"), "policies"),
    **dict.fromkeys(("InfoBatch", "InfoBatchQuantile", "KeepAll", "RandomBatches"), "policies"),
    **dict.fromkeys(("RandomSubset", "UCB"), "policies"),
    **dict.fromkeys(("CoverageError", "NonFiniteLossError", "PruneEngineError"), "errors"),
    "StateMismatchError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    module = importlib.import_module(f"{__name__}.{home or name}")
    value = getattr(module, name) if home else module
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
