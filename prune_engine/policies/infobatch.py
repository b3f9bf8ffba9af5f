# SPDX-License-Identifier: Apache-2.0
"""InfoBatch: soft pruning below the mean score, with an unbiased gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from prune_engine.bands import (
    Band,
    check_fraction,
    check_sampling,
    dropping_band,
    kept_weight,
    weight_table,
)
from prune_engine.epoch.policy import (
    LATE,
    PolicyMemory,
    Progress,
    annealing,
)
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Rule
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule


@dataclass(frozen=True)
class InfoBatch(ScoreRule):
    """Drop each sample below the mean score with probability r; the kept ones weigh 1 / (1 - r).

    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR
    2024), eq. 4 and 5. From epoch ``delta * num_epochs`` on everything is kept with weight 1.
    ``rescale=False`` and ``side="high"`` are the arms of its Tables 4 and 5.

    Args:
        prune_ratio: r, in [0, 1).
        delta: in (0, 1], the share of the run that prunes.
        sampling: ``"bernoulli"``, the paper's independent draws, or ``"fixed"``, exactly
            floor((1 - r) n) of the n low samples as in the published code.
        rescale: weigh the kept 1 / (1 - r); without, the gradient is biased.
        side: ``"low"``, or ``"high"``: drop from those not below the mean instead.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops at random as if half were low, and
            later ones as much of what was never seen, which weighs for it.
        warmup: epochs that keep everything.
        weight_cap: at least 1: no sample weighs more, which biases the gradient; None: no cap.

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
    rescale: bool = field(default=True, metadata=LATE)
    side: str = field(default="low", metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("prune_ratio", self.prune_ratio, zero=True, one=False)
        check_fraction("delta", self.delta, zero=False, one=True)
        check_sampling(self.sampling)
        if not isinstance(self.rescale, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"rescale must be a bool, got {self.rescale!r}")
        if self.side not in ("low", "high"):
            raise ValueError(f"side must be 'low' or 'high', got {self.side!r}")
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    @property
    def divisible(self) -> bool:
        """True for independent draws; fixed counts are of the whole data set."""
        return self.sampling == "bernoulli"

    def savings(self) -> float:
        """Return r / 2: as if half were low."""
        return self.prune_ratio / 2

    def weighs(self) -> bool:
        """Return whether the kept weigh for the dropped."""
        return self.rescale

    def decide(self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None) -> Rule:
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
        drops = dropping_band(self.prune_ratio, 2 if self.rescale else 1)
        rest = Band(0, 1, drops.keep_den, drops.keep_den)
        bands = (drops, rest) if self.side == "low" else (rest, drops)
        table = weight_table(kept_weight(drops, fixed=fixed)) if self.rescale else weight_table()
        return Rule(buffer.mean_threshold(), bands, table, fixed)
