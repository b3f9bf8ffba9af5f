# SPDX-License-Identifier: Apache-2.0
"""Which package each integration needs, and what to say where it is missing."""

from __future__ import annotations

import importlib
from typing import Any

# Module of this package -> the package that it needs; "" where that is only an interface.
EXTRAS = {
    "accelerate": "accelerate",
    "huggingface": "transformers",
    "ignite": "ignite",
    "keras": "keras",
    "lightning": "lightning",
    "timm": "timm",
    "torchdata": "torchdata",
    "verl": "",
}


def need(module: str, extra: str) -> Any:
    """Import a framework's module, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the framework is there, and lacks something of its own
        raise ImportError(
            f"prune_engine.integrations.{extra} needs {error.name}: "
            f"pip install 'prune_engine[{extra}]'"
        ) from error
