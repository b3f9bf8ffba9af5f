# SPDX-License-Identifier: Apache-2.0
"""A chosen subset as a policy: the same samples in every epoch, with their weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from prune_engine.bands import NUM_CLASSES, check_weight_table, weight_table
from prune_engine.coresets.method import Coreset
from prune_engine.epoch.policy import Policy, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import Selection
from prune_engine.ops.to_host import host_floats, host_ints
from prune_engine.plain import store_plain

LEVELS = NUM_CLASSES - 2  # of weights besides 1


@dataclass(frozen=True)
class FixedSubset(Policy):
    """Train on these samples alone, every epoch, in an order of its own each.

    Args:
        indices: positions in the data set, ascending.
        weights: of each, above 0 and finite; () for 1 each. At most 254 different ones besides 1.

    Raises:
        ValueError: indices do not ascend, or a weight does not fit.

    Example:
        >>> FixedSubset((1, 4)).describe()
        {'policy': 'FixedSubset', 'indices': (1, 4), 'weights': ()}
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", tuple(self.indices))
        object.__setattr__(self, "weights", tuple(self.weights))
        store_plain(self)
        pairs = itertools.pairwise((-1, *self.indices))
        if any(after <= before for before, after in pairs):
            raise ValueError("indices must ascend from 0 on, no two alike")
        if self.weights and len(self.weights) != len(self.indices):
            raise ValueError(
                f"weights must be {len(self.indices)} numbers or none, got {len(self.weights)}"
            )
        if not all(weight > 0 for weight in self.weights):
            raise ValueError("weights must be above 0")
        if len(set(self.weights) - {1.0}) > LEVELS:
            raise ValueError(
                f"weights must have at most {LEVELS} values besides 1, got "
                f"{len(set(self.weights) - {1.0})}; FixedSubset.of(coreset) rounds them"
            )
        check_weight_table(weight_table(*self._levels()))

    @classmethod
    def of(cls, coreset: Coreset) -> FixedSubset:
        """Make the policy of a coreset, its weights divided by their mean.

        The learning rate then means what it did. Where there are too many different weights they
        are rounded to the nearest of 254 in equal ratios; a sample of weight 0 is left out.

        Args:
            coreset: what ``select`` returned.

        Returns:
            The policy.

        Raises:
            ValueError: all weights are 0.

        Example:
            >>> made = Coreset(torch.tensor([1, 4]), torch.tensor([3.0, 1.0]), torch.tensor([1, 4]))
            >>> FixedSubset.of(made).weights
            (1.5, 0.5)
        """
        kept = coreset.weights > 0
        if len(coreset) and not bool(kept.any()):
            raise ValueError("weights must not all be 0")
        indices, weights = coreset.indices[kept], coreset.weights[kept].double()
        if bool((weights == weights[:1]).all()):
            return cls(tuple(host_ints(indices)))
        weights = weights / weights.mean()
        if len(set(host_floats(weights))) > LEVELS:
            logs = weights.log()
            low, high = logs.min(), logs.max()
            step = (high - low) / (LEVELS - 1)
            weights = (low + ((logs - low) / step).round() * step).exp()
        return cls(tuple(host_ints(indices)), tuple(host_floats(weights)))

    def _levels(self) -> tuple[float, ...]:
        return tuple(sorted(set(self.weights) - {1.0}))

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Selection:
        """Return the selection, the same in every epoch.

        Args:
            buffer: says how many samples there are, and where.
            progress: not used.
            memory: there is none.

        Returns:
            A class per sample.

        Raises:
            ValueError: an index is beyond the data set.
        """
        if self.indices and self.indices[-1] >= buffer.num_samples:
            raise ValueError(
                f"indices must be in 0..{buffer.num_samples - 1}, got {self.indices[-1]}"
            )
        levels = self._levels()
        class_of = {1.0: 1, **{weight: 2 + k for k, weight in enumerate(levels)}}
        classes = torch.zeros(buffer.num_samples, dtype=torch.uint8)
        chosen = [class_of[weight] for weight in self.weights] if self.weights else 1
        positions = torch.tensor(self.indices, dtype=torch.int64)
        classes[positions] = torch.as_tensor(chosen, dtype=torch.uint8)
        return Selection(classes.to(buffer.device), weight_table(*levels))
