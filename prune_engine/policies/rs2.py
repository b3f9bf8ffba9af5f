# SPDX-License-Identifier: Apache-2.0
"""RS2: repeated random subsets, each sample once before any comes twice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prune_engine import ops
from prune_engine.bands import check_fraction, decimal_fraction, weight_table
from prune_engine.epoch.policy import Policy, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Selection
from prune_engine.plain import store_plain


@dataclass(frozen=True)
class RS2(Policy):
    """Keep the next q samples of one shuffle in each epoch, and shuffle anew when it is used up.

    "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning" (Okanovic et al.,
    ICLR 2024), without replacement: with q = floor(keep * N), epoch t of a shuffle has its places t
    q to (t + 1) q - 1, so within floor(N / q) epochs nobody is trained twice. Ours: the shuffle is
    the keyed one (SEMANTICS 3.7), and its last N mod q places are left out rather than carried into
    the next one, so that all epochs are of one length. No scores and no weights: a control that a
    rule over scores must beat.

    Args:
        keep: in (0, 1).

    Raises:
        TypeError: keep is not a number.
        ValueError: keep is out of range.

    Example:
        >>> RS2(keep=0.3).place(1000, epoch=4)
        (1, 300)
    """

    keep: float = 0.3

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("keep", self.keep, zero=False, one=False)

    def place(self, num_samples: int, epoch: int) -> tuple[int, int]:
        """Say which part of which shuffle an epoch has.

        Args:
            num_samples: N.
            epoch: in 0..2^31-2.

        Returns:
            The number of the shuffle, and the first of its places.
        """
        size = math.floor(decimal_fraction(self.keep) * num_samples)
        parts = num_samples // size if size else 1
        return epoch // parts, epoch % parts * size

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Selection:
        """Return the part of the epoch.

        Args:
            buffer: says how many samples there are; its scores are not used.
            progress: the epoch and the seed.
            memory: there is none.

        Returns:
            The decision of the epoch.
        """
        n = buffer.num_samples
        turn, first = self.place(n, progress.epoch)
        size = math.floor(decimal_fraction(self.keep) * n)
        places = torch.arange(first, first + size, device=buffer.device)
        chosen = ops.shuffle(places, n, seed=progress.seed, epoch=turn, backend=buffer.backend)
        classes = torch.zeros(n, dtype=torch.uint8, device=buffer.device)
        return Selection(classes.index_fill(0, chosen, 1), weight_table())
