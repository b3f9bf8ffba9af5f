# SPDX-License-Identifier: Apache-2.0
"""Scores divided among the ranks, for data sets beyond one device (experimental)."""

from prune_engine.sharding.layout import owned, shard_cost

__all__ = ["owned", "shard_cost"]
