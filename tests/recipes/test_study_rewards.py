# SPDX-License-Identifier: Apache-2.0
"""A regime of rewards learns from answers found right or wrong, and a subset is chosen anew."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest
import torch

import prune_engine as pe
from prune_engine.policies import Reselect, ZeroVariance
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.study import anew, rewards
from prune_engine.recipes.study.rules import RULES, Scene
from prune_engine.recipes.text import TextData
from prune_engine.recipes.train import Arm, train_arm
from prune_engine.recipes.trainer import TrainConfig

N, CLASSES, SEED, EPOCH = 96, 4, 5, 3
CONFIG = TrainConfig("mlp", epochs=8, batch_size=16, lr=0.02)

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(count: int = N) -> ImageData:
    """Noise in which a class is a bright row."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    pixels = torch.randint(0, 90, (count, 1, 8, 8), generator=generator)
    pixels[torch.arange(count), 0, labels] += 120
    data = pixels.to(torch.uint8)
    moments = torch.tensor([80.0]), torch.tensor([60.0])
    return ImageData("blobs", data, labels, data[:32], labels[:32], CLASSES, *moments)


def restated(logits: np.ndarray, labels: np.ndarray, indices: list[int]) -> tuple[Any, ...]:
    """Rewards, losses and their gradient for the logits, in NumPy and the oracle's draws."""
    shifted = logits - logits.max(1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    won, losses, slopes = [], [], []
    for row, (i, label) in enumerate(zip(indices, labels, strict=True)):
        answers = []
        for number in range(8 * i, 8 * i + 8):
            counter = [number // 4, 0, 16 * rewards.STREAM + 15, EPOCH]
            drawn = oracle.philox(counter, oracle.halves(SEED))[number % 4]
            answers.append(int(np.argmax(np.cumsum(p[row]) >= (drawn + 0.5) / 2**32)))
        right = np.array([float(answer == label) for answer in answers])
        gain = np.zeros(8) if right.std() == 0 else (right - right.mean()) / right.std()
        won.append(right)
        losses.append(-sum(a * np.log(p[row, c]) for a, c in zip(gain, answers, strict=True)) / 8)
        one_hot = np.eye(CLASSES)[answers]
        slopes.append(-(gain[:, None] * (one_hot - p[row])).mean(0))
    return np.array(won), np.array(losses), np.array(slopes)


def observed(trainer: rewards.RewardTrainer, indices: list[int]) -> tuple[Any, ...]:
    """Train one batch as if in epoch 3; return the engine, its loss and the losses."""
    engine = pe.PruneEngine(N, pe.KeepAll(), num_epochs=EPOCH + 2, coverage="ignore")
    for _ in range(EPOCH):
        engine.end_epoch()
    data, rows = trainer.data, torch.tensor(indices)
    return engine, *trainer.observe(engine, data.train_images[rows], data.train_labels[rows], rows)


def test_losses_gradients_and_scores_are_the_restatements() -> None:
    trainer = rewards.RewardTrainer(blobs(), CONFIG, SEED)
    for parameter in trainer.model.parameters():
        parameter.data.mul_(1.3)  # sure enough that many groups are alike, not all
    indices = [40, 3, 77, *range(10, 30)]
    kept: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda module, given, out: kept.append(out))
    engine, loss, losses = observed(trainer, indices)
    (logits,) = kept
    logits.retain_grad()
    loss.backward()
    labels = trainer.data.train_labels[torch.tensor(indices)].numpy()
    won, want, slopes = restated(logits.detach().double().numpy(), labels, indices)
    assert losses.numpy() == pytest.approx(want, abs=1e-6)
    assert loss.item() == pytest.approx(want.mean(), abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.numpy() * len(indices) == pytest.approx(slopes, abs=1e-6)
    alike = won.std(1) == 0
    assert 0 < alike.sum() < len(indices), "control: some prompts have a gradient"
    zero = (logits.grad == 0).all(1).numpy()
    assert (zero == alike).all(), "exactly none where all rewards are alike"
    spread = np.where(alike, np.where(won[:, 0] == 1, 0, -1), won.std(1))
    scores = engine.scores()
    assert scores[torch.tensor(indices)].numpy() == pytest.approx(spread)
    assert int(scores.isnan().sum()) == N - len(indices)


def test_what_is_drawn_belongs_to_the_prompt_the_epoch_and_the_seed() -> None:
    trainer = rewards.RewardTrainer(blobs(), CONFIG, SEED)
    chances = torch.log_softmax(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), 1)
    many = trainer.rollouts(chances.expand(N, -1), torch.arange(N), EPOCH)
    assert many.shape == (N, rewards.ROLLOUTS)
    alone = torch.tensor([70, 2])
    assert torch.equal(trainer.rollouts(chances.expand(2, -1), alone, EPOCH), many[alone])
    other = rewards.RewardTrainer(blobs(), CONFIG, SEED + 1)
    for again in (
        trainer.rollouts(chances.expand(N, -1), torch.arange(N), EPOCH + 1),
        other.rollouts(chances.expand(N, -1), torch.arange(N), EPOCH),
    ):
        assert not torch.equal(again, many)
    numbers = torch.arange(4000)
    found = torch.bincount(trainer.rollouts(chances.expand(4000, -1), numbers, 0).flatten())
    wanted = 32_000 * chances.exp()[0]
    assert float(((found - wanted).square() / wanted).sum()) < 21, "chi-square of 3, p = 1e-4"


def trained(policy: Any, seed: int = 0) -> tuple[list[Any], Any]:
    """Train by rewards; return the rows without their clocks, and the engine."""
    engines: list[pe.PruneEngine] = []
    result = train_arm(
        blobs(),
        CONFIG,
        Arm("arm", policy),
        seed,
        on_end=lambda trainer, engine: engines.append(engine),
        make=rewards.make_rewarded,
    )
    names = ("train_loss", "test_accuracy", "served", "forwards", "planned")
    return [[row[name] for name in names] for row in result.rows], engines[0]


def test_rewards_alone_teach_and_groups_without_variance_are_skipped() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        rows, engine = trained(ZeroVariance())
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert trained(ZeroVariance())[0] == rows, "the global generator has no say"
    assert trained(ZeroVariance(), seed=1)[0] != rows
    scores = engine.scores()
    assert set(scores[scores <= 0].tolist()) <= {0.0, -1.0}
    full, _ = trained(pe.KeepAll())
    base = rewards.RewardTrainer(blobs(), CONFIG, 0).evaluate()
    assert full[-1][1] >= base + 0.15 > 0.5, "it has learned more than its base model knew"
    assert full[0][0] == rows[0][0], "the same rollouts, as long as the same is trained"
    skipped = sum(row[2] for row in full) - sum(row[2] for row in rows)
    assert skipped > N and full[-1][2] == N, "control: what keeps all trains all"


def test_rewards_refuse_what_has_none() -> None:
    with pytest.raises(ValueError, match="label_smoothing: expected none for rewards"):
        rewards.RewardTrainer(blobs(), replace(CONFIG, label_smoothing=0.1), 0)
    with pytest.raises(ValueError, match="score: expected none but that of rewards, got 'el2n'"):
        rewards.RewardTrainer(blobs(), replace(CONFIG, score="el2n"), 0)
    data = blobs()
    trainer = rewards.RewardTrainer(data, CONFIG, 0)
    with pytest.raises(ValueError, match="a choice within batches has no rewards"):
        trainer.losses(data.train_images[:2], data.train_labels[:2])
    rows = torch.ones(32, 13, dtype=torch.uint8)
    with pytest.raises(TypeError, match="expected images for rewards, got TextData"):
        rewards.make_rewarded(TextData("tinyshakespeare", rows, rows), CONFIG, 0)


# --- subsets that are chosen anew ----------------------------------------------------------------


def kept_by(policy: Reselect, watch: Any) -> tuple[list[tuple[int, ...]], list[Any]]:
    """Train; return who was kept, epoch by epoch, and the rows."""
    kept: list[tuple[int, ...]] = []
    engines: list[pe.PruneEngine] = []

    def attach(trainer: Any, engine: pe.PruneEngine) -> None:
        watch(trainer, engine)
        engines.append(engine)
        kept.append(tuple(engine.plan.kept.tolist()))

    arm = Arm("arm", policy, attach=attach)
    result = train_arm(
        blobs(),
        replace(CONFIG, lr=0.05),
        arm,
        0,
        on_row=lambda found: kept.append(tuple(engines[0].plan.kept.tolist())),
    )
    return kept[: CONFIG.epochs], result.rows


@pytest.mark.parametrize("method", ["el2n", "craig", "graphcut"])
def test_a_subset_is_chosen_anew_by_the_model_of_the_moment(method: str) -> None:
    kept, rows = kept_by(anew.policy(method, 0.25), anew.watch)
    assert [len(each) for each in kept] == [N] + [N // 4] * 7
    assert len({*kept[1:4]}) == len({*kept[4:7]}) == 1
    assert len({kept[1], kept[4], kept[7]}) == 3, "after every third epoch another"
    looks = [row["forwards"] - row["served"] for row in rows]
    assert looks == [N, 0, 0, N, 0, 0, N, 0], "and each time all are passed forward"
    once, rows = kept_by(anew.policy(method, 0.25, every=100), anew.watch)
    assert len({*once[1:]}) == 1 and once[1] == kept[1], "control: one that does not"
    assert sum(row["forwards"] - row["served"] for row in rows) == N


def test_the_rule_of_a_study_saves_what_it_is_told() -> None:
    data = blobs()
    scene = Scene(data, data, 0.5, CONFIG.epochs)
    for name in ("reselect_el2n", "reselect_craig", "reselect_graphcut"):
        rule = RULES[name]
        assert rule.attach is not None
        kept, _ = kept_by(rule.make(scene), partial(rule.attach, scene))
        planned = sum(len(each) for each in kept) / (N * CONFIG.epochs)
        assert planned == pytest.approx(0.5, abs=0.01)


def test_two_methods_are_two_policies() -> None:
    one, two = (pe.PruneEngine(N, anew.policy(m, 0.5), num_epochs=3) for m in ("el2n", "craig"))
    with pytest.raises(pe.StateMismatchError, match="policy"):
        two.load_state_dict(one.state_dict())
    again = pe.PruneEngine(N, anew.policy("el2n", 0.5), num_epochs=3)
    again.load_state_dict(one.state_dict())
