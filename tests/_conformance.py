# SPDX-License-Identifier: Apache-2.0
"""What every policy must do, the package's and a stranger's alike: tests to inherit.

A module with a fixture ``policy`` over its policies, and a subclass of ``Conformance``, has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, batches, epochs, figures, losses_at, observe, plain, serve, through_disk

import prune_engine as pe
from prune_engine.epoch.plan import make_plan
from prune_engine.policies import RunFacts

EPOCHS = 10


def engine_of(policy: pe.policies.Policy, n: int = N, **options) -> pe.PruneEngine:
    return pe.PruneEngine(n, policy, num_epochs=EPOCHS, **options)


def prunes(policy: pe.policies.Policy) -> bool:
    return not isinstance(policy, pe.KeepAll)


def hard(policy: pe.policies.Policy) -> bool:
    """Whether a policy drops without weights to make up for it: its gradient is biased."""
    if isinstance(policy, pe.BPAS | pe.RandomBatches | pe.policies.RS2 | pe.policies.RePB):
        return True
    if isinstance(policy, pe.policies.ScoreRule):
        return not policy.weighs()
    return not getattr(policy, "rescale", True)


def stays(policy: pe.policies.Policy) -> bool:
    """Whether the next epoch has the same subset, for no draw or period of its own."""
    return getattr(policy, "static", False) or getattr(policy, "period", 1) > 2


def rule_of(
    policy: pe.policies.Policy,
    buffer: pe.epoch.ScoreBuffer,
    progress: pe.policies.Progress,
    epochs: int = 1,
):
    """Return a policy's rule after some epochs, in which the scores stayed as they are."""
    memory = policy.memory(buffer, progress.seed)
    if memory is None:
        return policy.rule(buffer, progress)
    memory.begin_run(RunFacts(progress.total))
    for epoch in range(epochs):
        memory.end_epoch(buffer, epoch)
    return policy.rule(buffer, progress, memory)


def decision(rule: pe.policies.Rule | pe.policies.Selection) -> Any:
    """Return a rule as plain data."""
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    arrangement = fields.pop("arrangement", None)
    return plain({**fields, "samples": None if arrangement is None else arrangement.samples()})


def weight_z(policy: pe.policies.Policy, n: int = 400, draws: int = 400) -> float:
    """Return how far the samples' mean weights are from 1, as a normal deviate."""
    buffer = pe.epoch.ScoreBuffer(n)
    buffer.observe(losses_at(range(n)), torch.arange(n))
    total, squares = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    for epoch in range(draws):
        rule = rule_of(policy, buffer, pe.policies.Progress(epoch or 1, 1, EPOCHS))
        weights = make_plan(buffer, rule, seed=0, epoch=epoch, ahead=True).weights.double()
        total += weights
        squares += weights.square()
    mean = total / draws
    variance = squares / draws - mean.square()
    if not bool((variance > 0).any()):  # what never changes is 1 or out by any deviate
        return 0.0 if bool((mean == 1).all()) else math.inf
    drawn = variance > 0
    # The mean over the drawn samples of their squared deviates is 1, give or take.
    deviates = (mean[drawn] - 1).square() / (variance[drawn] / draws)
    count = int(drawn.sum())
    biased = math.inf if bool((mean[~drawn] != 1).any()) else 0.0
    return biased + (float(deviates.sum()) - count) / math.sqrt(2 * count)


class Conformance:
    """The tests; each takes a policy, one needs all others too."""

    POLICIES: ClassVar[Sequence[pe.policies.Policy]]

    def test_is_a_frozen_value(self, policy):
        assert policy == dataclasses.replace(policy)
        assert hash(policy) == hash(dataclasses.replace(policy))
        for field in dataclasses.fields(policy):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(policy, field.name, 0.1)

    def test_describes_itself_in_plain_data(self, policy):
        described = policy.describe()
        assert through_disk(described) == described
        parameters = {name: value for name, value in described.items() if name != "policy"}
        assert described["policy"].split(":")[-1] == type(policy).__name__
        assert (":" in described["policy"]) != type(policy).__module__.startswith("prune_engine.")
        assert type(policy)(**parameters) == policy

    def test_is_deterministic_on_every_backend(self, policy):
        runs = [
            engine_of(policy, backend=backend, seed=3) for backend in ("cpu", "cpu", "reference")
        ]
        orders = [epochs(engine, 4) for engine in runs]
        assert orders[0] == orders[1] == orders[2]
        other = epochs(engine_of(policy, seed=4), 4)
        assert orders[0] != other, "control: the seed decides"

    def test_two_epochs_differ(self, policy):
        orders = epochs(engine_of(policy), 5)
        assert orders[1] != orders[2], "another order"
        if prunes(policy) and not isinstance(policy, pe.UCB):  # whose winners may win again
            late = policy.fixed_batch is not None or isinstance(policy, pe.policies.IES)
            later = 4 if late else 2  # batches, and what has three losses, go after the second
            assert (set(orders[1]) != set(orders[later])) == (not stays(policy)), "another subset"

    def test_the_rule_asked_again_says_the_same_and_changes_nothing(self, policy):
        engine = engine_of(policy)
        epochs(engine, 4)
        memory, before = engine._run.memory, plain(engine.state_dict())
        arguments = (
            engine.buffer,
            pe.policies.Progress(4, 4, EPOCHS),
            *([memory] if memory else []),
        )
        first, again = (decision(policy.rule(*arguments)) for _ in range(2))
        assert first == again
        assert plain(engine.state_dict()) == before
        serve(engine)  # control: what an epoch changes is seen
        assert plain(engine.state_dict()) != before

    def test_thresholds_and_weights_do_not_move_the_scores(self, policy):
        engine = engine_of(policy)
        epochs(engine, 2)
        before = engine.buffer.records.clone()
        rule_of(policy, engine.buffer, pe.policies.Progress(2, 2, EPOCHS), 2)
        assert_bitwise(engine.buffer.records, before, "records")

    def test_a_sample_is_served_iff_it_has_a_weight(self, policy):
        engine = engine_of(policy)
        epochs(engine, 4)
        weights = engine.plan.weights
        assert torch.nonzero(weights)[:, 0].tolist() == sorted(serve(engine))
        assert bool((weights == 0).any()) == prunes(policy)

    @pytest.mark.parametrize("at", [0, 30, 140])
    def test_state_round_trip_resumes_bit_for_bit(self, policy, at):
        whole, stopped, resumed = (engine_of(policy, seed=5) for _ in range(3))
        want = [index for order in epochs(whole, EPOCHS) for index in order]
        got: list[int] = []
        while len(got) < at:
            for batch in batches(iter(list(stopped.sampler())[: at - len(got)]), 10):
                observe(stopped, batch)
                got += batch
            if not len(stopped.sampler()) or stopped.cursor == stopped.plan.num_kept:
                stopped.end_epoch()
        resumed.load_state_dict(through_disk(stopped.state_dict()))
        for _ in resumed.epochs():
            got += serve(resumed)
        assert got == want
        assert figures(resumed) == figures(whole)
        assert_bitwise(resumed.buffer.records, whole.buffer.records, "records")

    def test_a_state_of_any_other_policy_is_refused(self, policy):
        state = engine_of(policy).state_dict()
        for other in self.POLICIES:
            if other != policy:
                with pytest.raises(pe.StateMismatchError, match="policy"):
                    engine_of(other).load_state_dict(state)

    @pytest.mark.parametrize(
        ("field", "value", "error"),
        [
            ("prune_ratio", 1.0, ValueError),
            ("prune_ratio", -0.1, ValueError),
            ("prune_ratio", math.nan, ValueError),
            ("prune_ratio", "0.5", TypeError),
            ("prune_ratio", True, TypeError),
            ("delta", 0.0, ValueError),
            ("delta", 1.001, ValueError),
            ("delta", None, TypeError),
            ("sampling", "coin", ValueError),
        ],
    )
    def test_edge_case_10_parameters_out_of_range(self, policy, field, value, error):
        if field not in {f.name for f in dataclasses.fields(policy)}:
            with pytest.raises(TypeError, match=field):
                type(policy)(**{field: value})
            return
        with pytest.raises(error, match=rf"{field} must be .*got"):
            dataclasses.replace(policy, **{field: value})
