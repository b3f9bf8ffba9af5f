# SPDX-License-Identifier: Apache-2.0
"""Arms that train a part of each batch, chosen by its own losses, beside those that prune epochs.

Each costs forward passes that train nothing, which its rows count (``forwards``) beside what was
passed backward (``served``). ``InBatch`` is an arm's ``within``; the engine keeps everything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from prune_engine.bands import check_fraction
from prune_engine.engine import PruneEngine
from prune_engine.epoch.state import check_count
from prune_engine.losses import (
    DivBS,
    EvolvedSampling,
    ImportanceSampling,
    SelectiveBackprop,
    TopTokens,
)
from prune_engine.losses.scores import nll
from prune_engine.ops.pick import FLOOR, PickRule
from prune_engine.plain import store_plain
from prune_engine.policies import KeepAll
from prune_engine.recipes import ranks
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.policy_spec import make_called, read_call, spec_name
from prune_engine.recipes.reference import cross_fitted
from prune_engine.recipes.text import TextData
from prune_engine.recipes.train import Arm, Chooser
from prune_engine.recipes.trainer import ImageTrainer, TextTrainer, Trainer

UNIFORM, UNIFORM_TOKENS = "uniform", "uniform_tokens"
RHO, RHO_TOKENS = "rho_loss", "rho_tokens"
REFERENCED = (RHO, RHO_TOKENS)


class Rule(NamedTuple):
    """How ``engine.pick`` chooses samples.

    Args:
        how: its rule.
        weighs: whether the chosen weigh for the others; else they are averaged, as published.
    """

    how: PickRule
    weighs: bool


SAMPLES = {
    UNIFORM: Rule("random", False),
    "selective_backprop": Rule("proportional", False),
    "importance_sampling": Rule("proportional", True),
    "evolved_sampling": Rule("proportional", False),
    RHO: Rule("top", False),
    "divbs": Rule("top", False),
}
TOKENS = (UNIFORM_TOKENS, "top_tokens", RHO_TOKENS)
NAMES = (*SAMPLES, *TOKENS)


@dataclass(frozen=True)
class InBatch:
    """A choice within each batch: of its samples, or of the tokens of its rows.

    Of samples, all of a batch are passed forward as in an evaluation, without a gradient, and the
    chosen once more with one; ``"uniform"``, the control, needs the second pass alone. Of tokens
    all are passed forward and backward, and the chosen count. The rules are those of
    ``prune_engine.losses``: ``selective_backprop``, ``importance_sampling`` (with its tau switch),
    ``evolved_sampling``, ``divbs`` (images only); ``rho_loss`` (loss less a reference's, the
    largest), ``top_tokens`` and ``rho_tokens`` (Rho-1). References are cross-fitted.

    Args:
        rule: one of ``NAMES``.
        keep: in (0, 1), the share of a batch, or of its tokens, that is trained.
        reference_epochs: at least 1, of each of the two reference models; of ``rho_loss`` and
            ``rho_tokens``.

    Raises:
        TypeError: a parameter is of the wrong kind.
        ValueError: there is no such rule, or a number is out of range.

    Example:
        >>> InBatch("divbs", keep=0.3).control()
        InBatch(rule='uniform', keep=0.3, reference_epochs=1)
    """

    rule: str
    keep: float = 0.5
    reference_epochs: int = 1

    def __post_init__(self) -> None:
        store_plain(self)
        if self.rule not in NAMES:
            raise ValueError(f"rule must be one of {', '.join(NAMES)}, got {self.rule!r}")
        check_fraction("keep", self.keep, zero=False, one=False)
        check_count("reference_epochs", self.reference_epochs, needed=True)

    def control(self) -> InBatch:
        """Return the uniform choice of as many."""
        return replace(self, rule=UNIFORM_TOKENS if self.rule in TOKENS else UNIFORM)

    def chooser(self, trainer: Trainer) -> Chooser:
        """Return what chooses in one training.

        Args:
            trainer: of the training.

        Returns:
            It takes the place of ``Trainer.observe``.

        Raises:
            ValueError: the rule is not for such data, or another score than the loss is recorded.
        """
        if trainer.config.score != "loss":
            raise ValueError(
                f"score: expected loss with {self.rule}, which chooses by losses, got "
                f"{trainer.config.score!r}"
            )
        if self.rule in TOKENS:
            if not isinstance(trainer, TextTrainer):
                raise ValueError(f"policy: expected a text for {self.rule}, got images")
            return TokenChooser(self, trainer)
        if self.rule == "divbs" and not isinstance(trainer, ImageTrainer):
            raise ValueError("policy: expected images for divbs, whose samples have one label each")
        return SampleChooser(self, trainer)


def is_choice(text: str) -> bool:
    """Say whether a policy on the command line is a choice within batches.

    Args:
        text: what was given as a policy.

    Returns:
        Whether ``read_arm`` is for it.

    Example:
        >>> is_choice("divbs"), is_choice("divbs(keep=0.3)"), is_choice("infobatch")
        (True, True, False)
    """
    return text.partition("(")[0].strip() in NAMES


def read_arm(text: str, keep: float) -> Arm:
    """Make the arm that a text describes.

    Args:
        text: one of ``NAMES``, or a call such as ``"divbs(keep=0.3)"``.
        keep: where the text is a name alone.

    Returns:
        The arm.

    Raises:
        ValueError: the text has another form, or an argument does not fit.

    Example:
        >>> read_arm("rho_loss(0.1, reference_epochs=2)", 0.5).within
        InBatch(rule='rho_loss', keep=0.1, reference_epochs=2)
    """
    name, positional, named = read_call(text, text)
    if name == text.strip():
        named["keep"] = keep
    within = make_called(text, InBatch, [name, *positional], named)
    return Arm(spec_name(text), KeepAll(), within=within)


# --- what chooses --------------------------------------------------------------------------------


class _Values(Protocol):
    """A rule of ``prune_engine.losses``, as far as all of them are alike."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Chooser(ABC):
    """What both kinds share: a rule with a state, and a reference.

    Args:
        within: which choice.
        trainer: of the training.
    """

    def __init__(self, within: InBatch, trainer: Trainer) -> None:
        self.within, self.trainer = within, trainer
        self.reference: Tensor | None = None
        self.rule: _Values | None = None

    def begin(self, data: ImageData | TextData, seed: int) -> tuple[int, int]:
        """Train the reference, where one is needed; return its cost."""
        within, config = self.within, self.trainer.config
        if within.rule not in REFERENCED:
            return 0, 0
        tokens = within.rule == RHO_TOKENS
        found = cross_fitted(data, config, seed, within.reference_epochs, tokens=tokens)
        self.reference = found.losses
        return found.served, found.forwards

    @abstractmethod
    def forwards(self, seen: int, trained: int) -> int:
        """Say how many samples were passed forward where some of those seen were trained."""

    def known(self, indices: Tensor) -> Tensor:
        """Return the reference's losses of a batch."""
        assert self.reference is not None
        return self.reference[indices]

    def state_dict(self) -> dict[str, Any]:
        """Return the rule's state on each rank, and the reference, which is not trained again."""
        rule = {} if self.rule is None else self.rule.state_dict()
        reference = None if self.reference is None else self.reference.cpu()
        return {"rules": ranks.of_each(rule, self.trainer.device), "reference": reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        own = ranks.own(state.get("rules") or [state["rule"]])  # as it was once, of one rank
        if self.rule is not None:
            self.rule.load_state_dict(own)
        reference = state["reference"]
        self.reference = None if reference is None else reference.to(self.trainer.device)


class SampleChooser(_Chooser):
    """Trains k of each batch."""

    def __init__(self, within: InBatch, trainer: Trainer) -> None:
        super().__init__(within, trainer)
        self.k = max(1, round(within.keep * trainer.batch_size))
        self.how: PickRule = SAMPLES[within.rule].how
        self.weighs = SAMPLES[within.rule].weighs
        self.scored = within.rule != UNIFORM
        self.values: Callable[[Tensor, Tensor], Tensor]
        if within.rule == "importance_sampling":
            importance = ImportanceSampling(self.k)
            self.rule, self.values = importance, lambda losses, indices: importance.values(losses)
        elif within.rule == "selective_backprop":
            selective = SelectiveBackprop()
            self.rule, self.values = selective, lambda losses, indices: selective.values(losses)
        elif within.rule == "evolved_sampling":
            evolved = EvolvedSampling(trainer.num_samples, device=trainer.device)
            self.rule, self.values = evolved, evolved.values
        else:
            self.values = lambda losses, indices: losses - self.known(indices)

    def forwards(self, seen: int, trained: int) -> int:
        """All of a batch to score it, and the chosen once more."""
        return seen + trained if self.scored else trained

    def observe(
        self, engine: PruneEngine, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose, run forward on the chosen and record the scores."""
        trainer = self.trainer
        inputs, targets = trainer.prepare(inputs), targets.to(trainer.device)
        inputs = inputs.to(trainer.device)
        score: Tensor | None = None
        values = torch.zeros(len(indices), device=trainer.device)
        if self.scored:
            score, values = self._scores(inputs, targets, indices)
        floor = FLOOR if self.weighs else 0.0  # what is not weighed needs no bound
        picked = engine.pick(values, self.k, rule=self.how, floor=floor)
        chosen, weights, eligible = picked
        losses, plain = trainer.losses(inputs[chosen], targets[chosen])
        if score is None:  # who was not passed forward is recorded with the mean of those who were
            seen = plain.detach().to(torch.float32)
            score = (values + seen.mean()).index_copy(0, chosen.to(torch.int64), seen)
        if self.weighs:
            return engine.observe(losses, indices, score=score, picked=picked), losses.detach()
        alike = (weights > 0).to(torch.float32)
        loss = engine.observe(
            losses, indices, score=score, picked=(chosen, alike, eligible), denom=len(chosen)
        )
        return loss, losses.detach()

    def _scores(self, inputs: Tensor, targets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of a batch without a gradient, and what to pick it by."""
        trainer = self.trainer
        if self.within.rule != "divbs":
            with trainer.scoring():
                _, losses = trainer.losses(inputs, targets)
            return losses, self.values(losses, indices)
        assert isinstance(trainer, ImageTrainer)
        head = [each for each in trainer.model.modules() if isinstance(each, nn.Linear)][-1]
        given: list[Tensor] = []
        seeing = head.register_forward_pre_hook(lambda _, got: given.append(got[0]))
        try:
            with trainer.scoring():
                logits = trainer.logits(inputs).float()
        finally:
            seeing.remove()
        has_bias = getattr(head, "bias", None) is not None
        values = DivBS(self.k, bias=has_bias).values(logits, targets, given[0])
        return nll(logits, targets), values


class TokenChooser(_Chooser):
    """Trains a share of each batch's tokens."""

    def __init__(self, within: InBatch, trainer: TextTrainer) -> None:
        super().__init__(within, trainer)
        self.text = trainer

    def forwards(self, seen: int, trained: int) -> int:
        """Every row once."""
        return seen

    def observe(
        self, engine: PruneEngine, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run forward, choose tokens and record the rows' scores."""
        losses, counted = self.text.each_token(inputs)
        reference: Tensor | None = None
        if self.within.rule == RHO_TOKENS:
            reference = self.known(indices)
        if self.within.rule == UNIFORM_TOKENS:  # an excess that is noise
            noise = torch.rand(losses.shape, generator=self.text.generator).to(losses.device)
            reference = losses.detach() - noise
        tokens = TopTokens(self.within.keep, reference=reference, mask=counted)
        loss = engine.observe(losses, indices, reducer=tokens)
        return loss, (losses.detach().sum(1) / counted.sum(1).clamp(min=1))
