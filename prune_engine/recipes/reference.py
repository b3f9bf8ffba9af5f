# SPDX-License-Identifier: Apache-2.0
"""The losses of models that have not seen a sample: what RHO-LOSS and Rho-1 compare with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from prune_engine.engine import PruneEngine
from prune_engine.epoch.ranks import world
from prune_engine.policies import KeepAll
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.text import TextData
from prune_engine.recipes.train import Arm, train_arm
from prune_engine.recipes.trainer import TextTrainer, TrainConfig, Trainer

AT_ONCE = 256  # samples that are scored


class Reference(NamedTuple):
    """What two models say of each other's halves, and what that took.

    Args:
        losses: [N] float32, or [N, T] float16 of tokens; on the device of the training.
        served: samples passed backward.
        forwards: samples passed forward.
    """

    losses: Tensor
    served: int
    forwards: int


def cross_fitted(
    data: ImageData | TextData, config: TrainConfig, seed: int, epochs: int, *, tokens: bool = False
) -> Reference:
    """Train a model on each half of the data, and let it score the other half.

    RHO-LOSS (Mindermann et al., ICML 2022) without a holdout set: every sample gets the loss of a
    model that was not trained on it, and no data are used that other arms do not have.

    Args:
        data: of the run.
        config: of the run; the models are of its kind.
        seed: of the weights and the order.
        epochs: of each of the two trainings.
        tokens: score each token of a text, and not its rows.

    Returns:
        The losses and their cost.

    Raises:
        ValueError: half of the data is not one batch.
    """
    size = data.num_samples // 2
    if size < config.batch_size:
        raise ValueError(
            f"batch_size: expected at most {size}, half of the data, for a reference model, got "
            f"{config.batch_size}"
        )
    small = replace(config, epochs=epochs, progress=False)
    served, found = 0, list[Tensor]()
    for part in (0, 1):
        trained: list[Trainer] = []
        arm, half, other = Arm("reference", KeepAll()), _half(data, part), _half(data, 1 - part)
        served += train_arm(half, small, arm, seed, on_end=partial(_keep, trained)).served
        found.append(_losses(trained[0], other, tokens))
    losses = found[0].new_empty((data.num_samples, *found[0].shape[1:]))
    losses[1::2], losses[0::2] = found
    return Reference(losses, served, served + data.num_samples * world()[1])  # every rank scores


def _keep(trained: list[Trainer], trainer: Trainer, engine: PruneEngine) -> None:
    trained.append(trainer)


def _half(data: ImageData | TextData, part: int) -> ImageData | TextData:
    """Return every other sample, and none to test with."""
    if isinstance(data, TextData):
        return replace(data, train_rows=data.train_rows[part::2], test_rows=data.test_rows[:0])
    return replace(
        data,
        train_images=data.train_images[part::2],
        train_labels=data.train_labels[part::2],
        test_images=data.test_images[:0],
        test_labels=data.test_labels[:0],
    )


def _losses(trainer: Trainer, data: ImageData | TextData, tokens: bool) -> Tensor:
    """Return the losses of samples that a trainer has not trained on, without augmentation."""
    found = list[Tensor]()
    with trainer.scoring():
        for first in range(0, data.num_samples, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            if isinstance(data, ImageData):
                _, scores = trainer.losses(data.train_images[part], data.train_labels[part])
                assert scores is not None
            elif tokens:
                assert isinstance(trainer, TextTrainer)
                scores = trainer.each_token(data.train_rows[part])[0].to(torch.float16)
            else:
                scores, _ = trainer.losses(data.train_rows[part], data.train_rows[part])
            found.append(scores)
    return torch.cat(found)
