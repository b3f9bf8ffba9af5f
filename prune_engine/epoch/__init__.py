# SPDX-License-Identifier: Apache-2.0
"""One epoch after another: scores, plans, the socket of the policies, reports and state."""

from prune_engine.epoch.plan import EpochPlan
from prune_engine.epoch.report import EpochReport, History
from prune_engine.epoch.score_buffer import ScoreBuffer

__all__ = ["EpochPlan", "EpochReport", "History", "ScoreBuffer"]
