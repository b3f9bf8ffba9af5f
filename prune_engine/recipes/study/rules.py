# SPDX-License-Identifier: Apache-2.0
"""The rules of a study, made to save a stated share of a run where they can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from prune_engine.bands import decimal_fraction
from prune_engine.engine import PruneEngine
from prune_engine.epoch.per_sample import PerSample
from prune_engine.policies import (
    RCAP,
    AlignPrune,
    CleanReference,
    KeepAll,
    Policy,
    RandomSubset,
    ZeroVariance,
)
from prune_engine.recipes import arms
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.in_batch import SAMPLES, InBatch
from prune_engine.recipes.policy_spec import is_spec, read_policy
from prune_engine.recipes.study import anew
from prune_engine.recipes.trainer import ImageTrainer, Trainer

REFERENCE_EPOCHS = 3  # of each of the two models that RHO-LOSS is told by
ANEW = ("el2n", "craig", "graphcut")  # methods that need one model and no other data
CLEAN = 120  # images of a clean reference: one in a hundred of what a regime trains


@dataclass(frozen=True)
class Scene:
    """What a rule is made for.

    Args:
        data: what is trained.
        held: the same with images held out in the place of the test.
        saving: the share of the run's samples to be saved, in (0, 1); None: what the rule saves.
        epochs: of the run.
    """

    data: ImageData
    held: ImageData
    saving: float | None
    epochs: int

    def share(self, epochs: int) -> float:
        """What each of so many epochs must save for the run to save its share.

        Raises:
            ValueError: more than everything.
        """
        assert self.saving is not None
        needed = decimal_fraction(self.saving) * self.epochs / max(1, epochs)
        if needed >= 1:
            raise ValueError(f"saving: {epochs} of {self.epochs} epochs cannot save {self.saving}")
        return float(needed)

    def words(self) -> dict[str, float]:
        """The numbers that a rule of words may name: saved and keep, late_saved and late_keep."""
        even, late = self.share(self.epochs), self.share(self.epochs - 1)
        kept = {"keep": 1 - even, "late_keep": 1 - late}
        words = {"saved": even, "late_saved": late, **kept, "pool": arms.pool_of(1 - even)}
        return {name: round(value, 9) for name, value in words.items()}


@dataclass(frozen=True)
class StudyRule:
    """One rule under test.

    Args:
        make: the policy for a scene.
        settable: whether it saves what it is told; otherwise it has controls of its own.
        attach: gives the engine what the policy watches.
        within: what chooses within each batch instead, where all of an epoch is looked at.
        rewarded: whether it is for regimes of rewards, or for those of labels alone; None: for
            both, by whatever score they have.
    """

    make: Callable[[Scene], Policy]
    settable: bool = True
    attach: Callable[[Scene, Trainer, PruneEngine], None] | None = None
    within: Callable[[Scene], InBatch] | None = None
    rewarded: bool | None = None


def worded(text: str) -> StudyRule:
    """Return the rule that a text describes.

    Args:
        text: a policy's call, of ``policy_spec``, in which ``{saved}``, ``{keep}``,
            ``{late_saved}`` and ``{late_keep}`` (of all epochs but the first) and ``{pool}`` stand
            for numbers; without any of them it saves what it saves.

    Returns:
        The rule.

    Raises:
        ValueError: the text has another form.

    Example:
        >>> worded("orderdp(keep={keep}, pool={pool})").settable, worded("repb()").settable
        (True, False)
    """
    if not is_spec(text):
        raise ValueError(f"rules: expected one of {', '.join(RULES)}, or a call, got {text!r}")
    settable = "{" in text

    def make(scene: Scene) -> Policy:
        try:
            words = text.format(**scene.words()) if settable else text
        except (KeyError, IndexError) as error:
            names = "saved, keep, late_saved, late_keep, pool"
            raise ValueError(f"rules: expected names of {names} in {text!r}, got {error}") from None
        return read_policy(words)

    return StudyRule(make, settable)


def _within(name: str) -> StudyRule:
    """A choice within each batch of as many as a rule over epochs keeps."""

    def within(scene: Scene) -> InBatch:
        return InBatch(name, keep=1 - scene.share(scene.epochs), reference_epochs=REFERENCE_EPOCHS)

    return StudyRule(lambda scene: KeepAll(), within=within, rewarded=False)


def _equal(name: str) -> StudyRule:
    """A policy of the table of ``arms`` that anneals as published."""

    def make(scene: Scene) -> Policy:
        assert scene.saving is not None
        return arms.equal(name, scene.saving, 0.875, scene.epochs)

    return StudyRule(make)


def _rcap(scene: Scene) -> Policy:
    keep = 1 - scene.share(scene.epochs - 1)
    return RCAP(PerSample(scene.data.train_labels), keep=keep)


def _anew(method: str) -> StudyRule:
    """A subset that a coreset's method chooses every few epochs, after a full first one."""

    def make(scene: Scene) -> Policy:
        return anew.policy(method, 1 - scene.share(scene.epochs - 1))

    def attach(scene: Scene, trainer: Trainer, engine: PruneEngine) -> None:
        anew.watch(trainer, engine)

    return StudyRule(make, attach=attach, rewarded=False)


def _zero_variance(scene: Scene) -> Policy:
    return ZeroVariance()


def _align(scene: Scene) -> Policy:
    return AlignPrune(window=3)


def _clean_reference(scene: Scene, trainer: Trainer, engine: PruneEngine) -> None:
    """Give the engine clean images: of those held out, which no other rule sees."""
    assert isinstance(trainer, ImageTrainer)
    images, labels = scene.held.test_images[:CLEAN], scene.held.test_labels[:CLEAN]

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        trainer.model.eval()
        found = F.cross_entropy(trainer.logits(batch[0]), batch[1])
        trainer.model.train()
        return found

    engine.attach(CleanReference(loss, [(images, labels)]))


# Late rules keep the whole first epoch, even ones do not. Those of `SAMPLES` pass every batch
# forward and choose within it; `uniform` is their control.
RULES: dict[str, StudyRule] = {
    "orderdp": worded("orderdp(keep={keep}, pool={pool})"),
    "hardest": worded("orderdp(keep={keep}, pool=1.0)"),
    "hardest_late": worded("orderdp(keep={late_keep}, pool=1.0, first_epoch='full')"),
    "proportional": worded("proportional({late_saved}, floor=0.5, delta=1.0)"),
    "budget": _equal("budget"),
    "infobatch_quantile": _equal("infobatch_quantile"),
    "ucb": worded("ucb(keep={late_keep}, period=3)"),
    "epsilon_greedy": worded("epsilon_greedy(keep={late_keep}, period=1, epsilon=0.5)"),
    "rs2": worded("rs2(keep={keep})"),
    "rcap": StudyRule(_rcap, rewarded=False),
    **{f"reselect_{name}": _anew(name) for name in ANEW},
    "infobatch": worded("infobatch()"),
    "repb": worded("repb()"),
    "seta": worded("seta()"),
    "kakurenbo": replace(worded("kakurenbo()"), rewarded=False),
    "ies": worded("ies()"),
    "progressive_dropout": replace(worded("progressive_dropout()"), rewarded=False),
    "align_prune": StudyRule(_align, settable=False, attach=_clean_reference, rewarded=False),
    "zero_variance": StudyRule(_zero_variance, settable=False, rewarded=True),
    **{name: _within(name) for name in SAMPLES},
}


def rule_named(name: str) -> StudyRule:
    """Return a rule by its name, or the one that a text describes.

    Args:
        name: of ``RULES``, or see ``worded``.

    Returns:
        The rule.

    Raises:
        ValueError: neither.

    Example:
        >>> rule_named("kakurenbo").settable
        False
    """
    return RULES[name] if name in RULES else worded(name)


def random_at(share: float, *, weighs: bool) -> Policy:
    """Return the control: a fresh random subset in every epoch.

    Args:
        share: of the samples that is dropped, in [0, 1).
        weighs: whether the kept weigh for the dropped.

    Returns:
        The policy.

    Example:
        >>> random_at(0.4, weighs=True).rescale
        True
    """
    return RandomSubset(share, weighs, 1.0)
