# SPDX-License-Identifier: Apache-2.0
"""A chosen subset as a policy: these samples, these weights, every epoch."""

from __future__ import annotations

import pytest
import torch

import prune_engine as pe
from prune_engine.coresets import Coreset, FixedSubset


def coreset(indices: list[int], weights: list[float]) -> Coreset:
    positions = torch.tensor(indices)
    return Coreset(positions, torch.tensor(weights), positions)


def test_every_epoch_has_these_samples_in_another_order() -> None:
    policy = FixedSubset(tuple(range(0, 40, 2)))
    engine = pe.PruneEngine(40, policy, num_epochs=3)
    orders = []
    for _ in engine.epochs():
        order = list(engine.sampler())
        engine.observe(torch.ones(len(order)), torch.tensor(order))
        orders.append(order)
    assert all(sorted(order) == list(range(0, 40, 2)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_weights_multiply_the_losses_and_have_the_mean_of_1() -> None:
    policy = FixedSubset.of(coreset([1, 3, 6], [4.0, 1.0, 1.0]))
    engine = pe.PruneEngine(8, policy, num_epochs=1)
    rescaled = engine.observe(torch.ones(3), torch.tensor([6, 1, 3]), reduction="none")
    assert rescaled.tolist() == [0.5, 2.0, 0.5]
    assert engine.plan.weights.sum().item() == 3.0


def test_a_weight_of_0_is_left_out_and_equal_ones_are_1() -> None:
    assert FixedSubset.of(coreset([1, 3, 6], [2.0, 0.0, 2.0])) == FixedSubset((1, 6))
    with pytest.raises(ValueError, match="must not all be 0"):
        FixedSubset.of(coreset([1, 3], [0.0, 0.0]))


def test_many_weights_are_rounded_to_what_a_table_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (3 * torch.randn(2000, generator=generator)).exp()
    made = FixedSubset.of(Coreset(torch.arange(2000), weights, torch.arange(2000)))
    ratio = torch.tensor(made.weights) / (weights / weights.mean())
    assert len(set(made.weights)) <= 254
    step = (weights.log().max() - weights.log().min()) / 253
    assert bool((ratio.log().abs() <= step / 2 + 1e-4).all())
    pe.PruneEngine(2000, made, num_epochs=1)
    few = FixedSubset.of(Coreset(torch.arange(3), torch.tensor([1.0, 2.0, 3.0]), torch.arange(3)))
    assert few.weights == (0.5, 1.0, 1.5), "not rounded where they fit"


def test_a_state_resumes() -> None:
    policy = FixedSubset.of(coreset([1, 3, 6], [4.0, 1.0, 1.0]))
    engine = pe.PruneEngine(8, policy, num_epochs=2)
    state = engine.state_dict()
    again = pe.PruneEngine(8, policy, num_epochs=2)
    again.load_state_dict(state)
    assert list(again.sampler()) == list(engine.sampler())
    with pytest.raises(pe.StateMismatchError):
        pe.PruneEngine(8, FixedSubset((1, 3)), num_epochs=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("indices", "weights"),
    [
        ((3, 1), ()),
        ((1, 1), ()),
        ((-1, 1), ()),
        ((1, 3), (1.0,)),
        ((1, 3), (1.0, 0.0)),
        ((1, 3), (1.0, float("nan"))),
        (tuple(range(300)), tuple(float(w) for w in range(2, 302))),
    ],
)
def test_what_does_not_fit_is_refused(indices, weights) -> None:
    with pytest.raises(ValueError, match="must"):
        FixedSubset(indices, weights)


def test_an_index_beyond_the_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"indices must be in 0\.\.7, got 8"):
        pe.PruneEngine(8, FixedSubset((1, 8)), num_epochs=1)
