# SPDX-License-Identifier: Apache-2.0
"""Losses and scores of a batch: reductions, reducers of other shapes, score functions."""
