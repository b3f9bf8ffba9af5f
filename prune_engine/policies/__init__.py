# SPDX-License-Identifier: Apache-2.0
"""The table of policies: one row each. A new one is a file, a row, and inherits its tests."""

from prune_engine.bands import NUM_CLASSES, Band, check_fraction, decimal_fraction, weight_table
from prune_engine.epoch.per_sample import PerSample
from prune_engine.epoch.policy import (
    Extras,
    Monitor,
    Policy,
    PolicyMemory,
    Progress,
    RunFacts,
    annealing,
)
from prune_engine.ops.rule import Arrangement, LevelRule, Rule, Selection, TopRule
from prune_engine.policies.align_prune import AlignPrune, CleanReference
from prune_engine.policies.bandit import UCB, EpsilonGreedy
from prune_engine.policies.baseline import KeepAll, RandomSubset
from prune_engine.policies.batches.bpas import BPAS
from prune_engine.policies.batches.monitor import ActivationMonitor
from prune_engine.policies.batches.random_batches import RandomBatches
from prune_engine.policies.budget import Budget
from prune_engine.policies.dropout import ProgressiveDropout
from prune_engine.policies.fixed_counts import drop_drawn, select_fixed
from prune_engine.policies.ies import IES
from prune_engine.policies.infobatch import InfoBatch
from prune_engine.policies.kakurenbo import KAKURENBO
from prune_engine.policies.orderdp import OrderDP
from prune_engine.policies.proportional import Proportional
from prune_engine.policies.quantile import InfoBatchQuantile
from prune_engine.policies.rcap import RCAP
from prune_engine.policies.repb import RePB
from prune_engine.policies.rs2 import RS2
from prune_engine.policies.score_rule import ScoreRule
from prune_engine.policies.seta import SeTa
from prune_engine.policies.subset import Reselect, Subset
from prune_engine.policies.zero_variance import ZeroVariance

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
    "repb": RePB,
    "seta": SeTa,
    "kakurenbo": KAKURENBO,
    "ies": IES,
    "progressive_dropout": ProgressiveDropout,
    "full": KeepAll,
    "bpas": BPAS,
    "random_batches": RandomBatches,
}

__all__ = [
    "BPAS",
    "IES",
    "KAKURENBO",
    "NUM_CLASSES",
    "RCAP",
    "RS2",
    "TABLE",
    "UCB",
    "ActivationMonitor",
    "AlignPrune",
    "Arrangement",
    "Band",
    "Budget",
    "CleanReference",
    "EpsilonGreedy",
    "Extras",
    "InfoBatch",
    "InfoBatchQuantile",
    "KeepAll",
    "LevelRule",
    "Monitor",
    "OrderDP",
    "PerSample",
    "Policy",
    "PolicyMemory",
    "Progress",
    "ProgressiveDropout",
    "Proportional",
    "RandomBatches",
    "RandomSubset",
    "RePB",
    "Reselect",
    "Rule",
    "RunFacts",
    "ScoreRule",
    "SeTa",
    "Selection",
    "Subset",
    "TopRule",
    "ZeroVariance",
    "annealing",
    "check_fraction",
    "decimal_fraction",
    "drop_drawn",
    "select_fixed",
    "weight_table",
]
