# SPDX-License-Identifier: Apache-2.0
"""The compiled operators of a call: those that were carried, else built for this GPU alone."""

from __future__ import annotations

import sys
from typing import Any

from gpu import child
from gpu.session import ROOT, Session

BUILD = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
BUILD_SECONDS, PROBE_SECONDS = 150.0, 60.0


class NoGpu(Exception):
    """There is nothing to hold a sitting on."""


class NoLibrary(Exception):
    """There is no library here that serves this GPU."""


def build_variables(arch: str) -> dict[str, str]:
    """One architecture, no NumPy module; another compiler's new warnings stop nothing."""
    return {"PE_CUDA": "1", "PE_HOST": "0", "PE_WERROR": "0", "PE_CUDA_ARCHS": arch}


def probe(session: Session) -> dict[str, Any]:
    """What a fresh python finds.

    Raises:
        NoLibrary: it cannot even say that.
    """
    found: dict[str, Any] = {}

    def hear(event: child.Event) -> None:
        found.update(event["facts"])

    command = session.module("probe")
    ending = child.run(command, limit=session.left(PROBE_SECONDS), hear=hear, **session.options())
    if not found:
        raise NoLibrary(f"python cannot import what it needs; see {session.log} ({ending})")
    return found


def prepare(session: Session) -> None:
    """Write down what serves here; build it where nothing does.

    Raises:
        NoGpu: torch finds none.
        NoLibrary: none was carried that serves, and none can be built.
    """
    found = probe(session)
    if session.place.on_gpu and not found["gpu"]:
        raise NoGpu("the sitting needs a GPU, and torch finds none")
    note = "as carried"
    if found["refused"]:
        note = f"built here, for the carried one was refused: {found['refused']}"
        variables = {**session.environ(), **build_variables(found["arch"])}
        options = {**session.options(), "environ": variables}
        ending = child.run(BUILD, limit=session.left(BUILD_SECONDS), **options)
        found = probe(session)
        if found["refused"]:
            why = ending.reason or f"setup.py ended with {ending.status}"
            raise NoLibrary(f"no library serves this GPU: {found['refused']} ({why})")
    commit = session.ledger.document["facts"].get("commit") or found["commit"]
    session.ledger.fact(**{**found, "commit": commit})
    value = f"{found['library'].removeprefix(f'{ROOT}/')}, {found.get('library_build', {})}"
    session.ledger.put(
        {"part": "library", "name": session.place.backend, "value": value, "note": note}
    )
