# SPDX-License-Identifier: Apache-2.0
"""ZeroVariance: skip prompts whose rollouts have all been rewarded alike for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import check_fraction, decimal_fraction, weight_table
from prune_engine.epoch.fits import class_problems, int_problems, tensor_problems
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.rule import AnyRule, Rule, Selection
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import store_plain
from prune_engine.policies.marks import resized
from prune_engine.policies.score_rule import ScoreRule

STREAM = 2**27 + 1  # of draw
STEPS = 100  # the chances are hundredths, so that a state holds ints
LOWEST, HIGHEST = 5, 95
MOST = 255  # of a streak
AIMS = (Fraction(1, 3), Fraction(2, 3))  # of the target: easy and hard


class StreakMemory(PolicyMemory):
    """How often in a row a prompt's rewards were all alike, and which way: 2 bytes per sample.

    Args:
        policy: says what is aimed at.
        buffer: says how many samples there are and where tensors live.
    """

    def __init__(self, policy: ZeroVariance, buffer: ScoreBuffer) -> None:
        self.policy = policy
        self.streak = torch.zeros_like(buffer.weight_class)
        self.easy = torch.zeros_like(buffer.weight_class)
        self.first = round(STEPS * policy.start)
        self.chances = [self.first] * 2  # to explore: of the easy, of the hard

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Count on, and move both chances by a hundredth toward the share that is aimed at.

        Args:
            buffer: the scores: above 0 the spread of a prompt's rewards, 0 all right, below 0 all
                wrong.
            epoch: the epoch that ended.
        """
        scores = buffer.scores
        fresh = (buffer.records >> 32) == epoch + 1
        alike, easy = fresh & (scores <= 0), (scores == 0).to(torch.uint8)
        longer = torch.where(self.streak < MOST, self.streak + 1, self.streak)
        self.streak = torch.where(alike, longer, torch.where(fresh, 0, self.streak))
        self.easy = torch.where(fresh, easy, self.easy)
        counts = [fresh.sum(), (alike & (easy == 1)).sum(), (alike & (easy == 0)).sum()]
        seen, *found = host_ints(torch.stack(counts))
        target = decimal_fraction(self.policy.target)
        for kind, (many, part) in enumerate(zip(found, AIMS, strict=True)):
            step = -1 if many > target * part * seen else 1
            self.chances[kind] = min(HIGHEST, max(LOWEST, self.chances[kind] + step))

    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes: a new prompt has no streak.

        Args:
            num_samples: N from the current epoch on.
        """
        self.streak, self.easy = (resized(each, num_samples) for each in (self.streak, self.easy))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything on the cpu, and the two chances."""
        return {
            "streak": self.streak.to("cpu", copy=True),
            "easy": self.easy.to("cpu", copy=True),
            "chance_easy": self.chances[0],
            "chance_hard": self.chances[1],
        }

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {"streak": self.streak, "easy": self.easy})
        most = max(HIGHEST, self.first)
        problems += int_problems(state, dict.fromkeys(("chance_easy", "chance_hard"), most))
        return problems or class_problems("easy", state["easy"], 2)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        device = self.streak.device
        self.streak = state["streak"].to(device, copy=True)
        self.easy = state["easy"].to(device, copy=True)
        self.chances = [int(state["chance_easy"]), int(state["chance_hard"])]


@dataclass(frozen=True)
class ZeroVariance(ScoreRule):
    """Skip a prompt the more likely, the more visits in a row its rewards were all alike.

    GRESO (arXiv 2506.02177) for reinforcement learning with verifiable rewards, where a group of
    rollouts without variance has no advantage and no gradient (DAPO drops them after the rollout).
    After z such visits a prompt is skipped with probability ``1 - max(p^z, explore)``; p, one for
    prompts that are always right and one for those always wrong, moves by 0.01 within 0.05 to 0.95
    toward a share ``target`` of groups without variance, a third of them easy. Ours: p moves once
    per epoch and not per step. Scores are what ``losses.scores.reward_spread`` returns.

    Args:
        start: in (0, 1), both p at first, in hundredths.
        explore: in (0, 1), the least probability of being visited.
        target: in (0, 1).
        first_epoch: ``"full"``; "even" is refused, for how much later epochs skip is not known.
        warmup: epochs that keep everything; streaks are counted in them.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> ZeroVariance().cuts(50)[:4]
        [0, 32768, 49152, 57344]
    """

    start: float = 0.5
    explore: float = 0.01
    target: float = 0.25
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        for name in ("start", "explore", "target"):
            check_fraction(name, getattr(self, name), zero=False, one=False)
        if self.first_epoch == "even":
            raise ValueError("first_epoch must be 'full' for ZeroVariance, got 'even'")
        self.check_beginning()

    def weighs(self) -> bool:
        """Return False."""
        return False

    def cuts(self, chance: int) -> list[int]:
        """Return the cut of each streak: who draws less of 65536 is skipped.

        Args:
            chance: p in hundredths.

        Returns:
            256 numbers in 0..65535.
        """
        p, least = Fraction(chance, STEPS), decimal_fraction(self.explore)
        power = Fraction(1)
        visited: list[Fraction] = []
        for _ in range(MOST + 1):
            visited.append(max(power, least))
            power = power * p if power > least else power
        return [min(65535, round(65536 * (1 - each))) for each in visited]

    def memory(self, buffer: ScoreBuffer, seed: int) -> StreakMemory:
        """Return streaks of nobody.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: not used.

        Returns:
            What the run keeps.
        """
        return StreakMemory(self, buffer)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return who is visited, or keep all in the first epoch.

        Args:
            buffer: says which kernels.
            progress: the epoch and the seed.
            memory: what ``memory`` returned.

        Returns:
            The decision of the epoch.

        Raises:
            TypeError: the memory is not that of this policy.
        """
        own = StreakMemory.of(memory)
        if progress.epoch == 0:
            return Rule.keep_all(buffer.device)
        easy, hard = (torch.tensor(self.cuts(each)) for each in own.chances)
        table = torch.cat([hard, easy]).to(buffer.device)
        cut: Tensor = table[own.streak.long() + (MOST + 1) * own.easy.long()]
        numbers = torch.arange(buffer.num_samples, device=buffer.device)
        key = {"seed": progress.seed, "epoch": progress.epoch, "stream": STREAM}
        drawn = ops.draw(numbers, backend=buffer.backend, **key) >> 16
        return Selection((drawn >= cut).to(torch.uint8), weight_table())
