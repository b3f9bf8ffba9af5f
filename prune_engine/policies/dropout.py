# SPDX-License-Identifier: Apache-2.0
"""ProgressiveDropout: only what is not learned yet, or a share that shrinks, then all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from prune_engine.bands import Band, check_fraction, decimal_fraction, weight_table
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress, annealing
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Rule
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule


@dataclass(frozen=True)
class ProgressiveDropout(ScoreRule):
    """Train only samples whose label has a probability below tau, or a random share that shrinks.

    Progressive Data Dropout (NeurIPS 2025, arXiv 2505.22342). With ``tau`` (difficulty-based): a
    sample stays while p_y < tau, that is while its loss is above -ln tau; scores must be
    cross-entropies of one label, without smoothing. With ``gamma`` (scheduled random): epoch t has
    ceil(gamma^t N) random samples. From ``revision * num_epochs`` on everything is trained. Ours:
    a dropped sample keeps its last loss, and so stays out until the revision, where the published
    code passes everything forward in every epoch; whoever has the largest loss stays, so that no
    epoch is empty; epoch 0 is full. No weights: biased.

    Args:
        tau: in (0, 1), or None with gamma.
        gamma: in (0, 1), or None.
        revision: in (0, 1], the share of the run before everything is trained again.
        first_epoch: ``"full"``; "even" is refused, for epochs are to shrink from the full one.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range, or not just one of tau and gamma is given.

    Example:
        >>> ProgressiveDropout(tau=None, gamma=0.5).count(1000, epoch=3)
        125
    """

    tau: float | None = 0.3
    gamma: float | None = None
    revision: float = 0.95
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        if (self.tau is None) == (self.gamma is None):
            raise ValueError(f"tau or gamma must be given, not both, got {self.tau}, {self.gamma}")
        for name in ("tau", "gamma"):
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name), zero=False, one=False)
        check_fraction("revision", self.revision, zero=False, one=True)
        if self.first_epoch == "even":
            raise ValueError("first_epoch must be 'full' for ProgressiveDropout, got 'even'")
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless there is no revision."""
        return self.revision < 1

    def weighs(self) -> bool:
        """Return False."""
        return False

    def count(self, num_samples: int, epoch: int) -> int:
        """Return how many samples a random epoch has.

        Args:
            num_samples: N.
            epoch: t.

        Returns:
            ceil(gamma^t N), gamma read as its decimal.
        """
        return math.ceil(decimal_fraction(self.gamma or 1.0) ** epoch * num_samples)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return the bands of the epoch; what was never seen stays.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: there is none.

        Returns:
            The rule.
        """
        nothing = Rule.keep_all(buffer.device)
        if annealing(self.revision, progress) or progress.epoch == 0:
            return nothing
        if self.tau is None:
            n = max(1, buffer.num_samples)
            band = Band(0, 1, self.count(n, progress.epoch), n)
            return Rule(nothing.thresholds, (band,), weight_table(), fixed=True, unseen_band=0)
        edge = torch.full((1,), -math.log(self.tau), dtype=torch.float32, device=buffer.device)
        # The smallest score above the edge begins the band that stays.
        above = torch.nextafter(edge, torch.full_like(edge, math.inf))
        above = torch.minimum(above, buffer.percentiles([100]))  # an epoch is never empty
        return Rule(above, (Band(0, 1, 0, 1), Band(0, 1, 1, 1)), weight_table(), fixed=True)
