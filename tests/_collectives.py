# SPDX-License-Identifier: Apache-2.0
"""Counts the collectives of a group."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Collectives(TorchDispatchMode):
    """Count what goes over the wire."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "c10d" in str(func)
        return func(*args, **(kwargs or {}))
