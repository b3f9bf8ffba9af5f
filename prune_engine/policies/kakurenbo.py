# SPDX-License-Identifier: Apache-2.0
"""KAKURENBO: hide what is learned with confidence, a smaller share the longer the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from prune_engine.bands import check_fraction, decimal_fraction, weight_table
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Rule, Selection
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule

SHARES = ((0.0, 1.0), (0.3, 0.8), (0.6, 0.6), (0.8, 0.4))  # of the run, and of the fraction


@dataclass(frozen=True)
class KAKURENBO(ScoreRule):
    """Hide the lowest losses, but only those of a right and confident prediction.

    KAKURENBO (Nguyen et al., NeurIPS 2023): of the samples the ``fraction`` with the smallest
    lagging losses is hidden for an epoch, but who is not predicted right with a confidence of at
    least tau is moved back; the fraction shrinks in steps (to 0.8, 0.6 and 0.4 of it at 30, 60 and
    80% of the run). Scores must be cross-entropies of one label, without smoothing: tau >= 0.5 then
    reads "loss at most -ln tau". Written from the paper; ours: no forward pass over the hidden at
    an epoch's end, which the paper pays for. Instead only who was trained in the last epoch can be
    hidden, so that nobody is hidden twice in a row on a stale loss (with ``mode="flow"``: who was
    trained by the horizon, and with a horizon of 0 nobody); and the learning rate, which the paper
    multiplies by 1 / (1 - hidden), is the user's. No weights: biased.

    Args:
        fraction: in (0, 1), the largest share that is hidden.
        tau: in [0.5, 1).
        first_epoch: ``"full"``, or ``"even"``: epoch 0 hides the fraction at random. As after any
            epoch, who was hidden is back in the next, which hides as many of the others, if
            they are confident: later epochs are no longer for what was never seen.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> [KAKURENBO(0.3).count(1000, Progress(t, t, 10)) for t in (1, 3, 6, 9)]
        [300, 240, 180, 120]
    """

    fraction: float = 0.3
    tau: float = 0.7
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("fraction", self.fraction, zero=False, one=False)
        check_fraction("tau", self.tau, zero=False, one=False)
        if self.tau < 0.5:
            raise ValueError(
                f"tau must be at least 0.5, so that who reaches it is predicted right, "
                f"got {self.tau}"
            )
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True: the fraction shrinks by the share of the run."""
        return True

    def savings(self) -> float:
        """Return the fraction."""
        return self.fraction

    def weighs(self) -> bool:
        """Return False."""
        return False

    def count(self, num_samples: int, progress: Progress) -> int:
        """Return how many samples an epoch may hide.

        Args:
            num_samples: N.
            progress: where the run is.

        Returns:
            floor of the shrunk fraction of N.
        """
        total = progress.total or 1
        share = 1.0
        for at, each in SHARES:
            if progress.done >= decimal_fraction(at) * total:
                share = each
        exact = decimal_fraction(self.fraction) * decimal_fraction(share)
        return math.floor(exact * num_samples)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return who is not hidden.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: there is none.

        Returns:
            The decision of the epoch.
        """
        if progress.epoch == 0:
            return Rule.keep_all(buffer.device)
        scores = buffer.scores
        trained = (buffer.records >> 32) == progress.epoch
        lowest = torch.where(trained, -scores, torch.nan)
        candidates = buffer.top(lowest, self.count(buffer.num_samples, progress)) == 1
        hidden = candidates & (scores <= -math.log(self.tau))
        return Selection((~hidden).to(torch.uint8), weight_table())
