# SPDX-License-Identifier: Apache-2.0
"""The engine's arguments and saved state: what is checked, written and refused."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from prune_engine.bands import COUNTERS, MAX_SEED, NUM_CLASSES
from prune_engine.epoch.plan import PLAN_TENSORS
from prune_engine.epoch.policy import Policy, PolicyMemory
from prune_engine.epoch.report import EpochReport, History
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import StateMismatchError
from prune_engine.plain import plain

Saved = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # a state, or its parts

STATE_VERSION = 3
REPORT_FIELDS = tuple(field.name for field in fields(EpochReport))
PLAN_FIELDS = ("epoch", *PLAN_TENSORS)


class Run(Protocol):
    """What of an engine goes into its state."""

    num_samples: int
    policy: Policy
    seed: int
    mode: Any
    num_epochs: int | None
    total_steps: int | None
    epoch: int
    history: History
    buffer: ScoreBuffer
    memory: PolicyMemory | None

    @property
    def cursor(self) -> int:
        """Positions consumed in the current epoch."""
        ...

    @property
    def steps(self) -> int:
        """Batches observed in the run."""
        ...


def sample_count(source: Any) -> int:
    """Return N from a data set or a number.

    Args:
        source: something with ``len``, or an int.

    Returns:
        N.

    Raises:
        TypeError: neither.
        ValueError: negative.

    Example:
        >>> sample_count([1, 2, 3]), sample_count(5)
        (3, 5)
    """
    source = plain(source)
    if isinstance(source, bool):
        raise TypeError("dataset_or_num_samples must be a sized data set or an int, got a bool")
    if isinstance(source, int):
        if source < 0:
            raise ValueError(f"dataset_or_num_samples must be at least 0, got {source}")
        return source
    if not hasattr(source, "__len__"):
        raise TypeError(
            "dataset_or_num_samples must be a sized data set or an int, got "
            f"{type(source).__name__}; samples of an iterable data set have no stable index"
        )
    return len(source)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of the words.

    Args:
        name: the argument's name.
        value: what came.
        choices: the words.

    Raises:
        ValueError: another.

    Example:
        >>> check_choice("mode", "epoch", ("epoch", "steps"))
    """
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_count(name: str, value: object, *, needed: bool = False) -> None:
    """Refuse what is neither a positive int nor, where it may be missing, None.

    Args:
        name: the argument's name.
        value: what came.
        needed: refuse None.

    Raises:
        TypeError: not an int.
        ValueError: not positive.

    Example:
        >>> check_count("num_epochs", 3)
    """
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive int, got {value}")


def check_seed(seed: object) -> None:
    """Refuse what the key of the generator cannot hold.

    Args:
        seed: must be an int in 0..2^63-1.

    Raises:
        TypeError: not an int.
        ValueError: out of range.

    Example:
        >>> check_seed(0)
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in 0..2^63-1, got {seed}")


def identity(run: Run) -> dict[str, Any]:
    """Return what must agree between a run and a state.

    Args:
        run: the engine.

    Returns:
        Plain data.
    """
    return {
        "version": STATE_VERSION,
        "num_samples": run.num_samples,
        "policy": run.policy.describe(),
        "seed": run.seed,
        "mode": run.mode,
        "num_epochs": run.num_epochs,
        "total_steps": run.total_steps,
    }


def checksum(run: Run) -> int:
    """Return a number that differs between ranks whose engines were made with other arguments.

    Args:
        run: the engine.

    Returns:
        32 bits.
    """
    return zlib.crc32(repr(identity(run)).encode())


def save(
    run: Run, buffer: dict[str, Any], threshold: list[float], ahead: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a state of tensors, numbers, strings, lists, tuples and dicts only.

    What changes its length within a run is a tuple: ``torch.distributed.checkpoint`` loads into the
    tensors of a fresh engine, by name and shape, and takes a tuple whole.

    Args:
        run: the engine.
        buffer: the buffer's state.
        threshold: the current plan's thresholds.
        ahead: the plans made ahead (``mode="steps"``).

    Returns:
        A new dictionary that ``torch.load(..., weights_only=True)`` can read back.
    """
    return {
        **identity(run),
        "epoch": run.epoch,
        "cursor": run.cursor,
        "steps": run.steps,
        "threshold": tuple(threshold),
        "history": tuple(run.history.state()),
        "ahead": tuple(ahead),
        "buffer": buffer,
        "memory": None if run.memory is None else run.memory.state_dict(),
    }


def check(run: Run, saved: Saved) -> Mapping[str, Any]:
    """Refuse a state of another run, before anything is loaded (edge case 9).

    Args:
        run: the engine.
        saved: the state.

    Returns:
        The same.

    Raises:
        StateMismatchError: it lists every difference.
    """
    saved = upgraded(single(saved))
    differences = [
        f"{name}: expected {expected!r}, got {saved.get(name)!r}"
        for name, expected in identity(run).items()
        if saved.get(name) != expected
    ]
    for name, kind in (
        ("epoch", int),
        ("cursor", int),
        ("steps", int),
        ("threshold", tuple),
        ("history", tuple),
        ("ahead", tuple),
        ("buffer", dict),
    ):
        if not isinstance(saved.get(name), kind):
            came = type(saved.get(name)).__name__
            differences.append(f"{name}: expected {kind.__name__}, got {came}")
        elif kind is int and saved[name] < 0:
            differences.append(f"{name}: expected at least 0, got {saved[name]}")
    if isinstance(saved.get("buffer"), Mapping):
        differences += run.buffer.state_problems(saved["buffer"])
    memory = saved.get("memory")
    if run.memory is None:
        if memory is not None:
            differences.append(f"memory: expected None, got {type(memory).__name__}")
    elif isinstance(memory, Mapping):
        problems = run.memory.state_problems(cast(Mapping[str, Any], memory))
        differences += [f"memory.{problem}" for problem in problems]
    else:
        differences.append(f"memory: expected dict, got {type(memory).__name__}")
    for name, expected_fields in (("history", REPORT_FIELDS), ("ahead", PLAN_FIELDS)):
        for at, row in enumerate(rows(saved.get(name))):
            missing = [field for field in expected_fields if field not in row]
            if missing:
                differences.append(f"{name}[{at}]: {', '.join(missing)} missing")
    if differences:
        raise StateMismatchError("the state does not fit: " + "; ".join(differences))
    return saved


def upgraded(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state of version 2 as one of this version; any other as it is.

    Version 3 has a device step counter, which counted the batches observed until then; one more
    counter and figure of a report, for float64 scores beyond float32, which were counted with those
    that are not finite; and weights for 256 classes, of which there were 8.

    Args:
        saved: the state; not changed.

    Returns:
        The state, to be checked.

    Example:
        >>> upgraded({"version": 1})
        {'version': 1}
    """
    buffer, steps = saved.get("buffer"), saved.get("steps")
    if saved.get("version") != 2 or not isinstance(buffer, Mapping):
        return saved
    held = {"step": steps, **cast("Mapping[str, Any]", buffer)}
    counters = held.get("counters")
    if isinstance(counters, Tensor) and counters.shape == (COUNTERS - 1,):
        held["counters"] = torch.cat([counters, counters.new_zeros(1)])
    history = tuple({"num_saturated": 0, **row} for row in rows(saved.get("history")))
    ahead = tuple(_with_all_classes(row) for row in rows(saved.get("ahead")))
    made = {"buffer": _with_all_classes(held), "history": history, "ahead": ahead}
    return {**saved, **made, "version": STATE_VERSION}


def _with_all_classes(held: Mapping[str, Any]) -> Mapping[str, Any]:
    """Pad a weight table of 8 classes to all of them."""
    table = held.get("weight_table")
    if not isinstance(table, Tensor) or table.shape != (8,):
        return held
    return {**held, "weight_table": torch.cat([table, table.new_zeros(NUM_CLASSES - 8)])}


def single(saved: Saved) -> Mapping[str, Any]:
    """Refuse a list of parts where a whole state is needed.

    Args:
        saved: what came.

    Returns:
        The same.

    Raises:
        StateMismatchError: it is no whole state.

    Example:
        >>> single({"epoch": 3})
        {'epoch': 3}
    """
    if isinstance(saved, Mapping):
        return saved
    raise StateMismatchError(
        "the state must be one dictionary, got a list: parts are for engines with shard_scores=True"
    )


def rows(value: object) -> list[Mapping[str, Any]]:
    """Return a tuple's rows, with nothing in those that are no mappings.

    Args:
        value: what a state has under ``history`` or ``ahead``.

    Returns:
        Mappings.

    Example:
        >>> rows(({"epoch": 1}, 7)), rows(None)
        ([{'epoch': 1}, {}], [])
    """
    if not isinstance(value, tuple):
        return []
    listed = cast(tuple[Any, ...], value)
    return [cast(Mapping[str, Any], row) if isinstance(row, Mapping) else {} for row in listed]
