# SPDX-License-Identifier: Apache-2.0
"""B-PAS: a batch whose activations have stopped changing leaves the training set."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from prune_engine.bands import check_fraction
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.plain import store_plain
from prune_engine.policies.batches import stability
from prune_engine.policies.batches.base import BatchMemory, BatchPolicy, check_batches
from prune_engine.policies.batches.pacing import delta_at, planned_count
from prune_engine.policies.batches.stability_memory import StabilityMemory


@dataclass(frozen=True)
class BPAS(BatchPolicy):
    """Drop a fixed batch for ever once its activations have stopped changing.

    "Batch Pruning by Activation Stability" (ICLR 2026). X_i(b) is the mean over layers of the std
    of a layer's output over the whole batch; after epoch i >= 2 batch b leaves iff
    ``|X_i(b) - X_{i-1}(b)| <= delta_i``, ``delta_i = delta_start * exp(i / I * ln(delta_end /
    delta_start))``. Attach an ``ActivationMonitor`` to the engine.

    Args:
        batch_size: B, over all ranks.
        delta_start: positive. The published ones: 1e-6 for CIFAR, 5e-6 for ImageNet.
        delta_end: positive. The published ones: 5e-5 for both.
        strict: leave iff the change is below delta (slides) instead of at most delta (paper).
        shuffle_batches: serve the batches in another order every epoch. False as published: the
            model moves on between two visits of a batch, and only a fixed order makes that
            interval the same for all of them. (Shuffled, |X_i - X_{i-1}| follows the interval: a
            correlation of 0.84 to 0.97 on Fashion-MNIST.)
        drop_last: leave an incomplete last batch out of the run; else it is served last.
        min_batches: so many stay at least, those that changed most. With 0 all may leave: the plan
            is empty then and the run ends early, which the report says.
        target_dsi: instead of delta: choose each epoch's delta from the changes that were seen,
            so that ``1 - sum_i n_i / (I n_1)`` comes out as this, in [0, 1).
        noise_floor: not published; so many standard deviations of the noise (augmentation, dropout)
            of X, estimated over the living batches. A batch that moved by more in the epoch before
            counts with that change: one quiet epoch alone is chance. Needs a third epoch.
        unbiased: the std divides by count - 1.

    Raises:
        TypeError: a parameter is of the wrong type.
        ValueError: a parameter is out of range.

    Example:
        >>> BPAS(128, delta_start=1e-6, delta_end=5e-5).fixed_batch
        128
    """

    batch_size: int = 128
    delta_start: float = 1e-6
    delta_end: float = 5e-5
    _: KW_ONLY
    strict: bool = False
    shuffle_batches: bool = False
    drop_last: bool = False
    min_batches: int = 0
    target_dsi: float | None = None
    noise_floor: float | None = None
    unbiased: bool = True

    def __post_init__(self) -> None:
        store_plain(self)
        flags = ("strict", "shuffle_batches", "drop_last", "unbiased")
        check_batches(
            self.batch_size, self.min_batches, **{name: getattr(self, name) for name in flags}
        )
        for name in ("delta_start", "delta_end", "noise_floor"):
            value = getattr(self, name)
            if name == "noise_floor" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a positive number, got {value!r}")
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.target_dsi is not None:
            check_fraction("target_dsi", self.target_dsi, zero=True, one=False)

    @property
    def needs_total(self) -> bool:
        """True: delta_i depends on I."""
        return True

    def memory(self, buffer: ScoreBuffer, seed: int) -> StabilityMemory:
        """Return fresh memory for one run.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: the run's.

        Returns:
            The fixed batches, all alive, without any X.
        """
        return StabilityMemory(self, self.deal(buffer, seed), unbiased=self.unbiased)

    def decide(self, memory: BatchMemory, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Decide which batches stay: from the second epoch's end on, by the changes of X.

        Args:
            memory: the run's; not changed.
            epoch: the epoch to decide.

        Returns:
            Who is alive, and delta.
        """
        stable = StabilityMemory.of(memory)
        if epoch < 2 or stable.total is None:
            return stable.alive, stable.delta
        change = stability.change_of(
            stable.now, stable.before, stable.earlier, stable.alive, self.noise_floor
        )
        delta = self._delta(epoch, stable.total, change, stable)
        alive = stability.survivors(
            change,
            stable.alive,
            delta,
            # The budget's delta is itself a change: who has it leaves.
            strict=self.strict and self.target_dsi is None,
            min_batches=max(self.min_batches, int(self.target_dsi is not None)),
        )
        return alive, delta

    def _delta(self, done: int, total: int, change: Tensor, memory: StabilityMemory) -> Tensor:
        if self.target_dsi is None:
            value = delta_at(done, total, self.delta_start, self.delta_end)
            return change.new_tensor(value)
        counts = memory.counts
        stay = planned_count(
            memory.batches.num_batches,
            done,
            sum(counts),
            counts[-1],
            total,
            self.target_dsi,
            max(1, self.min_batches),  # a budget is spent to the last epoch
        )
        return stability.smallest(change, memory.alive, counts[-1] - stay)
