# SPDX-License-Identifier: Apache-2.0
"""IES: stop training on a sample whose loss has stopped bending."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prune_engine.bands import check_positive, weight_table
from prune_engine.epoch.fits import class_problems, tensor_problems
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import check_count
from prune_engine.ops.rule import AnyRule, Rule, Selection
from prune_engine.plain import store_plain
from prune_engine.policies.marks import resized
from prune_engine.policies.score_rule import ScoreRule

TENSORS = ("before", "earlier", "mastered")


class IESMemory(PolicyMemory):
    """The last two scores before the current one, and who is mastered: 9 bytes per sample.

    Args:
        policy: says when a sample is mastered.
        buffer: says how many samples there are and where tensors live.
    """

    def __init__(self, policy: IES, buffer: ScoreBuffer) -> None:
        self.policy = policy
        self.before = torch.full((buffer.num_samples,), torch.nan, device=buffer.device)
        self.earlier = self.before.clone()
        self.mastered = torch.zeros_like(buffer.weight_class)

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Judge whoever was trained by its last three scores.

        Args:
            buffer: the scores.
            epoch: the epoch that ended.
        """
        scores = buffer.scores
        trained = (buffer.records >> 32) == epoch + 1
        bend = (scores - 2 * self.before + self.earlier).abs()  # nan before the third score
        mastered = (bend < self.policy.threshold).to(torch.uint8)
        self.mastered = torch.where(trained, mastered, self.mastered)
        self.earlier = torch.where(trained, self.before, self.earlier)
        self.before = torch.where(trained, scores, self.before)

    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes: nobody has mastered a new sample.

        Args:
            num_samples: N from the current epoch on.
        """
        for name, fresh in zip(TENSORS, (torch.nan, torch.nan, 0), strict=True):
            setattr(self, name, resized(getattr(self, name), num_samples, fresh))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu."""
        return {name: getattr(self, name).to("cpu", copy=True) for name in TENSORS}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {name: getattr(self, name) for name in TENSORS})
        return problems or class_problems("mastered", state["mastered"], 2)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        for name in TENSORS:
            setattr(self, name, state[name].to(self.before.device, copy=True))


@dataclass(frozen=True)
class IES(ScoreRule):
    """Drop a sample while the second difference of its loss is small.

    Instance-dependent Early Stopping (Yuan et al., ICLR 2025): a sample is mastered where
    ``|l_t - 2 l_(t-1) + l_(t-2)| < threshold``, and then spared the backward pass. Written from the
    paper. Ours: the differences are of a sample's last three trainings; a mastered sample is not
    even passed forward, and is looked at again in every ``again``-th epoch, which keeps everything,
    where the paper passes all forward in every epoch. If all are mastered all are kept. No
    weights: biased.

    Args:
        threshold: above 0, in units of the score.
        again: at least 2: epochs 0, again, 2 again, ... keep everything.
        first_epoch: ``"full"``; "even" is refused, for three losses of each are needed.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> IES(threshold=0.01).again
        10
    """

    threshold: float = 0.001
    again: int = 10
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_positive("threshold", self.threshold)
        check_count("again", self.again, needed=True)
        if self.again < 2:
            raise ValueError(f"again must be at least 2, got {self.again}")
        if self.first_epoch == "even":
            raise ValueError("first_epoch must be 'full' for IES, got 'even'")
        self.check_beginning()

    def weighs(self) -> bool:
        """Return False."""
        return False

    def memory(self, buffer: ScoreBuffer, seed: int) -> IESMemory:
        """Return scores of nobody.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: not used.

        Returns:
            What the run keeps.
        """
        return IESMemory(self, buffer)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return who is not mastered.

        Args:
            buffer: says where tensors live.
            progress: where the run is.
            memory: what ``memory`` returned.

        Returns:
            The decision of the epoch.

        Raises:
            TypeError: the memory is not that of this policy.
        """
        own = IESMemory.of(memory)
        if progress.epoch % self.again == 0:
            return Rule.keep_all(buffer.device)
        kept: Tensor = own.mastered == 0
        return Selection((kept | ~kept.any()).to(torch.uint8), weight_table())
