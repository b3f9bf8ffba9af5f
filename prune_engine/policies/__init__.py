# SPDX-License-Identifier: Apache-2.0
"""The table of policies: one row each. A new one is a file, a row, and inherits its tests."""

from prune_engine.bands import Band, weight_table
from prune_engine.epoch.policy import Extras, Monitor, Policy, PolicyMemory, Progress, RunFacts
from prune_engine.ops.rule import Arrangement, LevelRule, Rule, Selection
from prune_engine.policies.bandit import UCB, EpsilonGreedy
from prune_engine.policies.baseline import KeepAll, RandomSubset
from prune_engine.policies.batches.bpas import BPAS
from prune_engine.policies.batches.monitor import ActivationMonitor
from prune_engine.policies.batches.random_batches import RandomBatches
from prune_engine.policies.budget import Budget
from prune_engine.policies.infobatch import InfoBatch
from prune_engine.policies.proportional import Proportional
from prune_engine.policies.quantile import InfoBatchQuantile

TABLE: dict[str, type[Policy]] = {
    "infobatch": InfoBatch,
    "infobatch_quantile": InfoBatchQuantile,
    "budget": Budget,
    "proportional": Proportional,
    "ucb": UCB,
    "epsilon_greedy": EpsilonGreedy,
    "random": RandomSubset,
    "full": KeepAll,
    "bpas": BPAS,
    "random_batches": RandomBatches,
}

__all__ = [
    "BPAS",
    "TABLE",
    "UCB",
    "ActivationMonitor",
    "Arrangement",
    "Band",
    "Budget",
    "EpsilonGreedy",
    "Extras",
    "InfoBatch",
    "InfoBatchQuantile",
    "KeepAll",
    "LevelRule",
    "Monitor",
    "Policy",
    "PolicyMemory",
    "Progress",
    "Proportional",
    "RandomBatches",
    "RandomSubset",
    "Rule",
    "RunFacts",
    "Selection",
    "weight_table",
]
