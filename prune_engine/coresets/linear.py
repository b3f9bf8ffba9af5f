# SPDX-License-Identifier: Apache-2.0
"""The parts of linear algebra that torch's stubs do not type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_linalg: Any = torch.linalg


def lower_factor(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor of a positive matrix."""
    return _linalg.cholesky(matrix)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """Return x of ``factor x = right``, [n], with a lower triangle."""
    return _linalg.solve_triangular(factor, right[:, None], upper=False)[:, 0]
