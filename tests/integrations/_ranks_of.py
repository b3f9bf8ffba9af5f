# SPDX-License-Identifier: Apache-2.0
"""Work on two gloo ranks, found by a framework in the environment, as under torchrun."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import _processes
import _torchvision

_torchvision.define()  # before a rank imports the test module


def _under_torchrun(
    rank: int, size: int, work: Callable[..., None], port: int, *given: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    work(rank, size, *given)


def on_ranks(work: Callable[..., None], size: int, *given: Any) -> None:
    """Run ``work(rank, size, *given)``, a function of a test module; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    codes = _processes.start_ranks(_under_torchrun, size, work, port, *given).join()
    assert codes == [0] * size
