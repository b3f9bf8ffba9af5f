# SPDX-License-Identifier: Apache-2.0
"""Data pruning inside training: skip the samples already learned, at no cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_engine import backends, host, losses, ops, scores
    from prune_engine.buffer import ScoreBuffer
    from prune_engine.checkpoint import load_state, save_state
    from prune_engine.dataset import IndexedDataset
    from prune_engine.device_loader import DeviceLoader
    from prune_engine.engine import PruneEngine
    from prune_engine.history import History
    from prune_engine.monitor import ActivationMonitor
    from prune_engine.plan import EpochPlan
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
    from prune_engine.reducers import (
        BatchScalar,
        MixedPairs,
        Pixels,
        Reduced,
        Reducer,
        Tokens,
        mix_targets,
    )
    from prune_engine.sampler import PruneSampler
    from prune_engine.schedule import VirtualScheduler
    from prune_engine.subset import load_subset, save_subset, select_subset
    from prune_engine.types import (
        Band,
        CoverageError,
        EpochReport,
        NonFiniteLossError,
        PruneEngineError,
        Rule,
        Selection,
        StateMismatchError,
    )

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

# Public module -> the public names that live in it. They are imported when first asked for (PEP
# 562): most need torch, which takes seconds to import, and prune_engine.host is for data-loading
# workers that never do.
_HOMES: dict[str, tuple[str, ...]] = {
    "backends": (),
    "buffer": ("ScoreBuffer",),
    "checkpoint": ("load_state", "save_state"),
    "dataset": ("IndexedDataset",),
    "device_loader": ("DeviceLoader",),
    "engine": ("PruneEngine",),
    "history": ("History",),
    "host": (),
    "losses": (),
    "monitor": ("ActivationMonitor",),
    "ops": (),
    "plan": ("EpochPlan",),
    "reducers": (
        "BatchScalar",
        "MixedPairs",
        "Pixels",
        "Reduced",
        "Reducer",
        "Tokens",
        "mix_targets",
    ),
    "policies": (
        "BPAS",
        "UCB",
        "Budget",
        "EpsilonGreedy",
        "InfoBatch",
        "InfoBatchQuantile",
        "KeepAll",
        "Policy",
        "PolicyMemory",
        "Progress",
        "RandomBatches",
        "RandomSubset",
    ),
    "sampler": ("PruneSampler",),
    "schedule": ("VirtualScheduler",),
    "scores": (),
    "subset": ("load_subset", "save_subset", "select_subset"),
    "types": (
        "Band",
        "CoverageError",
        "EpochReport",
        "NonFiniteLossError",
        "PruneEngineError",
        "Rule",
        "Selection",
        "StateMismatchError",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name == home or name in names:
            module = importlib.import_module(f"{__name__}.{home}")
            value = module if name == home else getattr(module, name)
            globals()[name] = value  # the next access does not come here
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
