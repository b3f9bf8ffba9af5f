# SPDX-License-Identifier: Apache-2.0
"""Which rule beats a random subset, and where: ``prune-engine study``."""
