# SPDX-License-Identifier: Apache-2.0
"""Copies of a run, by ``copy.deepcopy``, ``pickle`` or a worker that is spawned."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from prune_engine.epoch import ranks
from prune_engine.errors import PruneEngineError

PLACE = ("engine_seconds", "part_seconds", "_seconds_before")  # what no state has


def refuse_to_copy(what: str) -> PruneEngineError:
    """Say why what several ranks have together is not copied, and what is there instead."""
    return PruneEngineError(
        f"{what} cannot be copied or pickled, for its state is of all ranks together: take "
        "state_dict() on every rank and load it into an engine made with the same arguments; a "
        "data set whose workers are spawned must not hold the engine"
    )


def pack(state: Mapping[str, Any]) -> bytes:
    """Return a state as bytes, by value.

    To a process that is spawned torch sends tensors by shared memory, which is gone by then where
    nothing but the pickle held them.
    """
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def unpack(content: bytes) -> dict[str, Any]:
    """Return the state that was packed, on the cpu."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def reduce_run(run: Any) -> tuple[Any, ...]:
    """Return how to make a run again from its arguments and its state (``object.__reduce__``).

    Args:
        run: with one rank; a monitor that was attached stays behind, for it holds the model.

    Returns:
        A function and its arguments.

    Raises:
        PruneEngineError: the run has a process group.
    """
    if run.process_group is not None or not ranks.alone():
        raise refuse_to_copy("an engine with a process group")
    saved = run.state_dict()
    del saved["buffer"]  # it travels with the buffer, which the engine has too
    arguments = (
        run.policy,
        run.mode,
        run.num_epochs,
        run.horizon,
        run.seed,
        None,
        run.on_nonfinite,
        run.coverage,
    )
    place = {name: getattr(run, name) for name in PLACE}
    return revive_run, (type(run), run.buffer, arguments, pack(saved), place)


def revive_run(
    kind: Any, buffer: Any, arguments: tuple[Any, ...], saved: bytes, place: dict[str, Any]
) -> Any:
    """Make a run again around a buffer that was copied, at the same place of the same epoch."""
    whole = {**unpack(saved), "buffer": buffer.state_dict()}
    run = kind(buffer, *arguments)
    run.load_state_dict(whole)
    for name, value in place.items():
        setattr(run, name, value)
    return run
