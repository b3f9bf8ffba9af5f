# SPDX-License-Identifier: Apache-2.0
"""Scores divided among the ranks, for data sets beyond one device.

Experimental: tested with 2 and 3 processes on CPUs alone; names and files may change.
"""

from prune_engine.sharding.buffer import ShardedBuffer
from prune_engine.sharding.layout import ShardCost, owned, shard_cost
from prune_engine.sharding.run import ShardedPlan

__all__ = ["ShardCost", "ShardedBuffer", "ShardedPlan", "owned", "shard_cost"]
