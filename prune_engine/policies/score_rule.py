# SPDX-License-Identifier: Apache-2.0
"""What every rule over scores gets: how a run begins, and how much a sample may weigh."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace

from prune_engine.bands import (
    Band,
    check_weight_cap,
    decimal_fraction,
    dropping_band,
    kept_weight,
    weighed_classes,
    weight_table,
)
from prune_engine.epoch.policy import LATE, Policy, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, LevelRule, Rule, Selection

FIRST_EPOCHS = ("full", "even")
MAX_DEN = 2**31 - 1  # of a band's share


@dataclass(frozen=True)
class ScoreRule(Policy):
    """The base of the policies that decide by scores, of which the first epoch has none.

    What looks at no scores (``RandomSubset``, ``RS2``, ``Subset``), brings its weights
    (``Reselect``) or drops whole batches (``BPAS``) has a beginning of its own, without these.

    Args:
        first_epoch: ``"full"`` keeps everything in epoch 0; ``"even"`` drops a random share there,
            about as much as later epochs drop, and of what was then never seen as much in every
            epoch, so that all are about as long.
        warmup: epochs that keep everything, so that scores are those of a model that has begun to
            learn; 0 or 1 with ``first_epoch="full"`` is the same.
        weight_cap: at least 1: no sample weighs more. What is cut off is missing from the gradient,
            which is biased by as much; None: no cap.
    """

    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)
    warmup: int = field(default=0, kw_only=True, metadata=LATE)
    weight_cap: float | None = field(default=None, kw_only=True, metadata=LATE)

    def check_beginning(self) -> None:
        """Refuse parameters of the beginning and the cap that are out of range.

        Raises:
            TypeError: one is of the wrong kind.
            ValueError: one is out of range, or the two do not fit together.
        """
        if self.first_epoch not in FIRST_EPOCHS:
            raise ValueError(f"first_epoch must be 'full' or 'even', got {self.first_epoch!r}")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"warmup must be a number of epochs, got {self.warmup!r}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.warmup and self.first_epoch == "even":
            raise ValueError(f"warmup must be 0 where first_epoch is 'even', got {self.warmup}")
        check_weight_cap(self.weight_cap)

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> AnyRule:
        """Return the rule of an epoch: of the beginning, or ``decide``'s with its weights capped.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: what ``memory`` returned.

        Returns:
            The rule of the epoch.
        """
        if progress.epoch < self.warmup:
            return Rule.keep_all(buffer.device)
        if progress.epoch == 0 and self.first_epoch == "even":
            return self.capped(self.even(buffer, progress))
        return self.capped(self.evened(self.decide(buffer, progress, memory), buffer))

    @abstractmethod
    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return the rule of an epoch that is neither warm-up nor an even first one.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: what ``memory`` returned.
        """

    def savings(self) -> float:
        """Return the share that an even first epoch drops, about what later ones do."""
        return 0.0

    def weighs(self) -> bool:
        """Return whether the kept weigh for the dropped."""
        return True

    def even(self, buffer: ScoreBuffer, progress: Progress) -> AnyRule:
        """Return the rule of an even first epoch: a random subset, which weighs for the dropped.

        Args:
            buffer: says where the thresholds live.
            progress: where the run is.

        Returns:
            One band for all samples.
        """
        return random_rule(buffer, self.savings(), weighs=self.weighs())

    def evened(self, rule: AnyRule, buffer: ScoreBuffer) -> AnyRule:
        """Return a rule that spares the never seen no more than others after an even beginning.

        Args:
            rule: of a later epoch.
            buffer: the scores.

        Returns:
            Of bands what ``dropping_unseen`` makes of them; of levels that say nothing of the never
            seen, one that takes them for samples of the mean score; anything else, and any rule of
            a full beginning, as it came.
        """
        if isinstance(rule, Rule):
            return self.dropping_unseen(rule)
        if self.first_epoch == "even" and isinstance(rule, LevelRule) and rule.unseen is None:
            return replace(rule, unseen=buffer.mean_threshold())
        return rule

    def dropping_unseen(self, rule: Rule) -> Rule:
        """Return a rule that drops a random share of the never seen after an even beginning.

        Args:
            rule: of a later epoch.

        Returns:
            Where it drops and says nothing of the never seen, one that drops ``savings()`` of them;
            those that stay weigh for it where the rule ``weighs()``. Else the rule.
        """
        share = self.savings()
        even = self.first_epoch == "even" and share > 0
        if not even or rule.unseen_band >= 0 or not rule.drops:
            return rule
        return _dropping_unseen(rule, share, weighs=self.weighs())

    def capped(self, rule: AnyRule) -> AnyRule:
        """Return a rule in which no class weighs more than ``weight_cap``.

        Args:
            rule: the rule.

        Returns:
            The same, or one with other weights; of levels, whose weights the device makes, one
            that says how much they may be.
        """
        cap = self.weight_cap
        if cap is not None and isinstance(rule, LevelRule):
            return replace(rule, weight_cap=float(cap))
        if cap is None or not isinstance(rule, Rule | Selection):
            return rule
        table = tuple(min(weight, float(cap)) for weight in rule.weight_table)
        return replace(rule, weight_table=table)


def random_rule(buffer: ScoreBuffer, share: float, *, weighs: bool) -> Rule:
    """Return the rule that drops each sample, seen or not, with one probability.

    Args:
        buffer: says where the thresholds live.
        share: the probability, in [0, 1).
        weighs: whether the kept ones weigh 1 / (1 - share).

    Returns:
        One band.
    """
    band = dropping_band(share, 2 if weighs else 1)
    table = weight_table(65536 / (65536 - band.cut)) if weighs else weight_table()
    return Rule(Rule.keep_all(buffer.device).thresholds, (band,), table, unseen_band=0)


def _dropping_unseen(rule: Rule, share: float, *, weighs: bool) -> Rule:
    """Add a band of the never seen alone, by the draws or the counts of the others."""
    keep = 1 - decimal_fraction(share)
    den = rule.bands[0].keep_den
    # The others' shares stay what they are: their parts are multiplied by one number.
    times = math.lcm(den, keep.denominator) // den
    times = times if times * den <= MAX_DEN else MAX_DEN // den
    kept = max(1, math.floor(keep * times * den))
    classes = weighed_classes(rule.weight_table)
    cut = dropping_band(share, 1).cut
    own = Band(cut, classes if weighs else 1, kept, times * den)
    bands = tuple(
        Band(band.cut, band.weight_class, band.keep_num * times, band.keep_den * times)
        for band in rule.bands
    )
    table = rule.weight_table[:classes]
    table = (*table, kept_weight(own, fixed=rule.fixed)) if weighs else table
    return Rule(rule.thresholds, (*bands, own), table, rule.fixed, unseen_band=len(bands))
