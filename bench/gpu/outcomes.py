# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that says how each test ended as it ends: ``-p gpu.outcomes``.

A test that leaves the device unusable would fail all that follow it: the process ends there, and
whoever listens starts another for the rest.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from gpu import events

_state: dict[str, Any] = {"outcome": "passed", "why": "", "seconds": 0.0, "skips": 0}


def skipped_graphs() -> int:
    """CUDA graphs that torch's compiler made none of, in this process so far."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils.counters["inductor"]["cudagraph_skips"] if utils else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what an earlier process has run."""
    past = events.finished()
    left = [item for item in items if item.nodeid in past]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item.nodeid not in past]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say how many there are."""
    events.emit("collected", count=len(session.items))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be read has no test that could fail."""
    if report.failed:
        why = str(report.longrepr).strip().splitlines()[-1]
        events.emit("outcome", key=report.nodeid, outcome="failed", why=why, seconds=0, skips=0)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Say which test comes."""
    _state.update(outcome="passed", why="", seconds=0.0, skips=skipped_graphs())
    events.emit("begin", key=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst of a test's three phases."""
    _state["seconds"] += report.duration
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash else str(report.longrepr)
        _state.update(outcome="failed", why=(said.strip().splitlines() or [""])[0][:300])
    elif report.skipped and _state["outcome"] == "passed":
        _state["outcome"] = "skipped"


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Say how it ended."""
    told = {name: _state[name] for name in ("outcome", "why", "seconds")}
    skips = max(0, skipped_graphs() - _state["skips"])  # a test may set the counters back
    events.emit("outcome", key=nodeid, skips=skips, **told)
    if _state["outcome"] == "failed" and (fault := _device_fault()):
        events.emit("fault", why=f"{_state['why']}; the device: {fault}")
        sys.stdout.flush()
        os._exit(events.LOST)
    events.emit("end", key=nodeid)


def _device_fault() -> str:
    """What the device says, if a test broke it for this process."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
