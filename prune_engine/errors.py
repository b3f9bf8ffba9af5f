# SPDX-License-Identifier: Apache-2.0
"""What the library raises beside Python's own errors."""

from __future__ import annotations


class PruneEngineError(RuntimeError):
    """An engine was used in an order that cannot give a right answer."""


class CoverageError(PruneEngineError):
    """The samples seen in an epoch are not the samples that were planned."""


class NonFiniteLossError(PruneEngineError):
    """A loss was inf or nan and the engine was told ``on_nonfinite="raise"``."""


class LargeWeightWarning(UserWarning):
    """A sample's weight multiplies the learning rate beyond what the schedule ever has."""


class StateMismatchError(ValueError):
    """A saved state belongs to another data set, policy, seed or version."""
