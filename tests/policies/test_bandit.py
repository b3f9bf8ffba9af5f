# SPDX-License-Identifier: Apache-2.0
"""UCB and EpsilonGreedy: recorded runs beside an independent restatement in NumPy."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _runs import losses_at, serve, through_disk
from hypothesis import assume, given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine.bands import STREAM_TIES

EPOCHS = 9


class Restated:
    """The rule of Raju et al. (2021), one sample at a time in float32."""

    def __init__(self, policy: pe.UCB | pe.EpsilonGreedy, n: int, seed: int) -> None:
        """Start with every sample kept."""
        self.policy, self.n, self.seed = policy, n, seed
        self.ema: list[np.float32 | None] = [None] * n
        self.varema = [np.float32(0)] * n
        self.kept = set(range(n))

    def end_epoch(self, scores: dict[int, np.float32], epoch: int) -> None:
        """Average in the scores of the samples that were trained."""
        decay, rest = np.float32(self.policy.decay), np.float32(1 - self.policy.decay)
        for i, score in scores.items():
            old = self.ema[i]
            if old is None:
                self.ema[i] = score
                continue
            residual = score - old
            self.varema[i] = decay * self.varema[i] + rest * (residual * residual)
            self.ema[i] = decay * old + rest * score
        if epoch % self.policy.period == 0:
            self.kept = self.choose(epoch + 1)

    def choose(self, epoch: int) -> set[int]:
        """Return what is kept from an epoch on."""
        greedy = isinstance(self.policy, pe.EpsilonGreedy)
        ranks = [
            math.inf if ema is None else float(ema if greedy else ema + varema)
            for ema, varema in zip(self.ema, self.varema, strict=True)
        ]
        falling = sorted(range(self.n), key=lambda i: (-ranks[i], i))
        k = int(self.policy.keep * 100 + 0.5) * self.n // 100
        drawn = int(self.policy.epsilon * 100 + 0.5) * k // 100 if greedy else 0
        top, others = falling[: k - drawn], sorted(falling[k - drawn :])
        draw = oracle.draws(self.n, self.seed, epoch)
        others.sort(key=lambda i: (-draw[i], i))
        return set(top) | set(others[:drawn])


policies = st.one_of(
    st.builds(
        pe.UCB,
        keep=st.integers(1, 99).map(lambda p: p / 100),
        period=st.integers(1, 4),
        decay=st.sampled_from([0.0, 0.5, 0.8]),
    ),
    st.builds(
        pe.EpsilonGreedy,
        keep=st.integers(1, 99).map(lambda p: p / 100),
        period=st.integers(1, 4),
        epsilon=st.integers(0, 100).map(lambda p: p / 100),
    ),
)


@given(
    policy=policies,
    n=st.integers(1, 200),
    seed=st.integers(0, 1000),
    coarse=st.booleans(),
    backend=st.sampled_from(["cpu", "reference"]),
)
def test_a_run_equals_the_restatement(policy, n, seed, coarse, backend):
    assume(policy.keep * n > 1)  # one that keeps nobody is refused
    engine = pe.PruneEngine(n, policy, num_epochs=EPOCHS, seed=seed, backend=backend)
    restated = Restated(policy, n, seed)
    for epoch in engine.epochs():
        kept = engine.plan.kept.long()
        assert set(kept.tolist()) == restated.kept, f"epoch {epoch}"
        assert set(engine.plan.weights.unique().tolist()) <= {0.0, 1.0}
        losses = losses_at(kept, epoch)
        losses = losses.round() if coarse else losses  # ties
        engine.observe(losses, kept)
        restated.end_epoch(dict(zip(kept.tolist(), losses.numpy(), strict=True)), epoch)
    memory = engine.state_dict()["memory"]
    assert_bitwise(memory["varema"].nan_to_num(), np.array(restated.varema, np.float32), "varema")
    assert_bitwise(memory["ema"], np.array(restated.ema, np.float32), "ema")


@pytest.mark.parametrize("policy", [pe.UCB(), pe.EpsilonGreedy()], ids=str)
def test_a_new_choice_comes_every_period(policy):
    engine = pe.PruneEngine(200, policy, num_epochs=23)
    subsets = []
    for _ in engine.epochs():
        subsets.append(frozenset(serve(engine)))
    changes = [t for t in range(1, 23) if subsets[t] != subsets[t - 1]]
    assert changes[0] == 1
    # The same samples may win again; a draw never comes out the same.
    assert set(changes) <= {1, 11, 21} if isinstance(policy, pe.UCB) else changes == [1, 11, 21]
    assert [len(s) for s in subsets] == [200] + [140] * 22


def test_ucb_looks_at_the_variance_and_epsilon_greedy_does_not():
    # Sample 0 swings between 0 and 4, sample 1 stays at 2.5: the averages favour sample 1.
    def winner(policy: pe.policies.Policy) -> list[int]:
        buffer, memory = pe.epoch.ScoreBuffer(2), policy.memory(pe.epoch.ScoreBuffer(2), 0)
        assert memory is not None
        for epoch in range(9):
            buffer.activate(buffer.weight_class, buffer.weight_table, epoch)
            swing = 4.0 if epoch % 2 else 0.0
            buffer.observe(torch.tensor([swing, 2.5]), torch.tensor([0, 1]))
            memory.end_epoch(buffer, epoch)
        rule = policy.rule(buffer, pe.policies.Progress(9, 9, None), memory)
        assert isinstance(rule, pe.policies.Selection)
        return rule.weight_class.nonzero()[:, 0].tolist()

    assert winner(pe.UCB(0.5, period=1)) == [0]
    assert winner(pe.EpsilonGreedy(0.5, period=1, epsilon=0.0)) == [1]


def test_what_was_never_seen_is_tried_first():
    engine = pe.PruneEngine(10, pe.UCB(0.5, period=2), num_epochs=3, coverage="ignore")
    engine.observe(losses_at(range(8)), torch.arange(8))
    engine.end_epoch()
    assert {8, 9} <= set(engine.plan.kept.tolist())


def test_a_dropped_sample_keeps_its_averages():
    engine = pe.PruneEngine(100, pe.UCB(0.3, period=2), num_epochs=4)
    serve(engine)
    engine.end_epoch()
    before, dropped = engine.state_dict()["memory"], engine.plan.weights == 0
    serve(engine)
    engine.end_epoch()
    after = engine.state_dict()["memory"]
    for name in ("ema", "varema"):
        assert_bitwise(after[name][dropped], before[name][dropped], name)
        assert not torch.equal(after[name][~dropped], before[name][~dropped]), "control"


@pytest.mark.parametrize("name", ["ema", "varema", "chosen", "decided"])
def test_a_damaged_memory_is_refused(name):
    engine = pe.PruneEngine(30, pe.UCB(period=2), num_epochs=4)
    serve(engine)
    engine.end_epoch()
    state = through_disk(engine.state_dict())
    for value in (None, torch.zeros(31), torch.zeros(30, dtype=torch.float64)):
        state["memory"][name] = value
        with pytest.raises(pe.StateMismatchError, match=rf"memory\.{name}: expected"):
            engine.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pe.UCB(keep=1.0), ValueError, r"keep must be in \(0, 1\), got 1.0"),
        (lambda: pe.UCB(keep=0.0), ValueError, "keep must be in"),
        (lambda: pe.UCB(decay=1.0), ValueError, r"decay must be in \[0, 1\), got 1.0"),
        (lambda: pe.UCB(period=0), ValueError, "period must be at least 1, got 0"),
        (lambda: pe.UCB(period=2.0), TypeError, "period must be an int"),
        (lambda: pe.EpsilonGreedy(epsilon=1.1), ValueError, "epsilon must be in"),
        (lambda: pe.EpsilonGreedy(epsilon="0.1"), TypeError, "epsilon must be a number"),
    ],
)
def test_edge_case_10_parameters_out_of_range(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_memory_of_another_policy_is_refused():
    buffer = pe.epoch.ScoreBuffer(3)
    with pytest.raises(TypeError, match="memory must be a BanditMemory, got NoneType"):
        pe.UCB().rule(buffer, pe.policies.Progress(1, 1, 2))


@pytest.mark.parametrize("wild", [1e25, -1e25, 3e38], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5])
def test_one_wild_loss_keeps_its_sample_for_a_time_and_not_for_ever(decay, wild):
    policy = pe.UCB(keep=0.5, period=1, decay=decay)
    engine = pe.PruneEngine(8, policy, num_epochs=400, seed=1)
    kept = []
    for epoch in engine.epochs():
        order = torch.tensor(list(engine.sampler()))
        losses = torch.ones(8) + torch.arange(8)
        losses[0] = {0: 99.0, 1: wild}.get(epoch, 0.5)
        kept.append(0 in order.tolist())
        engine.observe(losses[order], order)
    memory = engine.state_dict()["memory"]
    assert memory["ema"].isfinite().all() and memory["varema"].isfinite().all()
    assert kept[2], "for a time"
    assert not kept[-1], "it is the easiest of all"


def test_a_state_whose_average_was_infinite_is_healed():
    engine = pe.PruneEngine(40, pe.UCB(keep=0.5, period=1, decay=0.0), num_epochs=9)
    serve(engine)
    engine.end_epoch()
    state = engine.state_dict()
    state["memory"]["varema"][:] = torch.tensor([math.inf, math.nan]).repeat(20)
    engine.load_state_dict(state)
    seen = serve(engine)
    engine.end_epoch()
    assert engine.state_dict()["memory"]["varema"][seen].isfinite().all()


@pytest.mark.parametrize("policy", [pe.UCB, pe.EpsilonGreedy])
def test_what_was_never_seen_is_tried_in_an_order_that_is_drawn(policy, backend):
    found = {}
    for seed in (0, 1):
        options = {"epsilon": 0.0} if policy is pe.EpsilonGreedy else {}
        made = policy(0.3, period=1, first_epoch="even", **options)
        engine = pe.PruneEngine(1000, made, num_epochs=2, seed=seed, backend=backend)
        first = engine.plan.kept
        for indices in first.split(100):
            engine.observe(indices.float() + 1, indices)
        engine.end_epoch()
        kept = engine.plan.kept.tolist()
        never = sorted(set(range(1000)) - set(first.tolist()))
        draws = pe.ops.draw(torch.tensor(never), seed=seed, epoch=1, stream=STREAM_TIES) >> 9
        drawn = sorted(range(len(never)), key=lambda i: (-int(draws[i]), never[i]))[:300]
        assert kept == sorted(never[i] for i in drawn)
        assert kept != never[:300], "control: by index it would be the first of the data set"
        found[seed] = kept
    assert found[0] != found[1]
    assert 450 < sum(found[0]) / 300 < 550
