# SPDX-License-Identifier: Apache-2.0
"""Scores divided among the ranks (experimental)."""
