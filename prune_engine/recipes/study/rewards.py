# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning with verifiable rewards, as small as it can be: images as prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prune_engine import ops
from prune_engine.engine import PruneEngine
from prune_engine.losses.scores import reward_spread
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.optimizers import make_optimizer
from prune_engine.recipes.text import TextData
from prune_engine.recipes.trainer import ImageTrainer, TrainConfig

ROLLOUTS = 8
STREAM = 2**27 + 3  # of draw
BASE, PASSES, BASE_RATE = 0.1, 6, 0.05  # of the base model: share of the images, epochs, rate


def advantages(rewards: Tensor) -> Tensor:
    """Return how much better each answer is than its group.

    ``A_i = (r_i - mean r) / std r`` (GRPO: Shao et al., "DeepSeekMath", arXiv 2402.03300, section
    4.1.2), exactly 0 where all rewards of a prompt are alike. The deviation is that of the group
    itself (over G): public code takes G - 1, one factor for all prompts.

    Args:
        rewards: [B, G] floating, G rollouts of each of B prompts.

    Returns:
        [B, G] of the same dtype.

    Example:
        >>> advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [[1.0, -1.0], [0.0, 0.0]]
    """
    alike = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    gaps = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, correction=0, keepdim=True)
    return torch.where(alike, 0.0, gaps / torch.where(alike, 1.0, deviation))


class RewardTrainer(ImageTrainer):
    """Learn a label from answers that are sampled and found right or wrong, never from itself.

    An image is a prompt, and a draw from the model's softmax is a rollout, of which each prompt
    has 8. A right one is rewarded with 1, a wrong one with 0, and the loss of a prompt is ``-mean_i
    A_i log p(answer_i)``: GRPO at its first step on a batch, where the ratio is 1 and nothing is
    clipped, without a penalty for leaving a reference (as DAPO, arXiv 2503.14476). An answer is one
    token, so that a mean over tokens is none. The score is ``reward_spread``, for every policy.

    As a policy of language begins with a base model, this one begins with a network that has seen a
    tenth of the images with their labels, six times: a beginner forgets a class that it never
    guesses, and chance decides which. Its cost is that of no arm: it is the same for all.

    Rollouts are drawn by seed, epoch, prompt and number of the rollout: arms that train the same
    prompt in the same epoch draw with the same numbers. The test is of the likeliest answer.

    Args:
        data: images.
        config: of the run.
        seed: of the weights and the rollouts.

    Raises:
        ValueError: label smoothing, or another score.
    """

    def __init__(self, data: ImageData, config: TrainConfig, seed: int) -> None:
        if config.label_smoothing:
            raise ValueError(
                f"label_smoothing: expected none for rewards, got {config.label_smoothing}"
            )
        if config.score != "loss":
            raise ValueError(f"score: expected none but that of rewards, got {config.score!r}")
        super().__init__(data, config, seed)
        self.seed = seed
        self._begin()

    def _begin(self) -> None:
        """Make the base model."""
        count, size = round(BASE * self.num_samples), self.config.batch_size
        optimizer = make_optimizer(
            "sgd", self.model.parameters(), lr=BASE_RATE, weight_decay=self.config.weight_decay
        )
        for start in [*range(0, count, size)] * PASSES:
            part = slice(start, min(start + size, count))
            logits = self.logits(self.data.train_images[part]).float()
            loss = F.cross_entropy(logits, self.data.train_labels[part].to(self.device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: what chooses within a batch does not say whose rollouts they are."""
        raise ValueError("rules: a choice within batches has no rewards, take one over epochs")

    def observe(
        self, engine: PruneEngine, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll out, and record the spread of each prompt's rewards."""
        chances = torch.log_softmax(self.logits(self.prepare(inputs)).float(), dim=1)
        answers = self.rollouts(chances.detach(), indices, engine.epoch)
        rewards = (answers == targets.to(self.device)[:, None]).float()
        losses = -(advantages(rewards) * chances.gather(1, answers)).mean(dim=1)
        score = reward_spread(rewards)
        loss = engine.observe(losses, indices, score=score, reduction=self.reduction)
        return loss, losses.detach()

    def rollouts(self, chances: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Draw each prompt's answers.

        Args:
            chances: [B, C], the logarithms of the model's softmax.
            indices: [B] int64, which prompts.
            epoch: of the draw.

        Returns:
            int64 [B, 8]: the first class up to which the chances add up to a uniform number.
        """
        numbers = indices[:, None] * ROLLOUTS + torch.arange(ROLLOUTS, device=indices.device)
        drawn = ops.draw(numbers.flatten(), seed=self.seed, epoch=epoch, stream=STREAM)
        uniform = (drawn.view(numbers.shape).double() + 0.5) / 2**32
        sums = chances.double().exp().cumsum(dim=1)
        return torch.searchsorted(sums, uniform * sums[:, -1:])


def make_rewarded(data: ImageData | TextData, config: TrainConfig, seed: int) -> RewardTrainer:
    """Return the trainer of a regime of rewards.

    Args:
        data: images.
        config: of the run.
        seed: of the weights and the rollouts.

    Returns:
        A trainer.

    Raises:
        TypeError: the data are no images.
    """
    if not isinstance(data, ImageData):
        raise TypeError(f"data: expected images for rewards, got {type(data).__name__}")
    return RewardTrainer(data, config, seed)
