# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures of `pytest bench --benchmark-only`."""

from __future__ import annotations

import os

import pytest

# Before the first `import torch`: a spinning OpenMP barrier collapses when a core is taken away.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --bench-samples."""
    parser.addoption(
        "--bench-samples",
        type=int,
        default=1_281_167,
        help="samples in the data set (default: ImageNet-1k's 1,281,167)",
    )


@pytest.fixture(scope="session")
def num_samples(request: pytest.FixtureRequest) -> int:
    """N, from --bench-samples."""
    count: int = request.config.getoption("--bench-samples")
    return count
