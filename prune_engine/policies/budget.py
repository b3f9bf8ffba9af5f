# SPDX-License-Identifier: Apache-2.0
"""Budget: soft pruning that saves a stated share of every epoch, whatever the scores are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prune_engine.bands import check_fraction, decimal_fraction, weight_table
from prune_engine.epoch.policy import (
    PolicyMemory,
    Progress,
    annealing,
)
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Rule, Selection
from prune_engine.plain import store_plain
from prune_engine.policies.fixed_counts import select_fixed
from prune_engine.policies.score_rule import ScoreRule


@dataclass(frozen=True)
class Budget(ScoreRule):
    """Drop exactly ``target_savings`` of the data set in every pruning epoch, softly.

    InfoBatch (ICLR 2024, eq. 4 and 5) with a number of low samples in place of the mean: the
    m = round(s / r * N) lowest scores are low, ties to the larger index, and exactly round(s * N)
    of them are dropped at random; the others of them weigh m / (m - round(s * N)), so the gradient
    stays unbiased. The saving is s of N to within one sample, ties or not, for any score. A sample
    that was never seen counts as one of the highest scores, so it is kept where m were seen. The
    first epoch is full; from epoch ``delta * num_epochs`` on everything is kept.

    Args:
        target_savings: s, in [0, 1), the share of the data set that a pruning epoch skips.
        prune_ratio: r, in (0, 1) and at least s: the share of the low samples that is dropped. The
            nearer to s, the more samples are low.
        delta: in (0, 1], the share of the run that prunes.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops as much at random, and later ones
            exactly as much: the never seen count as the highest scores, and are low where fewer
            than m were seen.
        warmup: epochs that keep everything.
        weight_cap: at least 1: no sample weighs more, which biases the gradient; None: no cap.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> Budget(target_savings=0.4).counts(1000)
        (800, 400)
    """

    target_savings: float = 0.4
    prune_ratio: float = 0.5
    delta: float = 0.875

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("target_savings", self.target_savings, zero=True, one=False)
        check_fraction("prune_ratio", self.prune_ratio, zero=False, one=False)
        check_fraction("delta", self.delta, zero=False, one=True)
        if self.target_savings > self.prune_ratio:
            raise ValueError(
                f"target_savings must be in [0, prune_ratio = {self.prune_ratio}]: more than all "
                f"samples would have to be low, got {self.target_savings}"
            )
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    def counts(self, num_samples: int) -> tuple[int, int]:
        """Return how many of N samples are low, and how many of those are dropped.

        Args:
            num_samples: N.

        Returns:
            Both counts; some of the low ones always stay.
        """
        target = decimal_fraction(self.target_savings)
        low = round(target / decimal_fraction(self.prune_ratio) * num_samples)
        return low, min(round(target * num_samples), max(0, low - 1))

    def savings(self) -> float:
        """Return the share that an even first epoch drops."""
        return self.target_savings

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> Rule | Selection:
        """Return the classes of the epoch, or keep all when annealing or before the first scores.

        Args:
            buffer: the scores.
            progress: where the run is, and its seed.
            memory: there is none.

        Returns:
            The decision of the epoch.
        """
        low, dropped = self.counts(buffer.num_samples)
        if annealing(self.delta, progress) or progress.epoch == 0 or dropped == 0:
            return Rule.keep_all(buffer.device)
        # The never seen rank above every score, so that the low ones are the lowest seen.
        ranked = buffer.scores.nan_to_num(nan=math.inf)
        is_low = buffer.top(ranked, buffer.num_samples - low) == 0
        table = weight_table(low / (low - dropped))
        classes = select_fixed(
            buffer,
            is_low,
            low - dropped,
            low,
            seed=progress.seed,
            epoch=progress.epoch,
            weight_class=2,
        )
        return Selection(classes, table)
