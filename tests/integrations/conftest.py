# SPDX-License-Identifier: Apache-2.0
"""The frameworks' own packages: `make test-integrations` has them, the other tests do not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

WANTED = "PE_INTEGRATIONS"
collect_ignore_glob = [] if os.environ.get(WANTED) else ["test_*.py"]

if os.environ.get(WANTED):
    # PyPI's torchvision is built for a torch with CUDA: beside a CPU torch its import fails where
    # it registers these two, and with it that of most frameworks.
    import _torchvision

    _torchvision.define()
    os.environ.setdefault("KERAS_BACKEND", "torch")


def pytest_configure(config: pytest.Config) -> None:
    """Let the frameworks warn as they like; what this library warns of stays an error."""
    if not os.environ.get(WANTED):
        return  # the filters are of a whole session: those of the other tests would lose theirs
    config.addinivalue_line("filterwarnings", "default")
    config.addinivalue_line("filterwarnings", "error:::prune_engine")


@pytest.fixture(autouse=True)
def rng_guard() -> Iterator[None]:
    """Frameworks seed the global generators: the guard of the other tests is not for them."""
    yield
