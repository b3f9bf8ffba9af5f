# SPDX-License-Identifier: Apache-2.0
"""OrderDP: the largest scores of a fresh random pool, without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from prune_engine.bands import check_fraction, decimal_fraction
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Rule, TopRule
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule


@dataclass(frozen=True)
class OrderDP(ScoreRule):
    """Draw a random pool in every epoch and keep those of it with the largest last scores.

    OrderDP (ICLR 2026, arXiv 2606.08574): of N samples a pool of share ``pool``, of it the
    floor(keep * N) largest; no weights, no annealing, and from the first epoch on. The pool bounds
    how often a sample of a wrong label, whose loss stays large, is trained. The gradient is
    unbiased for another loss, which weighs each sample by how likely its rank is kept. What was
    never seen comes first, and who stays among equal scores is drawn (SEMANTICS 3.13), so that
    epoch 0 is a random subset. Differs from the published rule: the pool is drawn independently
    (exactly floor(keep * N) stay all the same, unless
    the pool has fewer), and a sample never seen is preferred.

    Args:
        keep: in (0, 1): floor(keep * N) samples are kept.
        pool: in [keep, 1]: each sample is in an epoch's pool with this probability. 1 is "the
            hardest only"; ``keep`` is a random subset.
        first_epoch: ``"even"``, or ``"full"``: epoch 0 keeps everything.
        warmup: epochs that keep everything; then ``first_epoch="full"``.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> OrderDP(keep=0.3, pool=0.5).top(1000)
        TopRule(k=300, cut=32768)
    """

    keep: float = 0.3
    pool: float = 0.5
    first_epoch: str = field(default="even", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("keep", self.keep, zero=False, one=False)
        check_fraction("pool", self.pool, zero=False, one=True)
        if self.pool < self.keep:
            raise ValueError(
                f"pool must be at least keep = {self.keep}, for those kept are of it, "
                f"got {self.pool}"
            )
        self.check_beginning()

    def top(self, num_samples: int) -> TopRule:
        """Return the rule of an epoch.

        Args:
            num_samples: N.

        Returns:
            floor(keep * N) samples of a pool.
        """
        cut = round(65536 * (1 - decimal_fraction(self.pool)))
        return TopRule(math.floor(decimal_fraction(self.keep) * num_samples), min(65535, cut))

    def weighs(self) -> bool:
        """Return False."""
        return False

    def even(self, buffer: ScoreBuffer, progress: Progress) -> AnyRule:
        """Return the rule of any epoch: samples never seen are a random subset.

        Args:
            buffer: says how many samples there are.
            progress: not used.

        Returns:
            The rule.
        """
        return self.top(buffer.num_samples)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return the rule of an epoch; in a full first one keep all.

        Args:
            buffer: says how many samples there are.
            progress: where the run is.
            memory: there is none.

        Returns:
            The rule.
        """
        if progress.epoch == 0:
            return Rule.keep_all(buffer.device)
        return self.top(buffer.num_samples)
