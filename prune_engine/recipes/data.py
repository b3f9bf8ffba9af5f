# SPDX-License-Identifier: Apache-2.0
"""Image data sets from plain files, held in memory as tensors and served by batches.

Nothing is downloaded and nothing is unpickled. A data set is four tensors; a data set that
*yields its own index* (:class:`Positions`) and a collate function that gathers a whole batch in
one go (:class:`Gather`) feed it to a ``DataLoader``, so that serving a batch costs a few
microseconds per batch and not one Python call per image.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prune_engine.recipes import formats, text

IMAGE_SETS = ("digits", "fashion_mnist", "cifar10", "cifar100")
DATA_SETS = (*IMAGE_SETS, *text.TEXTS)


@dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    Attributes:
        name: one of ``IMAGE_SETS``.
        train_images: uint8 [N, C, H, W].
        train_labels: int64 [N].
        test_images: uint8 [M, C, H, W].
        test_labels: int64 [M].
        num_classes: number of labels.
        mean: float32 [C], of the training pixels, in units of the pixels.
        std: float32 [C], likewise.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Number of test samples."""
        return len(self.test_labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def limited(self, limit: int | None) -> ImageData:
        """The first ``limit`` training samples only (the test split stays whole)."""
        if limit is None:
            return self
        if limit < 1:
            raise ValueError(f"limit: expected at least 1 sample, got {limit}")
        return replace(
            self,
            train_images=self.train_images[:limit].clone(),
            train_labels=self.train_labels[:limit].clone(),
        )


class Positions(Dataset[int]):
    """A data set that yields its own index: item ``i`` is ``i``.

    Args:
        num_samples: its length.

    Example:
        >>> Positions(10).__getitems__([7, 3])
        [7, 3]
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        """The number of samples."""
        return self.num_samples

    def __getitem__(self, index: int) -> int:
        """The index itself."""
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        """The indices themselves: the whole batch in one call."""
        return indices


@dataclass(frozen=True)
class Gather:
    """Collate function over :class:`Positions`: indices -> (images, labels, indices).

    One gather per tensor per batch, whatever the batch size.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].

    Example:
        >>> gather = Gather(torch.arange(6).view(3, 2), torch.tensor([5, 6, 7]))
        >>> [t.tolist() for t in gather([2, 0])]
        [[[4, 5], [0, 1]], [7, 5], [2, 0]]
    """

    images: Tensor
    labels: Tensor

    def __call__(self, positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Gather the batch, in the order of ``positions``; indices are int64 [B]."""
        indices = torch.tensor(positions, dtype=torch.int64)
        return self.images[indices], self.labels[indices], indices


def load(
    name: str, root: str | Path | None = None, *, limit: int | None = None
) -> ImageData | text.TextData:
    """Load a data set into memory.

    Args:
        name: ``"digits"`` (from scikit-learn, no files), ``"fashion_mnist"`` (the official
            gzipped IDX files), ``"cifar10"`` or ``"cifar100"`` (the official *binary version*, or
            ``{train,test}-images-K.xz`` with ``{train,test}-labels.npy``), or a text of
            ``text.TEXTS``.
        root: the folder that holds ``<name>/``, or the files themselves. Not used by digits.
        limit: keep the first ``limit`` training samples only.

    Returns:
        The data set, in the order of its official release (digits: training and test samples are
        dealt once, by a fixed seed).

    Raises:
        ValueError: an unknown name, a missing ``root``, or a file that is not what its name says.
        FileNotFoundError: a file is missing; the message names it and the argument.
        ImportError: digits without scikit-learn.
    """
    if name == "digits":
        return _digits().limited(limit)
    if name not in DATA_SETS:
        raise ValueError(f"name: expected one of {', '.join(DATA_SETS)}, got {name!r}")
    if root is None:
        raise ValueError(f"data_root (--data-root): {name} is read from files, got no folder")
    if name in text.TEXTS:
        return text.load_text(name, Path(root)).limited(limit)
    reader = formats.fashion_mnist if name == "fashion_mnist" else formats.cifar
    train, test = (reader(name, Path(root), split) for split in ("train", "test"))
    classes = 100 if name == "cifar100" else 10
    return _pack(name, train, test, classes).limited(limit)


def _pack(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int
) -> ImageData:
    """Check the labels and measure mean and standard deviation."""
    for split, (images, labels) in (("train", train), ("test", test)):
        if len(images) != len(labels):
            raise ValueError(f"{name}/{split}: {len(images)} images but {len(labels)} labels")
        if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            raise ValueError(f"{name}/{split}: expected labels in 0..{num_classes - 1}")
    # Exact moments from the histogram of the 256 byte values: no float copy of the data set.
    levels = torch.arange(256, dtype=torch.float64)
    mean: list[float] = []
    std: list[float] = []
    for channel in range(train[0].shape[1]):
        count = torch.bincount(train[0][:, channel].reshape(-1), minlength=256).double()
        average = float((count * levels).sum() / count.sum())
        mean.append(average)
        std.append(float((count * (levels - average) ** 2).sum() / count.sum()) ** 0.5 or 1.0)
    return ImageData(name, *train, *test, num_classes, torch.tensor(mean), torch.tensor(std))


def _digits() -> ImageData:
    """1,797 digits of 8 x 8 pixels in 0..16, four in five for training."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            "--data digits comes with scikit-learn, which is not installed: "
            "pip install 'prune_engine[train]', or name another --data"
        ) from error
    bunch = datasets.load_digits()
    images = torch.as_tensor(bunch.images).to(torch.uint8)[:, None]
    labels = torch.as_tensor(bunch.target).long()
    # The split belongs to the data set, so it does not move with the seed of a run.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return _pack("digits", (images[train], labels[train]), (images[test], labels[test]), 10)
