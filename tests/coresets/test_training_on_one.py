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


@pytest.mark.parametrize("cap", [1.25, 2.0, 3.7, 50.0])
def test_a_cap_bounds_weights_and_keeps_their_mean_and_what_is_below_in_proportion(cap) -> None:
    given = torch.rand(200, generator=torch.Generator().manual_seed(0)).pow(-1.5).tolist()
    found = coreset(given)
    _, free = found.normalised()
    indices, weights = found.normalised(cap)
    assert free is not None and weights is not None and len(indices) == 200
    assert weights.double().mean().item() == pytest.approx(1)
    assert bool((weights <= torch.tensor(cap)).all())
    below = weights < torch.tensor(cap)
    ratios = weights[below] / free[below]
    assert float(ratios.max()) == pytest.approx(float(ratios.min()))
    if cap < float(free.max()):
        assert bool((free[~below].amin() >= free[below].amax()).item()), "the heaviest are cut"
    else:
        torch.testing.assert_close(weights, free)


def test_a_cap_of_1_leaves_weights_out_and_one_below_is_refused() -> None:
    assert coreset([4.0, 1.0, 1.0]).normalised(1.0)[1] is None
    with pytest.raises(ValueError, match=r"cap must be at least 1, .* got 0\.5"):
        coreset([4.0, 1.0]).normalised(0.5)
    with pytest.raises(ValueError, match="cap must be at least 1"):
        coreset([4.0, 1.0]).normalised(float("nan"))


def test_the_effective_number_is_that_of_equal_weights() -> None:
    assert coreset([3.0] * 7).effective == 7
    assert coreset([5.0, 0.0, 5.0]).effective == 2
    assert coreset([98.0, 1.0, 1.0]).effective == pytest.approx(1.04, abs=0.01)
    assert coreset([]).effective == 0


@pytest.mark.parametrize("method", ["craig", "gradmatch"])
def test_a_weighed_choice_trains(method: str) -> None:
    found = chosen(method, made(60), k=20)
    indices, weights = found.normalised()
    assert weights is not None and weights.mean().item() == pytest.approx(1)
    engine = pe.PruneEngine(60, pe.policies.Subset(indices, weights), num_epochs=2)
    assert sorted(engine.sampler()) == indices.tolist()
    torch.testing.assert_close(engine.plan.weights[indices], weights)
