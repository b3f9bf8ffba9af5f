# SPDX-License-Identifier: Apache-2.0
"""A state in parts: what each rank saves and reads where the scores are divided.

Each rank writes a part beside the file, which names the set of them. Parts of another set have
other names, and the file is written last: until then it names the set before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine.bands import MAX_INDEX
from prune_engine.epoch import ranks
from prune_engine.epoch.fits import differs, int_problems, tensor_problems
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import Saved
from prune_engine.epoch.state_file import read_file, replace_file
from prune_engine.errors import StateMismatchError
from prune_engine.sharding.buffer import ShardedBuffer
from prune_engine.sharding.layout import edges

SET_FORMAT = "prune_engine set of parts 1"
PART_FORMAT = "prune_engine part 1"
SET_FACTS = ("set", "size", "num_samples")  # which parts there are, in numbers
FIRST = {"first": MAX_INDEX}
MAX_SIZE = 2**20  # ranks
PART_TENSORS = ("records", "weight_class")  # of a state: those of the samples that a rank owns

Read = tuple[Saved, dict[str, Any]]  # a state or its parts, and what was saved along with it


def _range_of(buffer: ScoreBuffer) -> range:
    """Return the samples whose scores a buffer holds."""
    return buffer.owned if isinstance(buffer, ShardedBuffer) else range(buffer.num_samples)


def write(file: Path, content: Mapping[str, Any], device: torch.device, group: Any = None) -> None:
    """Write what every rank has of a state: one file, or a part of each beside it.

    Args:
        file: the file.
        content: with the state under ``engine`` and what the ranks share under ``extra``.
        device: the group's.
        group: the data-parallel group.

    Raises:
        ValueError: it holds what ``weights_only=True`` does not load; the file is untouched.
        OSError: a rank cannot write; the file is untouched, and all raise where there are parts.
    """
    if "shards" in content["engine"]["buffer"]:
        _save_parts(content["engine"], content["extra"], file, device, group)
    elif ranks.world(group)[0] == 0:
        _commit(file, content)


def _save_parts(
    saved: Mapping[str, Any], extra: dict[str, Any], file: Path, device: torch.device, group: Any
) -> None:
    """Write every rank's part, then the file that makes them the saved set."""
    rank, size = ranks.world(group)
    numbers = [0]

    def choose() -> None:
        if rank == 0:  # for all: the first number after those of any part that is there
            numbers.append(1 + max((number for number, _ in _listed(file)), default=0))

    def write() -> None:
        replace_file(part, {"format": PART_FORMAT, "set": number, "engine": saved})

    def commit() -> None:
        if rank == 0:
            facts = zip(SET_FACTS, (number, size, saved["num_samples"]), strict=True)
            _commit(file, {"format": SET_FORMAT, **dict(facts), "extra": extra}, number)

    def undo() -> None:  # nothing names these parts
        part.unlink(missing_ok=True)

    _together(choose, file, device, group)
    told = torch.tensor([max(numbers)], device=device)
    number = int(ranks.gather(told, group)[0].item())
    part = _part(file, number, rank, size)
    _together(write, file, device, group, undo)
    _together(commit, file, device, group)


def _commit(file: Path, content: Mapping[str, Any], number: int | None = None) -> None:
    """Write the file, then remove the parts of all sets but the one that it names."""
    replace_file(file, content)
    for other, part in _listed(file):
        if other != number:
            part.unlink(missing_ok=True)


def _together(
    work: Callable[[], None],
    file: Path,
    device: torch.device,
    group: Any,
    undo: Callable[[], None] | None = None,
) -> None:
    """Do something on every rank; where it fails on one, undo it on all, and all raise.

    A rank that is not told how the others fared must undo nothing: rank 0 may have been told, and
    have gone on to name the parts.
    """
    problem: Exception | None = None
    try:
        work()
    except Exception as error:
        problem = error
    failed = ranks.first_failure(problem, device, group)
    if failed is None:
        return
    if undo is not None:
        undo()
    raise problem or OSError(f"rank {failed} could not write its part of {file}")


def _part(file: Path, number: int, rank: int, size: int) -> Path:
    return file.with_name(f"{file.name}.{number}-{rank}-of-{size}")


def _listed(file: Path) -> list[tuple[int, Path]]:
    """List the parts that are there: of the saved set, and of others that were not finished."""
    name = re.compile(re.escape(file.name) + r"\.(\d+)-\d+-of-\d+")
    found = [(name.fullmatch(path.name), path) for path in file.parent.iterdir()]
    return [(int(match[1]), path) for match, path in found if match is not None]


def read(work: Callable[[], Read], file: Path, buffer: ScoreBuffer, group: Any = None) -> Read:
    """Read a state on each rank; where the scores are divided and one cannot, all raise.

    Args:
        work: reads what this rank needs.
        file: named in the message.
        buffer: the engine's.
        group: the data-parallel group.

    Returns:
        What ``work`` returned.

    Raises:
        OSError: this rank cannot read.
        StateMismatchError: what this rank read is no state, or another rank could not read.
    """
    if not isinstance(buffer, ShardedBuffer):
        return work()
    found: Read = {}, {}
    problem: OSError | StateMismatchError | None = None
    try:
        found = work()
    except (OSError, StateMismatchError) as error:
        problem = error
    ranks.fail_together(
        problem,
        lambda rank: StateMismatchError(f"{file}: rank {rank} could not read its samples"),
        buffer.device,
        group,
    )
    return found


def read_set(file: Path, content: Mapping[str, Any], buffer: ScoreBuffer) -> Read:
    """Read what an engine with this buffer needs of the set of parts that a file names.

    Args:
        file: beside which the parts are.
        content: of the file.
        buffer: the engine's.

    Returns:
        The parts, or the state that they make where this engine's scores are not divided; and what
        was saved along with them.

    Raises:
        StateMismatchError: the file names no parts, or one is missing or of another set.
    """
    if content.get("format") != SET_FORMAT:
        raise StateMismatchError(f"{file} holds no state of an engine")
    parts = _read_parts(file, content, buffer)
    divided = isinstance(buffer, ShardedBuffer)
    return parts if divided else assemble(parts, buffer), extra_of(file, content)


def extra_of(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was saved along with a state; refuse a file that a hand has changed."""
    extra = content.get("extra")
    if not isinstance(extra, dict):
        raise StateMismatchError(f"{file}: extra: expected dict, got {type(extra).__name__}")
    return cast("dict[str, Any]", extra)


def _read_parts(
    file: Path, facts: Mapping[str, Any], buffer: ScoreBuffer
) -> list[Mapping[str, Any]]:
    """Read the parts of a set that have samples of a buffer."""
    problems = int_problems(facts, {**dict.fromkeys(SET_FACTS, MAX_INDEX), "size": MAX_SIZE})
    if problems or not facts["size"]:
        raise StateMismatchError(f"{file}: {'; '.join(problems) or 'size: expected at least 1'}")
    number, size, num_samples = (facts[name] for name in SET_FACTS)
    if num_samples != buffer.num_samples:
        raise StateMismatchError(
            f"{file}: num_samples: expected {buffer.num_samples}, got {num_samples}"
        )
    own = _range_of(buffer)
    parts: list[Mapping[str, Any]] = []
    ranges = enumerate(pairwise(edges(num_samples, size)))
    ranks = [q for q, (at, end) in ranges if max(at, own.start) < min(end, own.stop)]
    for rank in ranks or [0]:  # whoever owns nothing needs to know where the run is
        part = _part(file, number, rank, size)
        if not part.is_file():
            raise StateMismatchError(f"{file} has {size} parts, but there is no {part.name}")
        loaded = read_file(part)
        content = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
        if content.get("format") != PART_FORMAT or content.get("set") != number:
            raise StateMismatchError(f"{part} is no part of the set that {file} names")
        parts.append(content.get("engine", {}))
    return parts


def assemble(parts: Sequence[Mapping[str, Any]], buffer: ScoreBuffer) -> dict[str, Any]:
    """Put together what one rank needs of a state, from the parts that some ranks saved.

    Args:
        parts: what ``state_dict`` returned on the ranks, in any order; those of the samples that
            this rank owns are enough. A state of undivided scores is one part.
        buffer: says which samples this rank owns.

    Returns:
        A state whose records and weight classes are those of the rank.

    Raises:
        StateMismatchError: samples are missing, twice there, or of another moment of the run.
    """
    own = _range_of(buffer)
    for number, part in enumerate(checked_parts(parts)):
        if not isinstance(part.get("buffer"), dict):
            raise StateMismatchError(f"part {number} of the state: buffer: expected dict, got none")
    whole: dict[str, Any] = dict(parts[0]) if parts else {}
    facts = ("version", "num_samples", "policy", "seed", "epoch", "cursor", "steps")
    found = 0
    mine = {name: torch.zeros_like(getattr(buffer, name), device="cpu") for name in PART_TENSORS}
    for number, part in enumerate(parts):
        differ = [name for name in facts if differs(part.get(name), whole.get(name))]
        if differ:
            raise StateMismatchError(
                f"the parts of a state must be of one moment, but part {number} differs from part "
                f"0 in {', '.join(differ)}"
            )
        for first, tensors in _shards(part, number):
            overlap = range(max(first, own.start), min(first + len(tensors[0]), own.stop))
            found += len(overlap)
            if overlap:
                here = slice(overlap.start - own.start, overlap.stop - own.start)
                there = slice(overlap.start - first, overlap.stop - first)
                for name, tensor in zip(PART_TENSORS, tensors, strict=True):
                    mine[name][here] = tensor[there]
    if found != len(own):
        raise StateMismatchError(
            f"the parts must hold each of the samples {own} once, got {found} of {len(own)}: pass "
            "the parts that all ranks saved"
        )
    if whole:
        whole["buffer"] = {**whole["buffer"], **mine}
        whole["buffer"].pop("shards", None)
    return whole


def _shards(part: Mapping[str, Any], number: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the first sample and the tensors of each shard that a part of a state has."""
    held = part["buffer"]
    shards = held.get("shards", {"all": held})
    listed: list[object] = [*shards.values()] if isinstance(shards, dict) else [None]
    for shard in listed:
        found = cast("dict[str, Any]", shard if isinstance(shard, dict) else {})
        first, length = found.get("first", 0), found.get("records")
        size = length.shape[:1] if isinstance(length, Tensor) else ()
        expected = {
            "records": torch.empty(size, dtype=torch.int64, device="meta"),
            "weight_class": torch.empty(size, dtype=torch.uint8, device="meta"),
        }
        problems = [*tensor_problems(found, expected), *int_problems({"first": first}, FIRST)]
        if problems:
            raise StateMismatchError(
                f"part {number} of the state holds no records and classes: {'; '.join(problems)}"
            )
        yield first, [found[name] for name in PART_TENSORS]


def checked_parts(parts: object) -> Sequence[Mapping[str, Any]]:
    """Refuse what is no sequence of parts of a state."""
    if isinstance(parts, list | tuple):
        listed = cast("Sequence[Any]", parts)
        wrong = [type(part).__name__ for part in listed if not isinstance(part, Mapping)]
        if not wrong:
            return listed
        raise StateMismatchError(f"the parts of a state must be dictionaries, got {wrong[0]}")
    raise StateMismatchError(
        f"the state must be a dictionary or a list of parts, got {type(parts).__name__}"
    )
