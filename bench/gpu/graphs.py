# SPDX-License-Identifier: Apache-2.0
"""Capture a call in a CUDA graph."""

from __future__ import annotations

import torch

from gpu.operators import Call


def warmed(call: Call) -> None:
    """Call once on a side stream, as torch asks for before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)


def captured(call: Call) -> tuple[torch.cuda.CUDAGraph, object]:
    """The graph of a call and what the call returned; the call's first one may be this."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


class Replay:
    """Replays a call; its first use captures it, so that a refusal is met there."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Replay."""
        if self._graph is None:
            warmed(self._call)
            self._graph, self._kept = captured(self._call)
        self._graph.replay()
