# SPDX-License-Identifier: Apache-2.0
"""InfoBatch: soft pruning below the mean score, with an unbiased gradient."""

from __future__ import annotations

from dataclasses import dataclass

from prune_engine.bands import (
    Band,
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
from prune_engine.ops.rule import Rule
from prune_engine.plain import store_plain


@dataclass(frozen=True)
class InfoBatch(Policy):
    """Drop each sample below the mean score with probability r; the kept ones weigh 1 / (1 - r).

    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR
    2024), eq. 4 and 5. From epoch ``delta * num_epochs`` on everything is kept with weight 1.

    Args:
        prune_ratio: r, in [0, 1).
        delta: in (0, 1], the share of the run that prunes.
        sampling: ``"bernoulli"``, the paper's independent draws, or ``"fixed"``, exactly
            floor((1 - r) n) of the n low samples as in the published code.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> InfoBatch(prune_ratio=0.5).describe()["policy"]
        'InfoBatch'
    """

    prune_ratio: float = 0.5
    delta: float = 0.875
    sampling: str = "bernoulli"

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("prune_ratio", self.prune_ratio, zero=True, one=False)
        check_fraction("delta", self.delta, zero=False, one=True)
        check_sampling(self.sampling)

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    @property
    def divisible(self) -> bool:
        """True for independent draws; fixed counts are of the whole data set."""
        return self.sampling == "bernoulli"

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Rule:
        """Return two bands around the mean, or keep all when annealing.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: there is none.

        Returns:
            The rule of the epoch.
        """
        if annealing(self.delta, progress):
            return Rule.keep_all(buffer.device)
        fixed = self.sampling == "fixed"
        low = dropping_band(self.prune_ratio, 2)
        rest = Band(0, 1, low.keep_den, low.keep_den)
        table = weight_table(kept_weight(low, fixed=fixed))
        return Rule(buffer.mean_threshold(), (low, rest), table, fixed)
