# SPDX-License-Identifier: Apache-2.0
"""The engine's arguments and saved state: what is checked, written and refused."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prune_engine.bands import COUNTERS, MAX_EPOCH, MAX_SEED, NUM_CLASSES
from prune_engine.epoch import fits
from prune_engine.epoch.plan import PLAN_TENSORS
from prune_engine.epoch.policy import Policy, PolicyMemory
from prune_engine.epoch.report import EpochReport, History
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import StateMismatchError
from prune_engine.plain import plain

Saved = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # a state, or its parts

STATE_VERSION = 3
# Figures with a default came later: states of before have none.
REPORT_FIELDS: dict[str, type] = {
    field.name: {"int": int, "float": float, "bool": bool}[str(field.type)]
    for field in fields(EpochReport)
}
NEEDED_FIELDS = tuple(field.name for field in fields(EpochReport) if field.default is MISSING)
PLAN_FIELDS = ("epoch", *PLAN_TENSORS)
KINDS: dict[str, type] = {
    **dict.fromkeys(("epoch", "cursor", "steps"), int),
    **dict.fromkeys(("threshold", "history", "ahead"), tuple),
    "buffer": dict,
}


class Run(Protocol):
    """What of an engine goes into its state."""

    num_samples: int
    policy: Policy
    seed: int
    mode: Any
    num_epochs: int | None
    horizon: float
    epoch: int
    history: History
    buffer: ScoreBuffer
    memory: PolicyMemory | None

    @property
    def cursor(self) -> int:
        """Positions consumed in the current epoch."""
        ...

    @property
    def served(self) -> int:
        """Positions of the current epoch that are served."""
        ...

    @property
    def nominal(self) -> int:
        """Positions that the current epoch would serve if it kept everything."""
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
    wanted = "dataset_or_num_samples must be a sized data set or an int, got"
    if isinstance(source, type):
        raise TypeError(f"{wanted} the class {source.__name__}: make an object of it")
    if isinstance(source, str | bytes):
        raise TypeError(f"{wanted} {source!r}")
    if isinstance(source, DataLoader):
        raise TypeError(f"{wanted} a DataLoader, whose length counts batches: pass its dataset")
    if not hasattr(source, "__len__"):
        raise TypeError(
            f"{wanted} {type(source).__name__}; samples of an iterable data set have no "
            "stable index"
        )
    try:
        return len(source)
    except TypeError as error:
        raise TypeError(f"{wanted} {source!r}, which has no length ({error})") from error


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of the words.

    Args:
        name: the argument's name.
        value: what came.
        choices: the words.

    Raises:
        ValueError: another.

    Example:
        >>> check_choice("mode", "epoch", ("epoch", "flow"))
    """
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is no bool: a word such as "no" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")


def check_group(group: object) -> None:
    """Refuse what no process group can be, also where there is no group yet to ask."""
    kind = type(group)
    if kind.__module__ in ("builtins", "numpy", "torch") and kind not in (type(None), object):
        raise TypeError(
            f"process_group must be a group of torch.distributed or None, got {kind.__name__}"
        )


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
        "horizon": run.horizon if run.mode == "flow" else None,
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
        ahead: the plans made ahead (``mode="flow"``).

    Returns:
        A new dictionary that ``torch.load(..., weights_only=True)`` can read back.
    """
    return {
        **identity(run),
        "epoch": run.epoch,
        "cursor": run.cursor,
        "served": run.served,
        "nominal": run.nominal,
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
    saved = single(saved)
    if saved.get("mode") == "steps":
        raise StateMismatchError(
            "the state is of mode='steps', which is no more: mode='flow' counts pruning epochs "
            "instead of steps, and cannot go on where such a run was"
        )
    saved = upgraded(saved)
    differences = [
        f"{name}: expected {expected!r}, got {fits.shown(saved.get(name), whole=True)}"
        for name, expected in identity(run).items()
        if fits.differs(saved.get(name), expected)
    ]
    if fits.differs(saved.get("num_samples"), run.num_samples):
        differences.append(
            "where the data set has changed, make the engine for the state's number, restore, and "
            f"call resize({run.num_samples})"
        )
    differences += [f"{name}: missing" for name in ("num_epochs", "memory") if name not in saved]
    for name, kind in KINDS.items():
        came: Any = saved.get(name)
        if not isinstance(came, kind) or isinstance(came, bool):
            differences.append(f"{name}: expected {kind.__name__}, got {type(came).__name__}")
        elif kind is int and came < 0:
            differences.append(f"{name}: expected at least 0, got {came}")
        elif kind is int and came > (most := MAX_EPOCH if name == "epoch" else fits.MANY):
            differences.append(f"{name}: expected at most {most}, got {fits.shown(came)}")
    for name in ("served", "nominal"):
        if name in saved:  # a state of before has none
            differences += fits.int_problems(saved, {name: fits.MANY})
    differences += _plan_problems(run, saved) + _history_problems(saved)
    if isinstance(saved.get("buffer"), dict):
        buffer = cast("dict[str, Any]", saved["buffer"])
        differences += [f"buffer.{problem}" for problem in run.buffer.state_problems(buffer)]
        if all(fits.differs(buffer.get("epoch"), epoch) for epoch in _planned_epochs(run, saved)):
            differences.append("buffer.epoch: expected that of the state")
    differences += _memory_problems(run, saved.get("memory"))
    if differences:
        raise StateMismatchError("the state does not fit: " + "; ".join(differences))
    return saved


def _planned_epochs(run: Run, saved: Mapping[str, Any]) -> list[object]:
    """Return what epoch a state's buffer may be of: a flow's last one decides no other."""
    epoch = saved.get("epoch")
    if run.mode == "flow" and isinstance(epoch, int) and epoch and epoch == run.num_epochs:
        return [epoch, epoch - 1]
    return [epoch]


def _plan_problems(run: Run, saved: Mapping[str, Any]) -> list[str]:
    """List what of a state's plans cannot be, where they are tuples."""
    problems: list[str] = []
    for at, value in enumerate(fits.rows(saved.get("threshold"))):
        problems += fits.number_problems(f"threshold[{at}]", value, float)
    ahead, epoch = fits.rows(saved.get("ahead")), saved.get("epoch")
    if ahead and run.mode == "epoch":
        problems.append(f"ahead: expected no plan in mode='epoch', got {len(ahead)}")
    for at, came in enumerate(ahead):
        row, name = fits.row(came), f"ahead[{at}]"
        if missing := [field for field in PLAN_FIELDS if field not in row]:
            problems.append(f"{name}: {', '.join(missing)} missing")
            continue
        problems += [f"{name}.{problem}" for problem in run.buffer.plan_problems(row)]
        if fits.differs(row["epoch"], at + 1 + (epoch if isinstance(epoch, int) else 0)):
            problems.append(f"{name}.epoch: expected the {at + 1}. after the state's")
    return problems


def _history_problems(saved: Mapping[str, Any]) -> list[str]:
    """List what of a state's reports cannot be, where they are a tuple."""
    problems: list[str] = []
    reports = fits.rows(saved.get("history"))
    for at, came in enumerate(reports):
        row, name = fits.row(came), f"history[{at}]"
        if missing := [field for field in NEEDED_FIELDS if field not in row]:
            problems.append(f"{name}: {', '.join(missing)} missing")
            continue
        for field, kind in REPORT_FIELDS.items():
            if field in row:
                problems += fits.number_problems(f"{name}.{field}", row[field], kind)
        if fits.differs(row["epoch"], at):
            problems.append(f"{name}.epoch: expected {at}")
    listed = isinstance(saved.get("history"), tuple)
    if listed and fits.differs(saved.get("epoch"), len(reports)):
        problems.append(f"history: expected one report for each ended epoch, got {len(reports)}")
    return problems


def _memory_problems(run: Run, saved: object) -> list[str]:
    """List what of a state's memory does not fit the policy's."""
    if run.memory is None:
        return [] if saved is None else [f"memory: expected None, got {type(saved).__name__}"]
    if not isinstance(saved, Mapping):
        return [f"memory: expected dict, got {type(saved).__name__}"]
    problems = run.memory.state_problems(cast("Mapping[str, Any]", saved))
    return [f"memory.{problem}" for problem in problems]


def upgraded(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state of version 2 as one of this version; any other as it is.

    Version 3 has a device step counter, which counted the batches observed until then; one more
    counter, for float64 scores beyond float32, which were counted with those
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
    made: dict[str, Any] = {"buffer": _with_all_classes(held)}
    if isinstance(saved.get("ahead"), tuple):
        made["ahead"] = tuple(_with_all_classes(fits.row(came)) for came in saved["ahead"])
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
    if isinstance(saved, list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = "a list: parts are for engines with shard_scores=True"
    else:
        hint = f"{type(saved).__name__}: load_state reads files"
    raise StateMismatchError(f"the state must be one dictionary, got {hint}")


def restore_memory(memory: PolicyMemory, saved: Mapping[str, Any]) -> None:
    """Restore a policy's memory, and refuse one that arranges other samples than were kept.

    Args:
        memory: as it was where this raises.
        saved: a state that was checked.

    Raises:
        StateMismatchError: the memory and the weight classes are not of one epoch.
    """
    before = dict(vars(memory))
    try:
        memory.load_state_dict(saved["memory"])
        arrangement = memory.arrangement()
        if arrangement is not None:
            _check_arranged(arrangement.samples().cpu(), saved["buffer"]["weight_class"].cpu())
    except Exception:
        vars(memory).clear()
        vars(memory).update(before)
        raise


def _check_arranged(samples: Tensor, classes: Tensor) -> None:
    """Refuse samples that are not those of a class above 0, each once."""
    kept = int(torch.count_nonzero(classes))
    if samples.shape[0] != kept or not bool((classes[samples.to(torch.int64)] != 0).all()):
        raise StateMismatchError(
            f"the state does not fit: buffer.weight_class keeps {kept} samples, and memory "
            f"arranges {samples.shape[0]}, not the same ones"
        )
