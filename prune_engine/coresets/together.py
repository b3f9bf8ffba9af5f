# SPDX-License-Identifier: Apache-2.0
"""Methods that choose from several classes at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from prune_engine.coresets.greedy import Contest, largest_first, side_by_side
from prune_engine.coresets.method import Method, Pick, Samples


class Together(Method):
    """A method whose loop may go through several classes in step.

    On a device a choice takes as long as its launches, of one class or of many.
    """

    @abstractmethod
    def pick_each(self, parts: Sequence[Samples], counts: Sequence[int]) -> list[Pick]:
        """Choose from several classes with small matrices, as ``pick`` does from each.

        Args:
            parts: the samples of each, all of one ``report``.
            counts: k of each.
        """


class Contested(Together):
    """A method whose every choice is the largest of values that it makes smaller."""

    @abstractmethod
    def contest(self, samples: Samples, k: int) -> Contest:
        """Return what is asked of some samples.

        Args:
            samples: n of them.
            k: in 1..n.
        """

    def pick(self, samples: Samples, k: int) -> Pick:
        """Settle the contest of some samples."""
        return Pick(largest_first(self.contest(samples, k), samples.report))

    def pick_each(self, parts: Sequence[Samples], counts: Sequence[int]) -> list[Pick]:
        """Settle the contests of several classes together."""
        contests = [self.contest(part, k) for part, k in zip(parts, counts, strict=True)]
        return [Pick(order) for order in side_by_side(contests, parts[0].report)]
