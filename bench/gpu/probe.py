# SPDX-License-Identifier: Apache-2.0
"""What python finds here: the GPU, torch, the library that was carried. ``python -m gpu.probe``."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import environment
import torch

from gpu import events
from gpu.place import PLACES, Place
from prune_engine import backends
from prune_engine.backends import surroundings


def facts(place: Place) -> dict[str, Any]:
    """Versions, device, and what the backend says."""
    found: dict[str, Any] = dict(environment.describe())
    found["size"], found["gpu"] = place.name, torch.cuda.is_available()
    if found["gpu"]:
        here = torch.cuda.get_device_properties(0)
        found |= {"device": here.name, "arch": f"{here.major}.{here.minor}"}
        found |= {
            "multiprocessors": here.multi_processor_count,
            "l2_bytes": getattr(here, "L2_cache_size", None),
        }
    else:
        found["device"] = "cpu"
    try:
        import triton

        found["triton"] = str(triton.__version__)
    except ImportError:
        found["triton"] = "none"
    library = surroundings.LIBRARY
    found["library"] = str(library)
    if library.is_file():
        found["library_sha256"] = hashlib.sha256(library.read_bytes()).hexdigest()
        found["library_build"] = surroundings.build()
    try:
        backends.load(place.backend)
        found["refused"] = ""
    except RuntimeError as error:
        found["refused"] = str(error)
    return found


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu.probe", description=__doc__)
    parser.add_argument("--size", choices=PLACES, default="full")
    events.emit("facts", facts=facts(PLACES[parser.parse_args(argv).size]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
