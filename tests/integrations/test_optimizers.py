# SPDX-License-Identifier: Apache-2.0
"""LARS and LAMB by pytorch-optimizer itself: their formulas, and whole trainings of the recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_optimizer  # noqa: F401 - so that these are left out where it cannot be installed
import torch
from torch import nn

import prune_engine as pe
from prune_engine.recipes import data
from prune_engine.recipes.optimizers import make_optimizer
from prune_engine.recipes.train import Arm, ArmResult, Keep, train_arm
from prune_engine.recipes.trainer import TrainConfig

TINY = TrainConfig(model="mlp", epochs=5, batch_size=16, lr=5.2, optimizer="lars")
LR, DECAY = 0.5, 0.01


def stepped(name: str, steps: int = 3) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a matrix after some steps, and its gradients."""
    weight = nn.Parameter(torch.arange(1, 7, dtype=torch.float32).view(2, 3) / 7)
    optimizer = make_optimizer(name, [weight], lr=LR, weight_decay=DECAY)
    gradients = []
    for step in range(steps):
        weight.grad = (weight.detach() - step).cos()
        gradients.append(weight.grad.numpy().copy())
        optimizer.step()
    return weight.detach().numpy(), gradients


def start() -> np.ndarray:
    return np.arange(1, 7, dtype=np.float64).reshape(2, 3) / 7


def test_lars_takes_steps_in_proportion_to_the_weights_norm():
    found, gradients = stepped("lars")
    weight, momentum = start(), np.zeros((2, 3))
    for gradient in gradients:
        size = np.linalg.norm(weight)
        trust = 0.001 * size / (np.linalg.norm(gradient) + DECAY * size)
        momentum = 0.9 * momentum + trust * (gradient + DECAY * weight)
        weight = weight - LR * momentum
    np.testing.assert_allclose(found, weight, rtol=1e-5)
    assert not np.allclose(stepped("sgd")[0], weight, rtol=1e-3), "control: plain momentum"


def test_lamb_takes_adams_direction_at_the_weights_norm():
    found, gradients = stepped("lamb")
    weight, first, second = start(), np.zeros((2, 3)), np.zeros((2, 3))
    for gradient in gradients:
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / (np.sqrt(second) + 1e-6) + DECAY * weight
        weight = weight - LR * np.linalg.norm(weight) / np.linalg.norm(update) * update
    np.testing.assert_allclose(found, weight, rtol=1e-4)
    assert not np.allclose(stepped("adamw")[0], weight, rtol=1e-2), "control: Adam's own length"


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("name", "lr"), [("lars", 5.2), ("lamb", 0.02)])
def test_a_training_learns_and_goes_on_after_a_stop(name: str, lr: float, tmp_path: Path) -> None:
    digits = data.load("digits", limit=600)
    config = replace(TINY, optimizer=name, lr=lr)
    arm = Arm("infobatch", pe.InfoBatch())
    whole = train_arm(digits, config, arm, 0)
    assert whole.rows[-1]["test_accuracy"] > 0.8
    kept = Keep(checkpoint=tmp_path / "state.pt")

    def stop(result: ArmResult) -> None:
        if len(result.rows) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train_arm(digits, config, arm, 0, stop, keep=kept)
    resumed = train_arm(digits, config, arm, 0, keep=kept)
    losses = [row["train_loss"] for row in resumed.rows]
    assert losses == [row["train_loss"] for row in whole.rows]
    other = train_arm(digits, replace(config, optimizer="sgd", lr=0.05), arm, 0)
    assert losses != [row["train_loss"] for row in other.rows], "control: the optimiser matters"
