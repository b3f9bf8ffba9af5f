# SPDX-License-Identifier: Apache-2.0
"""The table of policies: one row each. A new one is a file, a row, and inherits its tests."""

from prune_engine.bands import Band, weight_table
from prune_engine.epoch.policy import Extras, Monitor, Policy, PolicyMemory, Progress, RunFacts
from prune_engine.ops.rule import Arrangement, LevelRule, Rule, Selection, TopRule
from prune_engine.policies.bandit import UCB, EpsilonGreedy
from prune_engine.policies.baseline import KeepAll, RandomSubset
from prune_engine.policies.batches.bpas import BPAS
from prune_engine.policies.batches.monitor import ActivationMonitor
from prune_engine.policies.batches.random_batches import RandomBatches
from prune_engine.policies.budget import Budget
from prune_engine.policies.infobatch import InfoBatch
from prune_engine.policies.orderdp import OrderDP
from prune_engine.policies.proportional import Proportional
from prune_engine.policies.quantile import InfoBatchQuantile
from prune_engine.policies.rs2 import RS2
from prune_engine.policies.score_rule import ScoreRule

TABLE: dict[str, type[Policy]] = {
    "infobatch": InfoBatch,
    "infobatch_quantile": InfoBatchQuantile,
    "budget": Budget,
    "orderdp": OrderDP,
    "proportional": Proportional,
    "ucb": UCB,
    "epsilon_greedy": EpsilonGreedy,
    "random": RandomSubset,
    "rs2": RS2,
    "full": KeepAll,
    "bpas": BPAS,
    "random_batches": RandomBatches,
}

__all__ = [
    "BPAS",
    "RS2",
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
    "OrderDP",
    "Policy",
    "PolicyMemory",
    "Progress",
    "Proportional",
    "RandomBatches",
    "RandomSubset",
    "Rule",
    "RunFacts",
    "ScoreRule",
    "Selection",
    "TopRule",
    "weight_table",
]
