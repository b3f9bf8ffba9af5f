# SPDX-License-Identifier: Apache-2.0
"""InfoBatchQuantile: the percentile rule behind the papers' savings of 40%."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from prune_engine.bands import (
    MAX_BANDS,
    Band,
    check_fraction,
    check_sampling,
    decimal_fraction,
    kept_weight,
    weight_table,
)
from prune_engine.epoch.policy import (
    PolicyMemory,
    Progress,
    annealing,
)
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Rule
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule


@dataclass(frozen=True)
class InfoBatchQuantile(ScoreRule):
    """Keep the lowest scores with small probabilities, by percentile; each weighs 1 / probability.

    Qin et al., "InfoBatch" (ICLR 2024), eq. 4 and 5 with percentiles in place of the mean, the rule
    of its Table 6: with (20, 85) and (0.25, 0.5) a pruning epoch drops 0.2 * 0.75 + 0.65 * 0.5 =
    0.475 of the samples. A sample is low iff it is strictly below the percentile
    (``ops.percentiles``). From epoch ``delta * num_epochs`` on everything is kept with weight 1.

    Args:
        percentiles: one to five, ascending, each in (0, 100).
        keep: as many, each in (0, 1]: the probability to keep a sample below the percentile and
            not below the one before.
        delta: in (0, 1], the share of the run that prunes.
        sampling: ``"bernoulli"``, independent draws, or ``"fixed"``, exactly floor(keep * n) of the
            n samples of each band.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops as much at random, and later ones of
            what was never seen, which weighs for it. At most four percentiles then.
        warmup: epochs that keep everything.
        weight_cap: at least 1: no sample weighs more, which biases the gradient; None: no cap.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range, or the two lists do not fit together.

    Example:
        >>> InfoBatchQuantile().expected_savings
        0.475
    """

    percentiles: tuple[float, ...] = (20.0, 85.0)
    keep: tuple[float, ...] = (0.25, 0.5)
    delta: float = 0.875
    sampling: str = "bernoulli"

    def __post_init__(self) -> None:
        for name in ("percentiles", "keep"):  # lists would leave the policy without a hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        store_plain(self)
        if not 1 <= len(self.percentiles) < MAX_BANDS or len(self.keep) != len(self.percentiles):
            raise ValueError(
                f"percentiles and keep must have the same 1 to {MAX_BANDS - 1} entries, got "
                f"{self.percentiles} and {self.keep}"
            )
        if self.first_epoch == "even" and len(self.percentiles) > MAX_BANDS - 2:
            raise ValueError(
                f"percentiles must have at most {MAX_BANDS - 2} entries where first_epoch is "
                f"'even', for the never seen have a band of their own, got {len(self.percentiles)}"
            )
        for percent in self.percentiles:
            if isinstance(percent, bool) or not isinstance(percent, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"percentiles must be numbers, got {percent!r}")
            if not 0 < percent < 100:
                raise ValueError(f"percentiles must be in (0, 100), got {percent!r}")
        if list(self.percentiles) != sorted(set(self.percentiles)):
            raise ValueError(f"percentiles must ascend, got {self.percentiles}")
        for share in self.keep:
            check_fraction("keep", share, zero=False, one=True)
        check_fraction("delta", self.delta, zero=False, one=True)
        check_sampling(self.sampling)
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    @property
    def expected_savings(self) -> float:
        """The share of the samples that a pruning epoch drops, where no scores tie."""
        percents = [Fraction(0), *(decimal_fraction(p) / 100 for p in self.percentiles)]
        widths = [high - low for low, high in pairwise(percents)]
        drops = [1 - decimal_fraction(share) for share in self.keep]
        return float(sum(w * d for w, d in zip(widths, drops, strict=True)))

    def savings(self) -> float:
        """Return the share that an even first epoch drops."""
        return self.expected_savings

    def decide(self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None) -> Rule:
        """Return a band below each percentile and one above, or keep all when annealing.

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
        shares = [decimal_fraction(share) for share in self.keep]
        den = math.lcm(*(share.denominator for share in shares))
        if den >= 2**31:  # nine digits of each are exact
            den = 10**9
        low = tuple(
            Band(
                min(65535, math.floor((1 - share) * 65536 + Fraction(1, 2))),
                weight_class,
                math.floor(share * den),
                den,
            )
            for weight_class, share in enumerate(shares, 2)
        )
        table = weight_table(*(kept_weight(band, fixed=fixed) for band in low))
        thresholds = buffer.percentiles(self.percentiles)
        return Rule(thresholds, (*low, Band(0, 1, den, den)), table, fixed)
