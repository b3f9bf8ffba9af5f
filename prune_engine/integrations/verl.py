# SPDX-License-Identifier: Apache-2.0
"""A prompt sampler of verl's form: ``update(batch)`` after each step, and a state that resumes.

verl and OpenRLHF's trainers draw prompts from a sampler and tell it of each step's batch. This one
has the form of verl's ``AbstractCurriculumSampler``, over ``prune_engine.host``; it imports no verl
and no torch.

Example:
    >>> sampler = PromptSampler(range(6), {"train_batch_size": 2}, num_epochs=2, prune_ratio=0.5)
    >>> len(sampler), sorted(sampler)
    (6, [0, 1, 2, 3, 4, 5])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_engine import host
from prune_engine.bands import check_fraction, decimal_fraction
from prune_engine.errors import PruneEngineError, StateMismatchError

__all__ = ["PromptSampler", "reward_spread"]


def reward_spread(batch: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Score each prompt by the standard deviation of its rollouts' rewards.

    Where all rollouts earn the same, advantages that are relative to the group are 0 and there is
    nothing to learn (GRPO: Shao et al., "DeepSeekMath", 2024): such a prompt is easy, or hopeless.

    Args:
        batch: with ``non_tensor_batch["index"]`` and ``batch["token_level_scores"]`` [B, T], as
            verl's ``DataProto`` has them.

    Returns:
        Prompts, each once, and their scores.

    Example:
        >>> from types import SimpleNamespace
        >>> rewards = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
        >>> index = {"index": np.array([4, 4, 7])}
        >>> batch = SimpleNamespace(batch={"token_level_scores": rewards}, non_tensor_batch=index)
        >>> prompts, scores = reward_spread(batch)
        >>> prompts.tolist(), scores.tolist()
        ([4, 7], [0.5, 0.0])
    """
    rewards = np.asarray(batch.batch["token_level_scores"], dtype=np.float64).sum(axis=-1)
    index = np.asarray(batch.non_tensor_batch["index"], dtype=np.int64)
    prompts, group = np.unique(index, return_inverse=True)
    count = np.bincount(group)
    mean = np.bincount(group, rewards) / count
    square = np.bincount(group, (rewards - mean[group]) ** 2) / count
    return prompts, np.sqrt(square).astype(np.float32)


class PromptSampler:
    """Serve prompts epoch by epoch, fewer of those that score below the mean.

    InfoBatch's rule over the scores that ``update`` brings (Qin et al., ICLR 2024), annealed at the
    end of the run; kept prompts are not weighted, for the trainer has no place for it. Without a
    batch to say what was trained, the state is where the last ``update`` was.

    A class that verl accepts is ``class Sampler(PromptSampler, AbstractCurriculumSampler)``.

    Args:
        data_source: sized.
        data_config: has ``train_batch_size``, and may have ``seed`` and ``prune``, a mapping of
            the three numbers below, for verl passes nothing else.
        num_epochs: of the run, for annealing.
        prune_ratio: r, in [0, 1).
        delta: share of the epochs before annealing, in (0, 1].
        score: from a batch to prompts and scores, low where there is little to learn.

    Raises:
        TypeError: ``data_source`` has no length.
        ValueError: a number is out of range.

    Example:
        >>> sampler = PromptSampler(range(6), {"train_batch_size": 3}, num_epochs=2)
        >>> batch = list(sampler)[:3]
        >>> sampler.score = lambda prompts: (prompts, [0.0] * len(prompts))
        >>> sampler.update(batch)
        >>> sampler.state_dict()["cursor"], len(sampler)
        (3, 3)
    """

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self,
        data_source: Sized,
        data_config: Mapping[str, Any],
        *,
        num_epochs: int | None = None,
        prune_ratio: float = 0.5,
        delta: float = 0.875,
        score: Callable[[Any], tuple[Any, Any]] = reward_spread,
    ) -> None:
        if not hasattr(data_source, "__len__"):
            raise TypeError(f"data_source must have a length, got {type(data_source).__name__}")
        given: dict[str, Any] = {"num_epochs": num_epochs, "prune_ratio": prune_ratio}
        given["delta"] = delta
        given |= dict(data_config.get("prune") or {})
        num_epochs, prune_ratio, delta = given["num_epochs"], given["prune_ratio"], given["delta"]
        if isinstance(num_epochs, bool) or not isinstance(num_epochs, int) or num_epochs < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"num_epochs must be an int of at least 1, got {num_epochs!r}")
        check_fraction("prune_ratio", prune_ratio, zero=True, one=False)
        check_fraction("delta", delta, zero=False, one=True)
        self.num_samples = len(data_source)
        self.batch_size = int(data_config["train_batch_size"])
        if not 1 <= self.batch_size <= self.num_samples:
            raise ValueError(
                f"train_batch_size must be in 1..{self.num_samples}, got {self.batch_size}"
            )
        self.seed = int(data_config.get("seed") or 0)
        self.num_epochs, self.prune_ratio = num_epochs, float(prune_ratio)
        self.delta, self.score = float(delta), score
        self.epoch = self.cursor = 0
        self.scores = np.full(self.num_samples, np.nan, np.float32)
        self._order: NDArray[np.int32] = self._plan()

    def _plan(self) -> NDArray[np.int32]:
        """Return the epoch's prompts in their order: whole batches, as the trainer drops a rest."""
        annealed = self.epoch >= decimal_fraction(self.delta) * self.num_epochs
        ratio = 0.0 if annealed or self.epoch == 0 else self.prune_ratio
        made = host.plan(self.scores, prune_ratio=ratio, seed=self.seed, epoch=self.epoch)
        if len(made) < self.batch_size:
            raise PruneEngineError(
                f"epoch {self.epoch} keeps {len(made)} prompts, fewer than a batch of "
                f"{self.batch_size}: take a smaller prune_ratio"
            )
        return made.order(range(len(made) // self.batch_size * self.batch_size))

    def __len__(self) -> int:
        """Return how many prompts of the epoch are left."""
        return len(self._order) - self.cursor

    def __iter__(self) -> Iterator[int]:
        """Yield what of the epoch has not been trained."""
        yield from self._order[self.cursor :].tolist()

    def update(self, batch: Any) -> None:
        """Take in what a trained batch's prompts scored; the trainer calls it after each step.

        After an epoch's last batch the next epoch is decided.

        Args:
            batch: whatever ``score`` reads.

        Raises:
            PruneEngineError: the batch is not the next one of the order, or the next epoch keeps
                fewer prompts than a batch.
            ValueError: a score is infinite.
        """
        prompts, scores = self.score(batch)
        prompts, scores = np.asarray(prompts, np.int64), np.asarray(scores, np.float32)
        if np.isinf(scores).any():
            raise ValueError("scores must be finite, or nan where a prompt has none")
        due = self._order[self.cursor : self.cursor + self.batch_size]
        if not np.array_equal(np.sort(prompts), np.sort(due)):
            raise PruneEngineError(
                f"the batch has {len(prompts)} prompts that are not the next {len(due)} of epoch "
                f"{self.epoch}: use this sampler with one loader of {self.batch_size} prompts a "
                "batch, without workers that read ahead, and tell it of each step"
            )
        known = ~np.isnan(scores)
        self.scores[prompts[known]] = scores[known]
        self.cursor += len(due)
        if self.cursor == len(self._order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self._order = self._plan()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a restart needs, as plain data: where training was."""
        return {
            "version": 1,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_epochs": self.num_epochs,
            "prune_ratio": self.prune_ratio,
            "delta": self.delta,
            "epoch": self.epoch,
            "cursor": self.cursor,
            "scores": self.scores.tolist(),
            "order": self._order.tolist(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a state was.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            StateMismatchError: it is of another run; nothing has changed then.
        """
        mine = self.state_dict()
        moving = ("epoch", "cursor", "scores", "order")
        differences = [
            f"{name} is {state_dict.get(name)!r} there and {value!r} here"
            for name, value in mine.items()
            if name not in moving and state_dict.get(name) != value
        ]
        lacking = [name for name in moving if name not in state_dict]
        if differences or lacking:
            lines = [*differences, *(f"{name} is missing" for name in lacking)]
            raise StateMismatchError("the state is of another run: " + "; ".join(lines))
        scores = np.asarray(state_dict["scores"], np.float32)
        order = np.asarray(state_dict["order"], np.int32)
        cursor, epoch = int(state_dict["cursor"]), int(state_dict["epoch"])
        inside = len(order) == 0 or (order.min() >= 0 and order.max() < self.num_samples)
        if scores.shape != (self.num_samples,) or not inside or not 0 <= cursor <= len(order):
            raise StateMismatchError("the state does not fit this data source: it was edited")
        self.scores, self._order, self.cursor, self.epoch = scores, order, cursor, epoch
