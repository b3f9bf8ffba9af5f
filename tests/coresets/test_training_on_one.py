# SPDX-License-Identifier: Apache-2.0
"""What a method chose is what the engine trains on, with its weights."""

from __future__ import annotations

import pytest
import torch
from _data import chosen, made

import prune_engine as pe
from prune_engine.coresets import Coreset


def coreset(weights: list[float]) -> Coreset:
    positions = torch.arange(len(weights)) * 2
    return Coreset(positions, torch.tensor(weights), positions)


def test_weights_multiply_the_losses_and_have_a_mean_of_1() -> None:
    subset = pe.policies.Subset(*coreset([4.0, 1.0, 1.0]).normalised())
    engine = pe.PruneEngine(8, subset, num_epochs=1)
    assert sorted(engine.sampler()) == [0, 2, 4]
    rescaled = engine.observe(torch.ones(3), torch.tensor([4, 0, 2]), reduction="none")
    assert rescaled.tolist() == [0.5, 2.0, 0.5]


def test_a_weight_of_0_is_left_out_and_equal_ones_are_none() -> None:
    indices, weights = coreset([2.0, 0.0, 2.0]).normalised()
    assert indices.tolist() == [0, 4] and weights is None
    with pytest.raises(ValueError, match="must not all be 0"):
        coreset([0.0, 0.0]).normalised()
    nothing, none = coreset([]).normalised()
    assert len(nothing) == 0 and none is None


@pytest.mark.parametrize("method", ["craig", "gradmatch"])
def test_a_weighed_choice_trains(method: str) -> None:
    found = chosen(method, made(60), k=20)
    indices, weights = found.normalised()
    assert weights is not None and weights.mean().item() == pytest.approx(1)
    engine = pe.PruneEngine(60, pe.policies.Subset(indices, weights), num_epochs=2)
    assert sorted(engine.sampler()) == indices.tolist()
    torch.testing.assert_close(engine.plan.weights[indices], weights)
