# SPDX-License-Identifier: Apache-2.0
"""Run a study: one process per training at a time, one line per training, resumable at any line."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from prune_engine.errors import LargeWeightWarning
from prune_engine.policies import KeepAll, Policy
from prune_engine.recipes import environment, files, owner
from prune_engine.recipes.compare import control_ratio
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.results import FULL, FULL_CUT, SCHEMA
from prune_engine.recipes.study.design import (
    CONTROLS,
    RATE,
    RESCALED,
    Found,
    Row,
    StudyOptions,
    Training,
)
from prune_engine.recipes.study.regimes import REGIMES, check_files, prepare
from prune_engine.recipes.study.rewards import make_rewarded
from prune_engine.recipes.study.rules import Scene, random_at, rule_named
from prune_engine.recipes.train import Arm, train_arm
from prune_engine.recipes.trainer import TrainConfig, make_trainer

HEADER = "study.json"


@lru_cache(maxsize=2)
def _data(regime: str, root: str | None, images: int) -> tuple[ImageData, ImageData]:
    """The data of a regime, read once for the trainings of a process."""
    return prepare(regime, root, images)


def execute(training: Training, options: StudyOptions) -> Row:
    """Run one training.

    Args:
        training: which.
        options: of the study.

    Returns:
        Its row: accuracy is nan-free and measured after the last epoch; seconds are of training
        alone, and those of the processor beside those of the wall.

    Raises:
        ValueError: the rule cannot save what it is told.
    """
    tested, held = _data(training.regime, options.data_root, options.images)
    data = held if training.phase == RATE else tested
    epochs = options.epochs * REGIMES[training.regime].epochs
    config = TrainConfig(options.model, epochs, options.batch_size, training.rate)
    arm = _arm(training, Scene(data, held, training.saving, epochs), options.batch_size)
    with warnings.catch_warnings():
        # Every arm has a rate of its own, chosen with its weights: there is nothing to warn of.
        warnings.simplefilter("ignore", LargeWeightWarning)
        make = make_rewarded if REGIMES[training.regime].rewarded else make_trainer
        result = train_arm(data, config, arm, training.seed, tests="last", make=make)
    last, full = result.rows[-1], epochs * (data.num_samples // options.batch_size)
    return {
        "phase": training.phase,
        "arm": training.arm,
        "of": training.of,
        "saving": training.saving,
        "seed": training.seed,
        "rate": training.rate,
        "accuracy": round(float(last["test_accuracy"]), 6),
        "diverged": last["train_loss"] is None,
        "samples": result.served,
        "forwards": sum(row["forwards"] for row in result.rows),
        "saved": round(1 - result.served / (full * options.batch_size), 5),
        "seconds": round(sum(row["seconds"] for row in result.rows), 3),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in result.rows), 3),
        "engine_seconds": round(sum(row["engine_seconds"] for row in result.rows), 4),
    }


def _arm(training: Training, scene: Scene, batch: int) -> Arm:
    """The arm that a training is of."""
    name, data, epochs = training.arm, scene.data, scene.epochs
    steps = epochs * (data.num_samples // batch)
    if name == FULL:
        return Arm(FULL, KeepAll())
    if name == FULL_CUT:
        wanted = training.samples
        if wanted is None:
            assert training.saving is not None
            wanted = round((1 - training.saving) * steps) * batch
        return Arm(FULL_CUT, KeepAll(), samples=max(1, wanted // batch) * batch)
    if name in CONTROLS:
        return Arm(name, _control(training, scene, batch))
    rule = rule_named(name)
    attach, within = rule.attach, None if rule.within is None else rule.within(scene)
    if attach is None:
        return Arm(name, rule.make(scene), within=within)
    return Arm(
        name,
        rule.make(scene),
        attach=lambda trainer, engine: attach(scene, trainer, engine),
        within=within,
    )


def _control(training: Training, scene: Scene, batch: int) -> Policy:
    """A random subset of the stated saving, or of as many samples as a rule has trained."""
    data, epochs = scene.data, scene.epochs
    samples = training.samples
    if samples is None:
        assert training.saving is not None
        samples = round((1 - training.saving) * epochs * (data.num_samples // batch) * batch)
    share = control_ratio(data.num_samples, batch, epochs, 1.0, samples)
    return random_at(share, weighs=training.arm == RESCALED)


def read(options: StudyOptions) -> list[Found]:
    """Read what a study has so far.

    Args:
        options: of the study.

    Returns:
        One for each regime.

    Raises:
        ValueError: the folder holds a study with other settings, or a line that is not one.
    """
    header = options.out / HEADER
    if header.is_file():
        settings = files.read_json(header).get("settings")
        if settings != options.settings():
            raise ValueError(
                f"out: {options.out} holds a study with other settings, {settings}, got "
                f"{options.settings()}: give another --out"
            )
    return [Found(name, _rows(options.out / f"{name}.jsonl"), options) for name in options.regimes]


def _rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file but for one that a killed run has left in part."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row: Any = json.loads(line)
            Training(path.stem, *(row[name] for name in KEY))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise ValueError(f"{path}:{number}: not a row of a study ({error})") from error
        yield row


KEY = ("phase", "arm", "of", "saving", "seed", "rate")


def reopen(folder: Path) -> StudyOptions:
    """Return the options with which a study was called last, where no training is to start.

    Args:
        folder: of the study.

    Returns:
        The options, with ``minutes=0``.

    Raises:
        FileNotFoundError: there is no study.
        ValueError: its header is not one.
    """
    header = files.read_json(folder / HEADER)
    try:
        words: dict[str, Any] = {**header["settings"], **header["asked"]}
        for name in ("rates", "regimes", "rules", "savings"):
            words[name] = tuple(words[name])
        return StudyOptions(folder, **words, minutes=0)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / HEADER}: not the header of a study ({error!r})") from error


def run(options: StudyOptions, say: Callable[[str], None]) -> list[Found]:
    """Run what a study lacks, and write each row as it comes.

    Args:
        options: of the study.
        say: receives one line per training.

    Returns:
        What is there in the end, one for each regime.

    Raises:
        ValueError: the folder holds another study, or belongs to one that runs.
        FileNotFoundError: a data file is missing.
    """
    with owner.owned(options.out):
        found = read(options)
        piece = _open(options)
        for name in options.regimes:
            _mend(options.out / f"{name}.jsonl")
        check_files(options.regimes, options.data_root)
        _train(options, found, piece, say)
    return found


def _open(options: StudyOptions) -> int:
    """Write the header, with where this piece of the study runs; return the piece's number."""
    path = options.out / HEADER
    header = files.read_json(path) if path.is_file() else {}
    pieces: list[dict[str, Any]] = header.get("pieces", [])
    place = environment.describe()
    if not pieces or pieces[-1] != place:
        pieces.append(place)
    told = {"settings": options.settings(), "asked": options.asked()}
    files.write_json(path, {"schema": SCHEMA, **told, "pieces": pieces})
    return len(pieces) - 1


def _mend(path: Path) -> None:
    """Take away the part of a line that a killed run has left."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        files.write_bytes(path, text[: text.rfind(b"\n") + 1])


def _train(
    options: StudyOptions, found: list[Found], piece: int, say: Callable[[str], None]
) -> None:
    """Keep the workers busy until nothing is missing, or the time is over."""
    began = time.monotonic()
    refused: set[tuple[Any, ...]] = set()
    running: dict[Future[Row], tuple[Found, Training]] = {}
    with ProcessPoolExecutor(
        options.workers, mp_context=get_context("spawn"), initializer=_prepare_worker
    ) as pool:
        try:
            while True:
                late = options.minutes is not None and (
                    time.monotonic() - began >= 60 * options.minutes
                )
                busy = {(each.regime, *training.key) for each, training in running.values()}
                waiting = () if late else _waiting(found, busy | refused)
                for each, training in waiting:
                    if len(running) == options.workers:
                        break
                    running[pool.submit(execute, training, options)] = (each, training)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    each, training = running.pop(future)
                    _take(future, each, training, piece, options.out, refused, say)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare_worker() -> None:
    """Give a worker one thread, and let it end with the process that has started it."""
    torch.set_num_threads(1)
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this process once its parent is gone: a killed one leaves a pool waiting for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _waiting(found: list[Found], passed: set[tuple[Any, ...]]) -> Iterator[tuple[Found, Training]]:
    for each in found:
        for training in each.pending():
            if (each.regime, *training.key) not in passed:
                yield each, training


def _take(
    future: Future[Row],
    found: Found,
    training: Training,
    piece: int,
    out: Path,
    refused: set[tuple[Any, ...]],
    say: Callable[[str], None],
) -> None:
    """Write the row of a training, or say why it has none."""
    name = f"{training.regime}: {training.arm}"
    try:
        row = {**future.result(), "piece": piece}
    except ValueError as error:  # a rule that cannot save so much: its cell stays empty
        if training.arm in (FULL, FULL_CUT, *CONTROLS):
            raise
        refused.add((found.regime, *training.key))
        say(f"{name}: {error}")
        return
    with (out / f"{training.regime}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
    found.add(row)
    stated = "its own" if training.saving is None else f"{100 * training.saving:.0f}%"
    of = "" if training.of is None else f" of {training.of}"
    say(
        f"{name}{of}, {stated}, {training.phase}, seed {training.seed}, rate {training.rate:g}: "
        f"{100 * row['accuracy']:.2f}%, {100 * row['saved']:.1f}% saved, {row['seconds']:.1f} s"
    )
