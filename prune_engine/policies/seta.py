# SPDX-License-Identifier: Apache-2.0
"""SeTa: a window over groups of equal difficulty that slides from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass, field

from prune_engine.bands import Band, check_fraction, keep_share, weight_table
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress, annealing
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import check_count
from prune_engine.ops.rule import AnyRule, Rule
from prune_engine.plain import store_plain
from prune_engine.policies.score_rule import ScoreRule, random_rule


@dataclass(frozen=True)
class SeTa(ScoreRule):
    """Keep a random share of the samples whose scores are in a window that moves from easy to hard.

    SeTa, "Scale Efficient Training for Large Datasets" (Zhou et al., CVPR 2025): drop a random
    share, group the others by their losses, train ``window`` neighbouring groups of ``groups``, one
    group further in each epoch and from the easy end again after the hard one, and anneal with the
    random share alone. Written from the paper's words. Ours: the groups are of equal size, cut at
    exact percentiles, where the paper clusters the losses by k-means; the share is drawn within the
    window; defaults of ``groups`` and ``window`` are this package's. No weights: biased.

    Args:
        prune_ratio: in [0, 1), the share of the window that is dropped at random.
        groups: at least 2.
        window: in 1..groups.
        delta: in (0, 1]: from ``delta * num_epochs`` on a random 1 - prune_ratio of all is kept.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops as much at random, and later ones of
            what was never seen.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> [SeTa(groups=4, window=2).span(epoch) for epoch in (1, 2, 3, 4)]
        [(0, 2), (1, 3), (2, 4), (0, 2)]
    """

    prune_ratio: float = 0.1
    groups: int = 5
    window: int = 3
    delta: float = 0.875
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("prune_ratio", self.prune_ratio, zero=True, one=False)
        check_fraction("delta", self.delta, zero=False, one=True)
        for name in ("groups", "window"):
            check_count(name, getattr(self, name), needed=True)
        if self.groups < 2:
            raise ValueError(f"groups must be at least 2, got {self.groups}")
        if self.window > self.groups:
            raise ValueError(f"window must be at most groups = {self.groups}, got {self.window}")
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    def span(self, epoch: int) -> tuple[int, int]:
        """Return the first group of an epoch's window, and the one after its last.

        Args:
            epoch: at least 1.

        Returns:
            Both, in 0..groups.
        """
        first = (epoch - 1) % (self.groups - self.window + 1)
        return first, first + self.window

    def savings(self) -> float:
        """Return the share that an epoch drops."""
        return 1 - (1 - self.prune_ratio) * self.window / self.groups

    def weighs(self) -> bool:
        """Return False."""
        return False

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return the window of the epoch; of a full run, what was never seen stays.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: there is none.

        Returns:
            Bands below, within and above the window.
        """
        if annealing(self.delta, progress):
            return random_rule(buffer, self.prune_ratio, weighs=False)
        if progress.epoch == 0:
            return Rule.keep_all(buffer.device)
        first, last = self.span(progress.epoch)
        num, den = keep_share(self.prune_ratio)
        outside, within = Band(0, 1, 0, den), Band(0, 1, num, den)
        edges = [(100 * edge / self.groups, edge) for edge in (first, last)]
        inner = [percent for percent, edge in edges if 0 < edge < self.groups]
        bands = (
            *((outside,) if first else ()),
            within,
            *((outside,) if last < self.groups else ()),
        )
        return Rule(buffer.percentiles(inner), bands, weight_table(), fixed=True)
