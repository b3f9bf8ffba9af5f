# SPDX-License-Identifier: Apache-2.0
"""What ``prune-engine select`` does: train a small model, embed, choose, write the subset."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine import coresets, ops
from prune_engine.bands import decimal_fraction
from prune_engine.coresets.dynamics import DYNAMICS, DynamicsMemory, TrainingDynamics
from prune_engine.coresets.method import Samples, Scored
from prune_engine.coresets.quotas import quotas
from prune_engine.data.subset import load_subset, save_subset
from prune_engine.engine import PruneEngine
from prune_engine.epoch.state import check_seed
from prune_engine.files import naming
from prune_engine.losses import scores
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import store_plain
from prune_engine.policies import KeepAll, Policy
from prune_engine.recipes.data import ImageData, load
from prune_engine.recipes.train import Arm, ArmResult, train_arm
from prune_engine.recipes.trainer import ImageTrainer, TrainConfig, Trainer

METHODS = tuple(coresets.TABLE)
RECORDED = ("forgetting", *DYNAMICS)  # of a training as it goes, not of its last model
OWN = {"deepfool": coresets.DeepFool, "influence": coresets.Influence}  # scores of the methods
OF_LOGITS = ("nll", "el2n", "grand", "margin", "least_confidence", "entropy")
EPOCHS = 10  # of the small model, as in DeepCore's example
LEAST_EPOCHS = {"dyn_unc": 2, "dual": 2, "tdds": 3}  # that make one window


@dataclass(frozen=True)
class SelectOptions:
    """One call of ``prune-engine select``.

    Args:
        method: a name of ``coresets.TABLE``.
        data: an image set of ``data.DATA_SETS``.
        train: of the small model.
        count: how many samples, or
        fraction: which share of all, in 0..1, rounded down.
        balance: choose class by class.
        seed: of the small model and of the choice.
        runs: models that a score is averaged over, seeds seed, seed + 1, ...
        score: for ``stratified`` and ``hardest``: which.
        beta: for ``stratified``: share of the hardest that is left out.
        data_root: the folder of the files.
        limit: first training samples only.
        folder: for the features, mapped to files there.
        exact: for ``deepfool``: how far the images themselves must move, among the ten likeliest
            classes, in place of the last layer's closed form.
    """

    method: str
    data: str
    train: TrainConfig
    count: int | None = None
    fraction: float | None = None
    balance: bool = True
    seed: int = 0
    runs: int = 1
    score: str | None = None
    beta: float = 0.0
    data_root: str | None = None
    limit: int | None = None
    folder: Path | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        store_plain(self)
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if (self.count is None) == (self.fraction is None):
            raise ValueError("exactly one of count and fraction must be given")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be in 0..1, got {self.fraction}")
        check_seed(self.seed)
        if self.runs < 1:
            raise ValueError(f"runs: expected at least 1, got {self.runs}")
        scored = issubclass(coresets.TABLE[self.method], Scored) or self.takes_any_score
        if self.runs > 1 and not scored:
            raise ValueError(f"runs: expected 1 for {self.method}, which has no score to average")
        if self.score is not None and not self.takes_any_score:
            raise ValueError(f"score: expected with stratified or hardest only, got {self.method}")
        if self.score not in (None, *OF_LOGITS, *RECORDED):
            known = ", ".join((*OF_LOGITS, *RECORDED))
            raise ValueError(f"score: expected one of {known}, got {self.score!r}")
        if self.exact and self.method != "deepfool":
            raise ValueError(f"exact: expected with deepfool only, got {self.method}")
        if self.beta and self.method != "stratified":
            raise ValueError(f"beta: expected with stratified only, got {self.method}")
        least = LEAST_EPOCHS.get(self.score_name or "", 1)
        if self.train.epochs < least:
            raise ValueError(
                f"epochs: expected at least {least} for {self.score_name}, got {self.train.epochs}"
            )

    @property
    def takes_any_score(self) -> bool:
        """Whether the method is made of whatever score it is given."""
        return self.method in ("stratified", "hardest")

    @property
    def score_name(self) -> str | None:
        """The score that is made of each model, where the method takes one."""
        if self.takes_any_score:
            return self.score or "el2n"
        if self.method == "forgetting" or self.runs > 1 or self.exact:
            return self.method
        return None

    def number(self, num_samples: int) -> int:
        """Return k."""
        if self.fraction is None:
            return self.count or 0
        return int(decimal_fraction(self.fraction) * num_samples)


@dataclass(frozen=True)
class Trained:
    """What is left of a small model: what it says of each sample, and what was recorded."""

    embedding: coresets.Embedding
    recorded: Tensor | None  # by the engine as it trained, or made of the inputs afterwards


def choose(
    options: SelectOptions,
    out: Path,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train, embed, choose and write.

    Args:
        options: what and how.
        out: the ``.npy`` to write.
        say: receives a line per epoch and step.
        progress: of the choice itself, see ``coresets.select``.

    Returns:
        What was written, ready for JSON.

    Raises:
        FileNotFoundError: a data file is missing.
        ValueError: an argument does not fit, or the data set is no images.
    """
    if out.suffix != ".npy":
        raise ValueError(f"--out must end in .npy, got {out.name!r}")
    data = load(options.data, options.data_root, limit=options.limit)
    if not isinstance(data, ImageData):
        raise ValueError(f"data: expected images, got {options.data}: it has no classes")
    k, began = options.number(data.num_samples), time.perf_counter()
    if not 0 <= k <= data.num_samples:
        raise ValueError(f"count must be in 0..{data.num_samples}, got {k}")
    method = make_method(options)
    _check_left(method, options, data.train_labels, k)
    ready(out)
    given: dict[str, Any] = {}
    if method.needs:
        given = evidence(options, data, say)
    chose = time.perf_counter()
    found = coresets.select(
        method,
        k=k,
        targets=data.train_labels,
        balance=options.balance,
        seed=options.seed,
        progress=progress,
        **{name: value for name, value in given.items() if name in (*method.needs, "scores")},
    )
    ended = time.perf_counter()
    about = {
        "method": options.method,
        "score": options.score_name,
        "exact": options.exact,
        "balance": options.balance,
        "seed": options.seed,
        "runs": options.runs if method.needs else 0,
        "model": options.train.model if method.needs else None,
        "epochs": options.train.epochs if method.needs else 0,
        "seconds": ended - began,
        "select_seconds": ended - chose,
    }
    weighed = bool((found.weights != 1).any())
    noted = {**about, "weights": [float(w) for w in found.weights] if weighed else None}
    save_subset(out, found.indices, data.num_samples, about=noted)
    return {
        "out": str(out),
        "count": len(found),
        "num_samples": data.num_samples,
        **about,
        "weighed": weighed,
        "effective": round(found.effective, 1),
    }


def ready(out: Path) -> None:
    """Make the folder that a file is to be written to, before hours are spent on its content."""
    with naming(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise OSError(errno.EISDIR if out.is_dir() else errno.EACCES, "cannot be written", str(out))


def _check_left(method: coresets.Method, options: SelectOptions, labels: Tensor, k: int) -> None:
    """Refuse more samples than a share of the hardest leaves, before a model is trained."""
    if not isinstance(method, coresets.Stratified):
        return
    sizes = host_ints(torch.bincount(labels)) if options.balance else [len(labels)]
    for count, size in zip(quotas(sizes, k), sizes, strict=True):
        method.check_count(count, size)


def make_method(options: SelectOptions) -> coresets.Method:
    """Return the method of the options' words."""
    if options.method == "stratified":
        return coresets.Stratified(beta=options.beta)
    return coresets.TABLE[options.method]()


def evidence(options: SelectOptions, data: ImageData, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what a method is made of: of one model, or a score's mean over several."""
    name = options.score_name
    runs = [one_model(options, data, options.seed + r, say) for r in range(options.runs)]
    if name is not None:
        return {"scores": scores.mean([score_of(name, run) for run in runs])}
    first = runs[0].embedding
    return {"features": first.features, "logits": first.logits, "head": first.head}


def score_of(name: str, run: Trained) -> Tensor:
    """Return a score by its name, of a model's logits or as it was recorded."""
    if run.recorded is not None:
        return run.recorded
    made = run.embedding
    if name in OWN:
        rank = torch.arange(len(made.logits))
        samples = Samples(rank, made.features, made.logits, made.targets, head=made.head)
        return OWN[name]().score(samples)
    if name == "grand":
        return scores.grand(made.logits, made.targets, made.features)
    if name in ("nll", "el2n"):
        return getattr(scores, name)(made.logits, made.targets)
    return getattr(scores, name)(made.logits)


def one_model(
    options: SelectOptions, data: ImageData, seed: int, say: Callable[[str], None]
) -> Trained:
    """Train the small model on everything, and embed the training set without augmentation."""
    name = options.score_name
    config, policy = options.train, cast("Policy", KeepAll())
    if name == "forgetting":
        config = replace(config, score="forgetting")
    elif name in DYNAMICS:
        # Several windows: who was in the first epoch's dropped tail has those that come later.
        window = min(10, max(2, config.epochs // 2))
        classes = data.num_classes if name == "tdds" else 0
        policy = TrainingDynamics(window, max(window, 30), num_classes=classes)
        config = replace(config, score="el2n")  # any that lets the engine see the logits
    kept: list[tuple[ImageTrainer, PruneEngine]] = []

    def on_end(trainer: Trainer, engine: PruneEngine) -> None:
        assert isinstance(trainer, ImageTrainer)
        kept.append((trainer, engine))

    def on_row(result: ArmResult) -> None:
        row = result.rows[-1]
        say(
            f"{options.method}: model of seed {seed}, epoch {row['epoch'] + 1}/{config.epochs}, "
            f"test {100 * row['test_accuracy']:.2f}%"
        )

    arm = Arm("selection", policy)
    train_arm(data, config, arm, seed, on_row, on_end)
    trainer, engine = kept[0]
    say(f"{options.method}: embedding {data.num_samples} images")
    folder = None if options.folder is None else options.folder / f"seed{seed}"
    made = coresets.embed(
        trainer.model,
        trainer.in_order(),
        num_samples=data.num_samples,
        folder=folder,
        amp=config.amp,
    )
    recorded: Tensor | None = None
    if name == "forgetting":
        recorded = scores.forgetting_events(engine.scores()).cpu()
    elif name in DYNAMICS:
        assert isinstance(engine.memory, DynamicsMemory)
        recorded = engine.memory.scores(name).cpu()
    elif options.exact:
        say(f"{options.method}: moving {data.num_samples} images to the nearest boundary")
        moved = [coresets.deepfool(trainer.model, x) for x, _, _ in trainer.in_order()]
        recorded = torch.cat(moved).cpu()
    return Trained(made, recorded)


def read_chosen(path: Path, num_samples: int | None = None) -> tuple[coresets.Coreset, float]:
    """Read a subset, with the weights and the seconds that its note names.

    Args:
        path: of the array.
        num_samples: N, where known.

    Returns:
        The coreset (its order is not kept) and the seconds that choosing took.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the files do not fit.
    """
    indices = torch.as_tensor(load_subset(path, num_samples=num_samples))
    note = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    about = note.get("about")
    words = cast("dict[str, Any]", about) if isinstance(about, dict) else {}
    weights, seconds = words.get("weights"), words.get("seconds") or 0.0
    if weights is None:
        weights = [1.0] * len(indices)
    if (
        not isinstance(weights, list)
        or len(cast("list[Any]", weights)) != len(indices)
        or not all(_is_amount(w) for w in cast("list[Any]", weights))
        or not _is_amount(seconds)
    ):
        raise ValueError(
            f"{path.name}.json: weights must be a number of at least 0 for each of {len(indices)} "
            "samples, and seconds a number"
        )
    values = torch.tensor(cast("list[float]", weights), dtype=torch.float32)
    return coresets.Coreset(indices, values, indices), float(seconds)


def _is_amount(value: Any) -> bool:
    """Say whether a value is a finite number of at least 0, and no flag."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < math.inf


def alike_at_random(indices: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Return a random subset of the same size and the same number of each class.

    Args:
        indices: [k] of the subset.
        labels: [N] of the data set.
        seed: of the draw.

    Returns:
        int64 [k], ascending.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> labels[alike_at_random(torch.tensor([0, 1, 2]), labels, 0)].tolist()
        [0, 0, 1]
    """
    rank = ops.shuffle(torch.arange(len(labels)), len(labels), seed=seed, epoch=0)
    chosen: list[Tensor] = []
    for label, count in enumerate(torch.bincount(labels[indices])):
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.argsort(rank[members])[: int(count)]])
    return torch.sort(torch.cat(chosen)).values
