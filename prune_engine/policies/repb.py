# SPDX-License-Identifier: Apache-2.0
"""RePB: each batch's own mean decides, and what was left out weighs when it is back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prune_engine.bands import check_fraction, weight_table
from prune_engine.epoch.fits import tensor_problems
from prune_engine.epoch.policy import LATE, Extras, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Rule, Selection
from prune_engine.plain import store_plain
from prune_engine.policies.fixed_counts import drop_drawn
from prune_engine.policies.marks import Marks, resized
from prune_engine.policies.score_rule import ScoreRule, random_rule

MOST_EPOCHS = 255  # a weight for each number of epochs missed: classes 1 to 255


class RePBMemory(Marks):
    """Who was below its batch's mean, and how many epochs each sample has missed: 9 bytes each.

    Args:
        buffer: says how many samples there are and where tensors live.
    """

    def __init__(self, buffer: ScoreBuffer) -> None:
        super().__init__(buffer)
        self.missed = torch.zeros(buffer.num_samples, dtype=torch.uint8, device=buffer.device)

    def after_record(self, indices: Tensor, losses: Tensor, score: Tensor, extras: Extras) -> None:
        """Mark who is below the mean of the batch's finite scores, in float64.

        Args:
            indices: [B].
            losses: not used.
            score: [B].
            extras: not used.
        """
        wide = score.to(torch.float32).to(torch.float64)
        finite = wide.isfinite()
        mean = torch.where(finite, wide, 0.0).sum() / finite.sum()
        self.put(indices, wide < mean)

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Merge the marks, and count the epoch for whoever was not in it.

        Args:
            buffer: whose weight classes are the epoch's.
            epoch: the epoch that ended.
        """
        super().end_epoch(buffer, epoch)
        self.missed = self.missed_with(buffer)

    def missed_with(self, buffer: ScoreBuffer) -> Tensor:
        """Return how many epochs each sample has missed, uint8 [N], the running one counted.

        Args:
            buffer: whose weight classes are the running epoch's.
        """
        out = (buffer.weight_class == 0) & (self.missed < MOST_EPOCHS)
        return self.missed + out.to(torch.uint8)

    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes: a new sample has missed nothing.

        Args:
            num_samples: N from the current epoch on.
        """
        super().resize(num_samples)
        self.missed = resized(self.missed, num_samples)

    def state_dict(self) -> dict[str, Any]:
        """Return the marks and what was missed."""
        return {**super().state_dict(), "missed": self.missed.cpu()}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = super().state_problems(state)
        problems += tensor_problems(state, {"missed": self.missed})
        if problems or not state["missed"].numel():
            return problems
        most = int(state["missed"].max())
        if most > state["epoch"]:
            return [f"missed: expected at most {state['epoch']} epochs, got {most}"]
        return []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        super().load_state_dict(state)
        self.missed = state["missed"].to(self.missed.device, copy=True)


@dataclass(frozen=True)
class RePB(ScoreRule):
    """Drop who was below its batch's mean with probability rho, and let the kept weigh for it.

    RePB (ICLR 2026). A sample stays in the next epoch if its score was at least the mean of its
    batch; else, and where it was not in this epoch, it stays with probability 1 - rho. In epoch E,
    counted from 1, it weighs ``E / n``, n being the epochs that have had it: the weights make up
    for what was missed over the run, not in each epoch. The batch is a rank's own, so ranks and
    batch sizes change what is low, though not that all ranks keep the same. With ``mode="flow"``
    an epoch is decided before the one before it has ended: the last that has says who is low.
    Written from notes of the paper, whose code was not to be had; at most 255 epochs, one weight
    class for each number missed.

    Args:
        rho: in (0, 1).
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops rho / (2 - rho) at random, what later
            ones do if half of each batch is low, and who was dropped has missed it.
        warmup: epochs that keep everything.
        weight_cap: at least 1: no sample weighs more, so that what was missed is not all made up
            for; None: no cap.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> RePB(rho=0.7).weights(3)
        (0.0, 1.0, 1.5, 3.0)
    """

    rho: float = 0.5
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("rho", self.rho, zero=False, one=False)
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True: more than 255 epochs have no weights, and the run must not end in the middle."""
        return True

    def savings(self) -> float:
        """Return s = rho / (2 - rho): of who is absent, s, or low, (1 - s) / 2, rho go: s."""
        return self.rho / (2 - self.rho)

    def even(self, buffer: ScoreBuffer, progress: Progress) -> AnyRule:
        """Return a random subset without weights: the next epochs make up for what it drops.

        Args:
            buffer: says where the thresholds live.
            progress: not used.

        Returns:
            One band for all samples.
        """
        return random_rule(buffer, self.savings(), weighs=False)

    def weights(self, epochs: int) -> tuple[float, ...]:
        """Return the weights of who has missed 0, 1, ... of a number of epochs.

        Args:
            epochs: E, in 1..255.

        Returns:
            The table; class 1 + missed weighs ``E / (E - missed)``.
        """
        return weight_table(*(epochs / (epochs - missed) for missed in range(1, epochs)))

    def memory(self, buffer: ScoreBuffer, seed: int) -> RePBMemory:
        """Return marks of nobody.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: not used.

        Returns:
            What the run keeps.
        """
        return RePBMemory(buffer)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return the classes of the epoch, or keep all in the first.

        Args:
            buffer: says which kernels.
            progress: where the run is.
            memory: what ``memory`` returned.

        Returns:
            The decision of the epoch.

        Raises:
            TypeError: the memory is not that of this policy.
            ValueError: the run has more than 255 epochs.
        """
        own = RePBMemory.of(memory)
        if progress.total is not None and progress.total > MOST_EPOCHS:
            raise ValueError(
                f"num_epochs must be at most {MOST_EPOCHS} for RePB, got {progress.total}"
            )
        if progress.epoch == 0:
            return Rule.keep_all(buffer.device)
        # Decided ahead (mode="flow"), the epoch before has not ended: the batches of the last one
        # that has are asked, and what the running one leaves out is known from its plan.
        ahead = own.epoch < progress.epoch
        missed = own.missed_with(buffer) if ahead else own.missed
        doubtful = ~own.said(own.epoch - 1) | (own.numbers == 1)
        kept = drop_drawn(buffer, doubtful, self.rho, seed=progress.seed, epoch=progress.epoch)
        return Selection(kept * (missed + 1), self.weights(progress.epoch + 1))
