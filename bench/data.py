# SPDX-License-Identifier: Apache-2.0
"""The data every benchmark runs on: scores of a half-trained model, and the state made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import prune_engine as pe
from prune_engine.bands import INT64_MAX, SUM_WORDS, Band, weight_table
from prune_engine.ops.rule import Rule, TopRule
from prune_engine.ops.weights import weights_on

IMAGENET_1K = 1_281_167
IMAGENET_22K = 14_197_122
SAMPLES = (IMAGENET_1K, IMAGENET_22K)
PRUNE_RATIO = 0.5
CHUNK = 1 << 20

Chunks = Iterable[tuple[Tensor, Tensor]]


def synthetic_scores(num_samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Scores of a half-trained model: 70% exponential(0.25), 30% lognormal(ln 1.2, 0.7).

    About 69.9% of them lie below their mean, so prune_ratio 0.5 keeps about 65.0%.

    Args:
        num_samples: N >= 0.
        seed: of the generator.

    Returns:
        float32 [N], all positive and finite.
    """
    rng = np.random.default_rng(seed)
    learned = rng.random(num_samples, dtype=np.float32) < 0.7
    scores = rng.exponential(0.25, num_samples).astype(np.float32)
    hard = rng.lognormal(math.log(1.2), 0.7, num_samples).astype(np.float32)
    np.copyto(scores, hard, where=~learned)
    return scores


class PruneState:
    """The tensors an engine keeps for N samples, for use with the bare operators."""

    def __init__(self, scores: Tensor) -> None:
        """Observes every score (float32 [N]) once, in epoch 0."""
        self._allocate(scores.shape[0])
        self.observe(scores, torch.arange(scores.shape[0]), self._all_kept, epoch=0)

    @classmethod
    def from_chunks(cls, num_samples: int, chunks: Chunks) -> PruneState:
        """The same from (indices, scores) pairs, without anything else of length N at the end."""
        state = cls(torch.empty(0))
        state._allocate(num_samples)
        for indices, scores in chunks:
            state.observe(scores, indices, state._all_kept, epoch=0)
        state._all_kept = torch.empty(0, dtype=torch.uint8)
        return state

    def _allocate(self, num_samples: int) -> None:
        self.records = torch.zeros(num_samples, dtype=torch.int64)
        self.score_sum = torch.zeros(SUM_WORDS, dtype=torch.int64)
        self.counters = torch.tensor([0, 0, 0, INT64_MAX, 0])
        self.step = torch.zeros(1, dtype=torch.int64)
        self.weight_table = weights_on(weight_table(2.0), torch.device("cpu"))
        self._all_kept = torch.ones(num_samples, dtype=torch.uint8)

    def observe(
        self, losses: Tensor, indices: Tensor, weight_class: Tensor, *, epoch: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """One call of the operator on this state."""
        return pe.ops.observe(
            losses,
            indices,
            records=self.records,
            score_sum=self.score_sum,
            counters=self.counters,
            step=self.step,
            weight_class=weight_class,
            weight_table=self.weight_table,
            epoch=epoch,
        )

    def plan(self, *, epoch: int, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """InfoBatch's epoch from the records: threshold, draws, classes, kept list.

        Returns:
            weight_class uint8 [N] and kept int32 [num_kept], ascending.
        """
        rule = Rule(
            pe.ops.mean_threshold(self.score_sum),
            (Band(32768, 2, 1, 2), Band(0, 1, 2, 2)),
            weight_table(2.0),
            fixed=fixed,
        )
        weight_class, block_offsets = pe.ops.plan(self.records, rule, seed=0, epoch=epoch)
        kept = pe.ops.compact(weight_class, block_offsets, int(block_offsets[-1]))
        return weight_class, kept

    def plan_levels(self, *, epoch: int, target: int, least: int) -> tuple[Tensor, Tensor]:
        """An epoch by importance from the records: cells, levels, draws, classes, kept list.

        Args:
            epoch: the epoch.
            target: how many to keep on average.
            least: of the 65536 draws, those that keep any sample.

        Returns:
            weight_class uint8 [N] and kept int32 [num_kept], ascending.
        """
        levels = pe.ops.solve_levels(pe.ops.cells(self.records), target, least=least)
        weight_class, block_offsets = pe.ops.plan_levels(
            self.records, levels.top, levels.cut, seed=0, epoch=epoch
        )
        kept = pe.ops.compact(weight_class, block_offsets, int(block_offsets[-1]))
        return weight_class, kept

    def plan_top(self, *, epoch: int, k: int, cut: int) -> tuple[Tensor, Tensor]:
        """OrderDP's epoch from the records: draws, the edge, classes, kept list.

        Args:
            epoch: the epoch.
            k: how many to keep.
            cut: who draws less is not in the pool.

        Returns:
            weight_class uint8 [N] and kept int32 [num_kept], ascending.
        """
        rule = TopRule(k, cut)
        weight_class, block_offsets = pe.ops.plan(self.records, rule, seed=0, epoch=epoch)
        kept = pe.ops.compact(weight_class, block_offsets, int(block_offsets[-1]))
        return weight_class, kept


def empty_engine(num_samples: int) -> pe.PruneEngine:
    """An engine with InfoBatch(0.5) that never anneals within a benchmark."""
    return pe.PruneEngine(num_samples, pe.InfoBatch(prune_ratio=PRUNE_RATIO), num_epochs=1000)


def feed(engine: pe.PruneEngine, chunks: Chunks) -> None:
    """Observes all (indices, scores) pairs."""
    for indices, scores in chunks:
        engine.observe(scores, indices, reduction="none")


def observed_engine(scores: Tensor) -> pe.PruneEngine:
    """An engine in epoch 1, after every score (float32 [N]) was observed once in epoch 0."""
    engine = empty_engine(scores.shape[0])
    feed(engine, zip(torch.arange(scores.shape[0]).split(CHUNK), scores.split(CHUNK), strict=True))
    engine.end_epoch()
    return engine
