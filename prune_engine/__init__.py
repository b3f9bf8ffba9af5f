# SPDX-License-Identifier: Apache-2.0
"""Data pruning inside training: skip the samples already learned, at no cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_engine import backends, host, losses, ops
    from prune_engine.bands import (
        Band,
        CoverageError,
        EpochReport,
        NonFiniteLossError,
        PruneEngineError,
        Rule,
        Selection,
        StateMismatchError,
    )
    from prune_engine.checkpoint import load_state, save_state
    from prune_engine.data.dataset import IndexedDataset
    from prune_engine.data.device_loader import DeviceLoader
    from prune_engine.data.sampler import PruneSampler
    from prune_engine.data.subset import load_subset, save_subset, select_subset
    from prune_engine.engine import PruneEngine
    from prune_engine.epoch.plan import EpochPlan
    from prune_engine.epoch.report import History
    from prune_engine.epoch.score_buffer import ScoreBuffer
    from prune_engine.losses import scores
    from prune_engine.losses.reducers import (
        BatchScalar,
        MixedPairs,
        Pixels,
        Reduced,
        Reducer,
        Tokens,
        mix_targets,
    )
    from prune_engine.policies import (
        BPAS,
        UCB,
        Budget,
        EpsilonGreedy,
        InfoBatch,
        InfoBatchQuantile,
        KeepAll,
        Policy,
        PolicyMemory,
        Progress,
        RandomBatches,
        RandomSubset,
    )
    from prune_engine.policies.batches.monitor import ActivationMonitor
    from prune_engine.schedule import VirtualScheduler

__version__ = "0.1.0"

__all__ = [
    "BPAS",
    "UCB",
    "ActivationMonitor",
    "Band",
    "BatchScalar",
    "Budget",
    "CoverageError",
    "DeviceLoader",
    "EpochPlan",
    "EpochReport",
    "EpsilonGreedy",
    "History",
    "IndexedDataset",
    "InfoBatch",
    "InfoBatchQuantile",
    "KeepAll",
    "MixedPairs",
    "NonFiniteLossError",
    "Pixels",
    "Policy",
    "PolicyMemory",
    "Progress",
    "PruneEngine",
    "PruneEngineError",
    "PruneSampler",
    "RandomBatches",
    "RandomSubset",
    "Reduced",
    "Reducer",
    "Rule",
    "ScoreBuffer",
    "Selection",
    "StateMismatchError",
    "Tokens",
    "VirtualScheduler",
    "__version__",
    "backends",
    "host",
    "load_state",
    "load_subset",
    "losses",
    "mix_targets",
    "ops",
    "save_state",
    "save_subset",
    "scores",
    "select_subset",
]

# Public name -> the module that it lives in; a module is named for itself. They are imported when
# first asked for (PEP 562): most need torch, which takes seconds to import, and prune_engine.host
# is for data-loading workers that never do.
_HOMES: dict[str, str] = {
    **dict.fromkeys(("backends", "data", "host", "losses", "ops", "policies", "sharding"), ""),
    "scores": "losses.scores",
    "ScoreBuffer": "epoch.score_buffer",
    "EpochPlan": "epoch.plan",
    "EpochReport": "bands",
    "History": "epoch.report",
    **dict.fromkeys(("load_state", "save_state"), "checkpoint"),
    "IndexedDataset": "data.dataset",
    "DeviceLoader": "data.device_loader",
    "PruneSampler": "data.sampler",
    **dict.fromkeys(("load_subset", "save_subset", "select_subset"), "data.subset"),
    "PruneEngine": "engine",
    "ActivationMonitor": "policies.batches.monitor",
    **dict.fromkeys(
        ("BatchScalar", "MixedPairs", "Pixels", "Reduced", "Reducer", "Tokens", "mix_targets"),
        "losses.reducers",
    ),
    **dict.fromkeys(
        (
            *("BPAS", "UCB", "Budget", "EpsilonGreedy", "InfoBatch", "InfoBatchQuantile"),
            *("KeepAll", "Policy", "PolicyMemory", "Progress", "RandomBatches", "RandomSubset"),
        ),
        "policies",
    ),
    "VirtualScheduler": "schedule",
    **dict.fromkeys(
        (
            *("Band", "CoverageError", "NonFiniteLossError", "PruneEngineError", "Rule"),
            *("Selection", "StateMismatchError"),
        ),
        "bands",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name] or name
    module = importlib.import_module(f"{__name__}.{home}")
    value = module if home.rpartition(".")[2] == name else getattr(module, name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
