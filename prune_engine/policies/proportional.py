# SPDX-License-Identifier: Apache-2.0
"""Proportional: unbiased importance sampling of whole epochs."""

from __future__ import annotations

from dataclasses import dataclass

from prune_engine.bands import DRAWS, check_fraction, decimal_fraction
from prune_engine.epoch.policy import (
    PolicyMemory,
    Progress,
    annealing,
)
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import LevelRule, Rule
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule


@dataclass(frozen=True)
class Proportional(ScoreRule):
    """Keep samples with a probability in proportion to their scores; a kept one weighs the inverse.

    A sample of score x stays with probability ``min(1, x / tau)``, at least ``floor * budget``
    where ``budget = 1 - target_savings``; tau is found on the device, so that ``budget * N`` stay
    on average. Poisson sampling with the weights of Horvitz and Thompson (JASA 1952; the choice of
    probabilities: Zhao and Zhang, ICML 2015, eq. 12), in sixteen levels to an octave, which is ours
    (SEMANTICS 3.12): unbiased whatever the levels. In O(N), without a sort.

    Scores must be importances: at least 0, the larger the more a sample matters, such as losses,
    EL2N or gradient norms. Zero and below stay with the least probability. What was never seen
    stays, so a first epoch is full, unless it is ``"even"``. Where the score says nothing about the
    gradient, the weights raise its variance: run ``RandomSubset`` beside it.

    Args:
        target_savings: in [0, 1), the share of the data set that a pruning epoch skips on average.
        floor: in (0, 1], the least probability as a share of the budget; 1 is a random subset.
        delta: in (0, 1], the share of the run that prunes.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops ``target_savings`` at random, and the
            kept weigh for it; later ones take who was never seen for a sample of the mean score.
        warmup: epochs that keep everything.
        weight_cap: at least 1: no sample weighs more, which biases the gradient; None: no cap.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> Proportional(target_savings=0.3).levels(1000)
        LevelRule(target=700, least=22938, weight_cap=None, unseen=None)
    """

    target_savings: float = 0.4
    floor: float = 0.5
    delta: float = 0.875

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("target_savings", self.target_savings, zero=True, one=False)
        check_fraction("floor", self.floor, zero=False, one=True)
        check_fraction("delta", self.delta, zero=False, one=True)
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    @property
    def divisible(self) -> bool:
        """True: it decides by counts of cells, which add up over ranks."""
        return True

    def savings(self) -> float:
        """Return the share that an even first epoch drops."""
        return self.target_savings

    def levels(self, num_samples: int) -> LevelRule:
        """Return the rule of a pruning epoch.

        Args:
            num_samples: N.

        Returns:
            ``round(budget * N)`` samples, and ``round(65536 * floor * budget)`` of the draws for
            each, at least one; without a cap, which ``rule`` adds.
        """
        budget = 1 - decimal_fraction(self.target_savings)
        least = round(DRAWS * decimal_fraction(self.floor) * budget)
        return LevelRule(round(budget * num_samples), max(1, least))

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> Rule | LevelRule:
        """Return the levels of the epoch, or keep all when annealing.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: there is none.

        Returns:
            The rule of the epoch.
        """
        if annealing(self.delta, progress):
            return Rule.keep_all(buffer.device)
        return self.levels(buffer.num_samples)
