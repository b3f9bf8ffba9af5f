# SPDX-License-Identifier: Apache-2.0
"""The regimes of a study: data sets in which a rule over scores may pay, or not.

Which images a regime trains, which are held out and how they are changed is drawn once, by a fixed
seed: it belongs to the regime and does not move with the seed of a training. The images held out
have the labels and the classes of the test set, whatever was done to those that are trained.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prune_engine.recipes.data import ImageData, load
from prune_engine.recipes.models import CHARACTERS
from prune_engine.recipes.text import PAD, TEXTS, TextData

HUMAN_LABELS = Path("cifar10n") / "train-human-labels.npz"
HELD_OUT, FEW_HELD_OUT = 2000, 240  # the latter of data sets below SMALL
SMALL = 5000
EASY, NOISE, IMBALANCE, COPIES = 0.85, 0.2, 100, 6
WINDOW, TESTED = 12, 10_000  # characters that are seen, and windows of the test

Change = Callable[[ImageData, int, torch.Generator], ImageData]


def _taken(data: ImageData, rows: Tensor) -> ImageData:
    """Those rows of the training images."""
    return replace(data, train_images=data.train_images[rows], train_labels=data.train_labels[rows])


def plain(data: ImageData, count: int, generator: torch.Generator) -> ImageData:
    """The first ``count`` images, of an order that was drawn."""
    return _taken(data, torch.arange(min(count, data.num_samples)))


def long_tail(data: ImageData, count: int, generator: torch.Generator) -> ImageData:
    """Classes whose sizes fall geometrically, the last a hundredth of the first."""
    last = max(1, data.num_classes - 1)
    falls = [IMBALANCE ** (-label / last) for label in range(data.num_classes)]
    sizes = [max(1, math.floor(count * fall / sum(falls))) for fall in falls]
    rows = [(data.train_labels == label).nonzero()[:size, 0] for label, size in enumerate(sizes)]
    return _taken(data, torch.cat(rows).sort().values)


def duplicates(data: ImageData, count: int, generator: torch.Generator) -> ImageData:
    """Six near copies of each image: shifted by up to a pixel, with noise of up to eight greys."""
    taken = _taken(data, torch.arange(count // COPIES).repeat_interleave(COPIES))
    images = taken.train_images.clone()
    shifts = torch.randint(-1, 2, (len(images), 2), generator=generator)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = ((shifts[:, 0] == down) & (shifts[:, 1] == right)).nonzero()[:, 0]
            images[moved] = torch.roll(images[moved], (down, right), dims=(2, 3))
    grain = torch.randint(-8, 9, images.shape, generator=generator, dtype=torch.int16)
    noisy = (images.to(torch.int16) + grain).clamp_(0, 255).to(torch.uint8)
    return replace(taken, train_images=noisy)


def label_noise(data: ImageData, count: int, generator: torch.Generator) -> ImageData:
    """A fifth of the labels replaced by another class, each as likely."""
    taken = plain(data, count, generator)
    wrong = torch.rand(taken.num_samples, generator=generator) < NOISE
    other = torch.randint(1, data.num_classes, (taken.num_samples,), generator=generator)
    return replace(taken, train_labels=(taken.train_labels + other * wrong) % data.num_classes)


def easy_majority(data: ImageData, count: int, generator: torch.Generator) -> ImageData:
    """Mostly images much nearer to the mean of their own class than to that of another."""
    pixels, labels = data.train_images.flatten(1).float(), data.train_labels
    means = torch.stack([pixels[labels == label].mean(0) for label in range(data.num_classes)])
    distances = torch.cdist(pixels, means)
    own = distances.gather(1, labels[:, None])[:, 0]
    margin = distances.scatter(1, labels[:, None], math.inf).amin(1) - own
    easy = margin > margin.median()
    few = count - round(EASY * count)
    rows = [easy.nonzero()[: count - few, 0], (~easy).nonzero()[:few, 0]]
    return _taken(data, torch.cat(rows).sort().values)


@dataclass(frozen=True)
class Regime:
    """One way a training set can be.

    Args:
        source: a name of ``data.DATA_SETS``; of a text every position is a sample.
        summary: what it is, for the tables.
        change: makes the training set of the images that may be trained.
        share: of the images that a study asks for.
        epochs: for each that a study asks for.
        human: the column of human labels that takes the place of the true ones.
        model: the only one that takes it; None: any.
        classes: of its labels, for what is no better than chance.
        rewarded: trained by rewards of sampled answers, see ``rewards.RewardTrainer``.
    """

    source: str
    summary: str
    change: Change = plain
    share: float = 1.0
    epochs: int = 1
    human: str | None = None
    model: str | None = None
    classes: int = 10
    rewarded: bool = False


FASHION, CIFAR = "fashion_mnist", "cifar10"
REGIMES = {
    "plain": Regime(FASHION, "Fashion-MNIST as it is"),
    "long_tail": Regime(FASHION, "Fashion-MNIST, classes 100 to 1", long_tail),
    "duplicates": Regime(FASHION, "Fashion-MNIST, 6 near copies of each image", duplicates),
    "label_noise": Regime(FASHION, "Fashion-MNIST, 20% of the labels wrong", label_noise),
    "easy_majority": Regime(FASHION, "Fashion-MNIST, 85% of it easy", easy_majority),
    "long_training": Regime(
        FASHION, "half of the images, three times the epochs", share=0.5, epochs=3
    ),
    "digits": Regime("digits", "8 x 8 digits, three times the epochs", epochs=3, model="mlp"),
    "grpo": Regime(
        FASHION, "Fashion-MNIST as prompts, 8 answers sampled of each, rewarded", rewarded=True
    ),
    "cifar10": Regime(CIFAR, "CIFAR-10 as it is"),
    "cifar10n_aggre": Regime(CIFAR, "CIFAR-10, people's labels, 9% wrong", human="aggre"),
    "cifar10n_worse": Regime(CIFAR, "CIFAR-10, people's labels, 40% wrong", human="worse"),
    **{
        name: Regime(
            name, f"{name}: the next character of 12", share=2.5, model=CHARACTERS, classes=256
        )
        for name in TEXTS
    },
}


def prepare(name: str, root: str | None, count: int) -> tuple[ImageData, ImageData]:
    """Make the data of a regime.

    Args:
        name: of ``REGIMES``.
        root: the folder of the data sets; None for digits.
        count: images to train, before the regime takes its share; at most what there is.

    Returns:
        The training set with the official test images, and the same with images held out in the
        place of these.

    Raises:
        ValueError: an unknown name, or a file that is not what its name says.
        FileNotFoundError: a file is missing.
    """
    if name not in REGIMES:
        raise ValueError(f"regimes: expected of {', '.join(REGIMES)}, got {name!r}")
    regime = REGIMES[name]
    data = load(regime.source, root)
    if isinstance(data, TextData):
        data = windows(data)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(data.num_samples, generator=generator)
    held = order[: HELD_OUT if data.num_samples > SMALL else FEW_HELD_OUT]
    images, labels = data.train_images[held], data.train_labels[held]
    if regime.human is not None:
        data = replace(data, train_labels=human_labels(root, regime.human, data.num_samples))
    pool = _taken(data, order[len(held) :])
    wanted = min(round(regime.share * count), pool.num_samples)
    trained = replace(regime.change(pool, wanted, generator), name=name)
    return trained, replace(trained, test_images=images, test_labels=labels)


def windows(data: TextData) -> ImageData:
    """Return a text as samples of 12 characters and the one that follows.

    Args:
        data: its rows; windows with padding are left out.

    Returns:
        Images of one row, whose pixels are the characters' codes; the first 10,000 windows of a
        fixed order of the test rows.
    """
    parts: list[Tensor] = []
    for rows in (data.train_rows, data.test_rows):
        found = rows.unfold(1, WINDOW + 1, 1).flatten(0, 1)
        parts.append(found[(found != PAD).all(1)])
    order = torch.randperm(len(parts[1]), generator=torch.Generator().manual_seed(0))
    parts[1] = parts[1][order[:TESTED]]
    (train, answers), (test, labels) = (
        (part[:, None, None, :WINDOW].contiguous(), part[:, WINDOW].long()) for part in parts
    )
    return ImageData(data.name, train, answers, test, labels, 256, torch.zeros(1), torch.ones(1))


def human_labels(root: str | None, column: str, count: int) -> Tensor:
    """Read labels that people gave to the training images of CIFAR-10 (Wei et al., ICLR 2022).

    Args:
        root: the folder of the data sets.
        column: such as ``"aggre"`` or ``"worse"``.
        count: how many there must be.

    Returns:
        int64 [count], in the order of the official release.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is not what its name says.
    """
    path = Path(root or ".") / HUMAN_LABELS
    if not path.is_file():
        raise FileNotFoundError(f"data_root (--data-root): no file {path}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            labels = torch.as_tensor(found[column].astype(np.int64))
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: no column {column!r} of labels ({error})") from error
    if labels.shape != (count,) or int(labels.min()) < 0 or int(labels.max()) > 9:
        raise ValueError(f"{path}: expected {count} labels in 0..9 in {column!r}")
    return labels


def check_files(names: Iterable[str], root: str | None) -> None:
    """Read what regimes are made of, so that a missing file says so before any training.

    Args:
        names: of ``REGIMES``.
        root: the folder of the data sets.

    Raises:
        ValueError: a file is not what its name says.
        FileNotFoundError: a file is missing.
    """
    regimes = [REGIMES[name] for name in names]
    sizes = {each: load(each, root).num_samples for each in {each.source for each in regimes}}
    for each in regimes:
        if each.human is not None:
            human_labels(root, each.human, sizes[each.source])
