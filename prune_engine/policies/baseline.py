# SPDX-License-Identifier: Apache-2.0
"""The controls every claim needs beside it: random subsets and full data."""

from __future__ import annotations

from dataclasses import dataclass

from prune_engine import ops
from prune_engine.bands import (
    check_fraction,
    check_sampling,
    dropping_band,
    kept_weight,
    weight_table,
)
from prune_engine.epoch.policy import (
    Policy,
    PolicyMemory,
    Progress,
    annealing,
)
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Rule, Selection
from prune_engine.plain import store_plain


@dataclass(frozen=True)
class KeepAll(Policy):
    """Keep every sample with weight 1: full-data training through the same loop.

    Example:
        >>> KeepAll().describe()
        {'policy': 'KeepAll'}
    """

    @property
    def divisible(self) -> bool:
        """True."""
        return True

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Rule:
        """Return the rule that drops nothing.

        Args:
            buffer: the scores; not used.
            progress: not used.
            memory: there is none.

        Returns:
            The same rule in every epoch.
        """
        return Rule.keep_all(buffer.device)


@dataclass(frozen=True)
class RandomSubset(Policy):
    """Drop each sample with probability r, whatever its score: fresh every epoch, or static.

    With ``rescale=True`` it is the soft random prune of InfoBatch's Table 5 (ICLR 2024), which
    nearly matches InfoBatch at equal savings: the control that every claim needs.

    Args:
        prune_ratio: r, in [0, 1).
        rescale: weigh the kept samples 1 / (1 - r).
        delta: in (0, 1]; everything is kept from ``delta * num_epochs`` on.
        sampling: ``"bernoulli"`` or ``"fixed"`` (exactly floor((1 - r) N) stay).
        static: draw once, for the whole run, instead of anew in every epoch.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> RandomSubset(prune_ratio=0.3, rescale=True).needs_total
        False
    """

    prune_ratio: float = 0.5
    rescale: bool = False
    delta: float = 1.0
    sampling: str = "bernoulli"
    static: bool = False

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("prune_ratio", self.prune_ratio, zero=True, one=False)
        for name in ("rescale", "static"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        check_fraction("delta", self.delta, zero=False, one=True)
        check_sampling(self.sampling)

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    @property
    def divisible(self) -> bool:
        """True for independent draws that are made anew."""
        return self.sampling == "bernoulli" and not self.static

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Rule | Selection:
        """Return one band for all samples, seen or not.

        Args:
            buffer: the scores; not used.
            progress: where the run is.
            memory: there is none.

        Returns:
            The rule of the epoch.
        """
        if annealing(self.delta, progress):
            return Rule.keep_all(buffer.device)
        fixed = self.sampling == "fixed"
        band = dropping_band(self.prune_ratio, 2 if self.rescale else 1)
        table = weight_table(kept_weight(band, fixed=fixed)) if self.rescale else weight_table()
        no_thresholds = Rule.keep_all(buffer.device).thresholds
        rule = Rule(no_thresholds, (band,), table, fixed, unseen_band=0)
        if not self.static:
            return rule
        # The draws of epoch 0 in every epoch; the order is another one all the same.
        classes, _ = ops.plan(
            buffer.records, rule, seed=progress.seed, epoch=0, backend=buffer.backend
        )
        return Selection(classes, table)
