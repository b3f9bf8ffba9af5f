# SPDX-License-Identifier: Apache-2.0
"""One rank's part of the scores, and the epoch's share that its batches are recorded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import MAX_SAMPLES
from prune_engine.epoch.copies import refuse_to_copy
from prune_engine.epoch.exact_sum import exact_mean, mean_as_sum
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import PruneEngineError
from prune_engine.sharding.layout import owned
from prune_engine.sharding.local_samples import Share


class ShardedBuffer(ScoreBuffer):
    """The scores of a rank's own range of a larger data set (``owned``). Experimental.

    ``records``, ``scores``, ``weight_class`` and the audit are of that range. A batch is recorded
    in ``share``, what the rank trains in the epoch, for the owners to fetch.

    Args:
        num_samples: N, in 0..2^62; the range must be below 2^31.
        shard: (rank, world size) of the ranks that divide the scores.
        device: where everything lives; default torch's default device.
        backend: which kernels.

    Raises:
        ValueError: N or the shard is out of range, or this rank's range is too long for a device.

    Example:
        >>> buffer = ShardedBuffer(10**4, (1, 2))
        >>> buffer.owned, buffer.scores.shape
        (range(4096, 10000), torch.Size([5904]))
    """

    def __init__(
        self,
        num_samples: int,
        shard: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> None:
        self.owned = owned(num_samples, *shard)
        if len(self.owned) > MAX_SAMPLES:
            raise ValueError(
                f"num_samples must be at most {MAX_SAMPLES} on one device, got {len(self.owned)}: "
                "divide them among more ranks"
            )
        super().__init__(len(self.owned), device=device, backend=backend)
        self.num_samples = num_samples
        self.first = self.owned.start
        self.shard = shard
        self.total: tuple[int, int] = (0, 0)  # of all shards: exact sum in units, number seen
        self._share: Share | None = None
        self._own = self.observe_arguments

    @property
    def share(self) -> Share | None:
        """What the rank trains in the epoch; None before its plan is made."""
        return self._share

    @share.setter
    def share(self, share: Share | None) -> None:
        self._share = share
        # So that a step is that of undivided scores, but for the places of its samples.
        self.observe_arguments = self._own if share is None else share.arguments(self._own)

    def places(self, indices: Tensor) -> Tensor:
        """Return where a batch is in the epoch's share (``Share.places``)."""
        if self._share is None:
            raise PruneEngineError("a shard records no batch before its epoch's plan is made")
        return self._share.places(indices)

    def observe(
        self,
        losses: Tensor,
        indices: Tensor,
        *,
        score: Tensor | None = None,
        advance: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Record one batch in the share of this rank (``ScoreBuffer.observe``)."""
        return super().observe(losses, self.places(indices), score=score, advance=advance)

    def observe_mean(
        self, losses: Tensor, indices: Tensor, score: Tensor | None, advance: bool
    ) -> Tensor | None:
        """Record one batch in the share of this rank (``ScoreBuffer.observe_mean``)."""
        if not isinstance(indices, Tensor) or indices.device != self.device:  # pyright: ignore[reportUnnecessaryIsInstance]
            return None
        return super().observe_mean(losses, self.places(indices), score, advance)

    def cross_entropy_observe(
        self,
        logits: Tensor,
        targets: Tensor,
        indices: Tensor,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        score: str = "loss",
        advance: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Record one batch from its logits (``ScoreBuffer.cross_entropy_observe``)."""
        if score == "forgetting":
            raise _unknown("the last score of a sample, which 'forgetting' needs,")
        return super().cross_entropy_observe(
            logits,
            targets,
            self.places(indices),
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            class_weight=class_weight,
            score=score,
            advance=advance,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse: a part alone is no engine."""
        raise refuse_to_copy("an engine whose scores are divided")

    def mean_threshold(self) -> Tensor:
        """Return the mean threshold of all shards, float32 [1] (``ops.mean_threshold``)."""
        score_sum = self.score_sum.new_tensor(mean_as_sum(*self.total))
        return ops.mean_threshold(score_sum, backend=self.backend)

    def mean(self) -> float:
        """Return the float64 nearest to the exact mean of all shards' scores, nan before any."""
        return exact_mean(*self.total)

    def last_scores(self, indices: Tensor) -> Tensor:
        """Refuse: a sample's last score is its owner's."""
        raise _unknown(
            "the last scores of a batch, which its reducer needs, or a pick without a score,"
        )

    def percentiles(self, percents: Sequence[float]) -> Tensor:
        """Refuse: they are of all scores together."""
        raise _unknown("percentiles")

    def top(self, values: Tensor, k: int) -> Tensor:
        """Refuse: they are among all scores."""
        raise _unknown("the k largest")


def _unknown(what: str) -> PruneEngineError:
    return PruneEngineError(f"{what} cannot be known where the scores are divided")
