# SPDX-License-Identifier: Apache-2.0
"""Subsets that a coreset's method chooses anew during a training, by the model of the moment."""

from __future__ import annotations

from torch import Tensor

from prune_engine import coresets
from prune_engine.engine import PruneEngine
from prune_engine.policies import Reselect
from prune_engine.recipes.trainer import ImageTrainer, Trainer

EVERY = 3  # epochs


class Anew:
    """Chooses k samples by what the trained model says of all of them: ``Reselect``'s ``choose``.

    As CRAIG (Mirzasoleiman et al., ICML 2020) and GradMatch (Killamsetty et al., ICML 2021) do
    every R epochs: a forward pass of the whole training set, and a choice within each class by
    features, logits and labels. The pass counts among the forwards of the epoch that ended, and its
    time and the choice's in the seconds. Weights are divided by their mean.

    Args:
        method: a name of ``coresets.TABLE`` that needs no scores.
        keep: in (0, 1), of the training set.
    """

    def __init__(self, method: str, keep: float) -> None:
        self.method, self.keep = method, keep
        self.__qualname__ = f"Anew.{method}"  # tells its policy from one by another method
        self.trainer: ImageTrainer | None = None

    def __call__(self, epoch: int, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Choose for the epochs from this one on."""
        assert self.trainer is not None
        trainer, count = self.trainer, self.trainer.num_samples
        trainer.looked += count
        made = coresets.embed(trainer.model, trainer.in_order(), num_samples=count)
        found = coresets.select(
            self.method,
            features=made.features,
            logits=made.logits,
            targets=made.targets,
            k=round(self.keep * count),
            seed=epoch,
        )
        return found.normalised()


def policy(method: str, keep: float, every: int = EVERY) -> Reselect:
    """Return the policy of a method, which needs ``watch`` before its first epoch ends.

    Args:
        method: see ``Anew``.
        keep: likewise.
        every: R, in epochs; the first is full.
    """
    return Reselect(Anew(method, keep), every=every)


def watch(trainer: Trainer, engine: PruneEngine) -> None:
    """Show the model to what chooses.

    Args:
        trainer: of images.
        engine: whose policy is one of ``policy``.
    """
    assert isinstance(trainer, ImageTrainer) and isinstance(engine.policy, Reselect)
    assert isinstance(engine.policy.choose, Anew)
    engine.policy.choose.trainer = trainer
