# SPDX-License-Identifier: Apache-2.0
"""Policies that keep or drop whole fixed batches, and what they measure."""
