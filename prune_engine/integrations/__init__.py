# SPDX-License-Identifier: Apache-2.0
"""The engine in the frameworks people train with: one module for each, imported on request.

``pe.integrations.huggingface`` needs ``transformers``, and so on; importing this package, or the
library, imports none of them.

Example:
    >>> import prune_engine as pe
    >>> pe.integrations.EXTRAS["lightning"]
    'lightning'
"""

from __future__ import annotations

import importlib
from typing import Any

from prune_engine.integrations.packages import EXTRAS

__all__: list[str] = []  # a star would import every framework


def __getattr__(name: str) -> Any:
    if name not in EXTRAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *EXTRAS})
