# SPDX-License-Identifier: Apache-2.0
"""UCB and EpsilonGreedy: keep the top scores for a number of epochs, explore a little."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prune_engine.bands import (
    STREAM_TIES,
    check_fraction,
    check_positive,
    decimal_fraction,
    weight_table,
)
from prune_engine.epoch.fits import class_problems, int_problems, tensor_problems
from prune_engine.epoch.policy import LATE, PolicyMemory, Progress, RunFacts
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.ops.draw import draw
from prune_engine.ops.rule import AnyRule, Rule, Selection, TopRule
from prune_engine.plain import store_plain
from prune_engine.policies.fixed_counts import select_fixed
from prune_engine.policies.score_rule import ScoreRule

TENSORS = ("ema", "varema", "chosen")
FLT_MAX = 3.4028234663852886e38
JUDGED = FLT_MAX / 2  # the largest float32 below 2^127: ranks above are of what was never seen


class BanditMemory(PolicyMemory):
    """Averages of every sample's scores, and what is kept at present: 9 bytes per sample.

    With decay d and a score s of the epoch: varema <- d varema + (1 - d) (s - ema)^2, then
    ema <- d ema + (1 - d) s (after Raju et al., 2021); the first score is the ema, with varema 0.
    What leaves float32 is its largest number instead, so that later scores still count.
    A sample that was not trained keeps both. Each operation is one IEEE float32 operation, so all
    devices agree.

    Args:
        policy: says when and how to choose.
        buffer: says how many samples there are and where tensors live.
        seed: the run's.
    """

    def __init__(self, policy: Bandit, buffer: ScoreBuffer, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.ema = (buffer.records * 0).float() + math.nan  # nan: never seen
        self.varema = self.ema * 0
        self.chosen = buffer.weight_class.clone()
        self.decided = False

    def begin_run(self, run: RunFacts) -> None:
        """Warn where one choice is all that the run will see.

        Args:
            run: its length.
        """
        period = self.policy.period
        if run.total is not None and period > run.total:
            warnings.warn(
                f"period={period} is longer than the run of {run.total} epochs: what epoch 1 keeps "
                "is all that is trained from then on; take a smaller period",
                stacklevel=2,
            )

    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes: a new sample is tried before it is judged.

        Args:
            num_samples: N from the current epoch on.
        """
        for name, value in (("ema", math.nan), ("varema", math.nan), ("chosen", 1)):
            have = getattr(self, name)
            resized = have.new_full((num_samples,), value)
            both = slice(0, min(num_samples, have.shape[0]))
            resized[both] = have[both]
            setattr(self, name, resized)

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Average in the scores of an epoch, and choose anew where a period begins.

        Args:
            buffer: the scores.
            epoch: the epoch that ended.
        """
        scores, decay = buffer.scores, self.policy.decay
        fresh = (buffer.records >> 32) == epoch + 1
        rest = float(1 - decimal_fraction(decay))
        first = self.ema.isnan()
        residual = scores - self.ema
        # One wild loss must not make an average infinite, which no later loss would change.
        square = (residual * residual).clamp(max=FLT_MAX)
        before = self.varema.nan_to_num(0.0, FLT_MAX)
        varema = (decay * before + rest * square).clamp(max=FLT_MAX)
        ema = (decay * self.ema + rest * scores).clamp(-FLT_MAX, FLT_MAX)
        ema, varema = ema.where(~first, scores), varema.where(~first, 0.0)
        self.ema, self.varema = ema.where(fresh, self.ema), varema.where(fresh, self.varema)
        if epoch % self.policy.period == 0:
            ranked = self._untried_first(buffer, self.policy.ranked(self), epoch + 1)
            self.chosen = self.policy.choose(buffer, ranked, self.seed, epoch + 1)
            self.decided = True

    def _untried_first(self, buffer: ScoreBuffer, ranked: Tensor, epoch: int) -> Tensor:
        """Rank what was never seen above all else, for it must be tried before it can be judged.

        In an order that is drawn: by index, the classes of sorted data would take turns.
        """
        numbers = torch.arange(ranked.shape[0], device=ranked.device)
        turn = draw(
            numbers, seed=self.seed, epoch=epoch, stream=STREAM_TIES, backend=buffer.backend
        )
        untried = ((turn >> 9) + 2**23).float() * 2.0**104  # exact, in 2^127 to 2^128
        return untried.where(ranked.isnan(), ranked.clamp(max=JUDGED))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu, and a number."""
        tensors = {name: getattr(self, name).to("cpu", copy=True) for name in TENSORS}
        return {**tensors, "decided": int(self.decided)}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {name: getattr(self, name) for name in TENSORS})
        problems += int_problems(state, {"decided": 1})
        return problems or class_problems("chosen", state["chosen"], 2)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        for name in TENSORS:
            have = getattr(self, name)
            setattr(self, name, state[name].to(have.device, copy=True))
        self.decided = bool(state["decided"])


@dataclass(frozen=True)
class Bandit(ScoreRule):
    """What ``UCB`` and ``EpsilonGreedy`` share: a top-k every ``period`` epochs, weight 1.

    Args:
        keep: in (0, 1): floor(keep * N) samples are kept.
        period: at least 1; epoch 0 is full, and epochs 1, 1 + period, ... choose anew.
        decay: in [0, 1), of the averages.
    """

    keep: float = 0.7
    period: int = 10
    decay: float = 0.8

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("keep", self.keep, zero=False, one=False)
        check_fraction("decay", self.decay, zero=True, one=False)
        if isinstance(self.period, bool) or not isinstance(self.period, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"period must be an int, got {self.period!r}")
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")
        self.check_beginning()

    def count(self, num_samples: int) -> int:
        """Return how many of N samples are kept.

        Args:
            num_samples: N.

        Returns:
            floor(keep * N), keep read as its decimal.
        """
        return math.floor(decimal_fraction(self.keep) * num_samples)

    @abstractmethod
    def ranked(self, memory: BanditMemory) -> Tensor:
        """Return what is ranked, float32 [N], nan where never seen.

        Args:
            memory: the averages.
        """

    @abstractmethod
    def choose(self, buffer: ScoreBuffer, ranked: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the weight classes from an epoch on, uint8 [N].

        Args:
            buffer: says which kernels.
            ranked: float32 [N], inf where never seen.
            seed: the run's.
            epoch: the first epoch that they are for.
        """

    def memory(self, buffer: ScoreBuffer, seed: int) -> BanditMemory:
        """Return empty averages.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: the run's.

        Returns:
            What the run keeps.
        """
        return BanditMemory(self, buffer, seed)

    def weighs(self) -> bool:
        """Return False."""
        return False

    def even(self, buffer: ScoreBuffer, progress: Progress) -> AnyRule:
        """Return as many samples as later epochs have, at random.

        Args:
            buffer: says how many samples there are and where tensors live.
            progress: where the run is.

        Returns:
            The rule.
        """
        return TopRule(self.count(buffer.num_samples))

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> Rule | Selection:
        """Return what the memory has chosen; everything before it has seen an epoch.

        Args:
            buffer: the scores; not used.
            progress: not used.
            memory: what ``memory`` returned.

        Returns:
            The decision of the epoch.

        Raises:
            TypeError: the memory is not that of this policy.
        """
        own = BanditMemory.of(memory)
        if not own.decided:
            return Rule.keep_all(buffer.device)
        return Selection(own.chosen, weight_table())


@dataclass(frozen=True)
class UCB(Bandit):
    """Keep the k samples with the largest upper confidence bounds, ema + coefficient * varema.

    The method called UCB of Raju et al., "Accelerating Deep Learning with Dynamic Data Pruning"
    (2021): averages with decay 0.8 of the loss and of its squared residual (``BanditMemory``), a
    new top-k every 10 epochs. Hard pruning: no weights, so the gradient is biased. Ties go to the
    smaller index. The default of ``keep`` is this package's.

    Args:
        keep: in (0, 1): floor(keep * N) samples are kept.
        period: at least 1; epoch 0 is full, and epochs 1, 1 + period, ... choose anew.
        decay: in [0, 1), of the averages.
        coefficient: at least 0, of the variance: the confidence of the published replica, 1 where
            it names none.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 has as many samples, at random; the next
            choice is of as many, the never seen first, in an order that is drawn.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> UCB(keep=0.7).count(10)
        7
    """

    coefficient: float = field(default=1.0, metadata=LATE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("coefficient", self.coefficient, zero=True)

    def ranked(self, memory: BanditMemory) -> Tensor:
        """Return ema + coefficient * varema.

        Args:
            memory: the averages.

        Returns:
            float32 [N].
        """
        return memory.ema + self.coefficient * memory.varema

    def choose(self, buffer: ScoreBuffer, ranked: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the top k.

        Args:
            buffer: says which kernels.
            ranked: float32 [N].
            seed: not used.
            epoch: not used.

        Returns:
            uint8 [N], 1 = kept.
        """
        return buffer.top(ranked, self.count(buffer.num_samples))


@dataclass(frozen=True)
class EpsilonGreedy(Bandit):
    """Keep the (1 - epsilon) k samples with the largest averages, and epsilon k at random.

    The epsilon-greedy method of Raju et al., "Accelerating Deep Learning with Dynamic Data
    Pruning" (2021). Of k = floor(keep * N) exactly floor(epsilon * k) are drawn, uniformly among
    all others, anew in each period. Hard pruning: no weights, so the gradient is biased. The
    defaults of ``keep`` and ``epsilon`` are this package's.

    Args:
        keep: in (0, 1).
        period: at least 1; epoch 0 is full, and epochs 1, 1 + period, ... choose anew.
        decay: in [0, 1), of the averages.
        epsilon: in [0, 1].
        first_epoch: ``"full"``, or ``"even"``: epoch 0 has as many samples, at random; the next
            choice is of as many, the never seen first, in an order that is drawn.
        warmup: epochs that keep everything.
        weight_cap: of no effect, for nothing is weighed.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> EpsilonGreedy(keep=0.5, epsilon=0.2).describe()["epsilon"]
        0.2
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("epsilon", self.epsilon, zero=True, one=True)

    def ranked(self, memory: BanditMemory) -> Tensor:
        """Return the averages.

        Args:
            memory: the averages.

        Returns:
            float32 [N].
        """
        return memory.ema

    def choose(self, buffer: ScoreBuffer, ranked: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the top of the ranks and a draw among the others.

        Args:
            buffer: says which kernels.
            ranked: float32 [N].
            seed: of the draw.
            epoch: of the draw.

        Returns:
            uint8 [N], 1 = kept.
        """
        k = self.count(buffer.num_samples)
        drawn = math.floor(decimal_fraction(self.epsilon) * k)
        greedy = buffer.top(ranked, k - drawn)
        others = buffer.num_samples - (k - drawn)
        return select_fixed(buffer, greedy == 0, drawn, others, seed=seed, epoch=epoch)
