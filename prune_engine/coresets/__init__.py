# SPDX-License-Identifier: Apache-2.0
"""Fixed subsets by the published methods: one file and one row of the table each."""

from prune_engine.coresets.cal import CAL
from prune_engine.coresets.choose import TABLE, select
from prune_engine.coresets.contextual_diversity import ContextualDiversity
from prune_engine.coresets.craig import CRAIG
from prune_engine.coresets.deepfool import DeepFool, boundary_distance, deepfool
from prune_engine.coresets.dp import DatasetPruning
from prune_engine.coresets.dq import DatasetQuantization
from prune_engine.coresets.dynamics import DynamicsMemory, TrainingDynamics
from prune_engine.coresets.el2n import EL2N
from prune_engine.coresets.embedding import Embedding, embed
from prune_engine.coresets.facility_location import FacilityLocation
from prune_engine.coresets.forgetting import Forgetting
from prune_engine.coresets.glister import Glister
from prune_engine.coresets.gradmatch import GradMatch
from prune_engine.coresets.grand import GraNd, full_grand
from prune_engine.coresets.graphcut import GraphCut
from prune_engine.coresets.hardest import Hardest
from prune_engine.coresets.herding import Herding
from prune_engine.coresets.influence import Influence
from prune_engine.coresets.k_center import KCenter
from prune_engine.coresets.method import Coreset, Method, Pick, Samples, Scored
from prune_engine.coresets.random import Random
from prune_engine.coresets.stratified import Stratified
from prune_engine.coresets.uncertainty import Entropy, LeastConfidence, Margin

__all__ = [
    "CAL",
    "CRAIG",
    "EL2N",
    "TABLE",
    "ContextualDiversity",
    "Coreset",
    "DatasetPruning",
    "DatasetQuantization",
    "DeepFool",
    "DynamicsMemory",
    "Embedding",
    "Entropy",
    "FacilityLocation",
    "Forgetting",
    "Glister",
    "GraNd",
    "GradMatch",
    "GraphCut",
    "Hardest",
    "Herding",
    "Influence",
    "KCenter",
    "LeastConfidence",
    "Margin",
    "Method",
    "Pick",
    "Random",
    "Samples",
    "Scored",
    "Stratified",
    "TrainingDynamics",
    "boundary_distance",
    "deepfool",
    "embed",
    "full_grand",
    "select",
]
