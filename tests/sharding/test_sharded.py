# SPDX-License-Identifier: Apache-2.0
"""Scores divided among ranks: the kept set, order, weights and figures of undivided ones."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _ranks import Ranks
from _runs import batches, figures, losses_at, through_disk

import prune_engine as pe
from prune_engine.epoch.exact_sum import sum_in_units
from prune_engine.sharding import exchange
from prune_engine.sharding import run as sharded_run
from prune_engine.sharding.layout import owned, shard_cost

N = 13_000  # four blocks of 4096, the last one short: owners of one or two of them
BATCH = 600  # over all ranks: 600, 300, 200 or 150 samples each
EPOCHS = 4
POLICIES: dict[str, Any] = {
    "infobatch": pe.InfoBatch(0.5, delta=0.75),
    "proportional": pe.policies.Proportional(0.5, floor=0.2, delta=0.75),
    "random": pe.RandomSubset(0.4, rescale=True, delta=0.75),
    "full": pe.KeepAll(),
}


def engine_of(policy: str = "infobatch", *, divided: bool = True, **options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(
        N, POLICIES[policy], num_epochs=EPOCHS, seed=11, shard_scores=divided, **options
    )


def train_epoch(engine: pe.PruneEngine, size: int, stop: int | None = None) -> list[list[float]]:
    """Train what is left of the epoch, or some batches; return [sample, weight] of each."""
    seen: list[list[float]] = []
    for batch in list(batches(engine.sampler(align=BATCH), BATCH // size))[:stop]:
        losses = losses_at(batch, engine.epoch)
        losses[torch.tensor(batch) % 701 == engine.epoch] = torch.nan
        weighted = engine.observe(
            torch.ones(len(batch)), torch.tensor(batch), score=losses, reduction="none"
        )
        seen += [[i, w] for i, w in zip(batch, weighted.tolist(), strict=True)]
    return seen


def interleaved(shares: list[list[Any]]) -> list[Any]:
    """Return the global order of which rank q has every W-th."""
    assert len({len(share) for share in shares}) == 1
    return [item for items in zip(*shares, strict=True) for item in items]


@functools.cache
def undivided(policy: str) -> dict[str, Any]:
    """Train on one process as ever; return each epoch's (sample, weight), and what is left."""
    engine = engine_of(policy, divided=False)
    rows = [train_epoch(engine, 1) for _ in engine.epochs()]
    return {"rows": rows, "figures": figures(engine), "records": engine.buffer.records}


def divided(size: int, policy: str) -> tuple[dict[str, Any], Ranks]:
    ranks = Ranks(size)

    def work(rank: int) -> dict[str, Any]:
        engine = engine_of(policy)
        rows = []
        for _ in engine.epochs():
            before = len(ranks.logs[rank])
            rows.append(train_epoch(engine, size))
            assert len(ranks.logs[rank]) == before, "no collective in a step"
        return {"rows": rows, "figures": figures(engine), "records": engine.buffer.records}

    found = ranks.run(work)
    return {
        "rows": [interleaved([rank["rows"][e] for rank in found]) for e in range(EPOCHS)],
        "figures": [rank["figures"] for rank in found],
        "records": torch.cat([rank["records"] for rank in found]),
    }, ranks


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    for epoch, (mine, theirs) in enumerate(zip(got["rows"], want["rows"], strict=True)):
        assert mine == theirs, f"samples, order or weights of epoch {epoch}"
    for own in got["figures"]:
        assert own == want["figures"]
    assert_bitwise(got["records"], want["records"], "records")


@pytest.mark.parametrize(
    ("size", "policy"),
    [*((size, "infobatch") for size in (1, 2, 3, 4)), (2, "random"), (3, "random"), (2, "full")],
)
def test_divided_scores_train_what_undivided_ones_do(size, policy):
    want = undivided(policy)
    assert_same(divided(size, policy)[0], want)
    pruned = min(len(row) for row in want["rows"]) < N // BATCH * BATCH
    assert pruned == (policy != "full"), "control: something is pruned"


def test_control_a_shard_that_draws_by_its_own_numbers_is_caught(monkeypatch):
    plan = pe.ops.plan
    local = functools.partial(plan)
    monkeypatch.setattr(pe.ops, "plan", lambda *a, first, **options: local(*a, first=0, **options))
    with pytest.raises(AssertionError, match="epoch 1"):
        assert_same(divided(2, "infobatch")[0], undivided("infobatch"))


def test_control_a_shard_that_takes_its_own_mean_is_caught(monkeypatch):
    def alone(buffer: pe.epoch.ScoreBuffer, **options: Any) -> Any:
        merged = audit(buffer, **options)
        words = buffer.score_sum.tolist()
        buffer.total = (sum_in_units(words), words[9])
        return merged

    audit = sharded_run.audit_shards
    monkeypatch.setattr(sharded_run, "audit_shards", alone)
    with pytest.raises(AssertionError, match="order or weights of epoch"):
        assert_same(divided(2, "infobatch")[0], undivided("infobatch"))


@pytest.mark.parametrize("size", [2, 3])
def test_many_rounds_of_an_exchange_are_one(size, monkeypatch):
    monkeypatch.setattr(exchange, "ROUND", 999)
    assert_same(divided(size, "infobatch")[0], undivided("infobatch"))


# --- what goes over the wire, and what is held ---------------------------------------------------


def test_bytes_on_the_wire_are_those_that_the_arithmetic_says():
    size = 3
    ranks = Ranks(size)

    def work(rank: int) -> list[Any]:
        engine = engine_of()
        own = owned(N, rank, size)
        rows: list[Any] = []
        for _ in range(3):
            share = engine.buffer.share
            assert share is not None
            foreign = sum(int(i) not in own for i in share.samples)
            began = len(ranks.logs[rank])
            served = [i for i, _ in train_epoch(engine, size)]
            engine.end_epoch()
            rows.append((foreign, sum(i not in own for i in served), served, began))
        return rows

    found = ranks.run(work)
    for epoch in range(3):
        for rank, log in enumerate(ranks.logs):
            own = owned(N, rank, size)
            came = [
                sum(int(i) in own and i % 701 != epoch for i in found[other][epoch][2])
                for other in range(size)
                if other != rank
            ]
            at = found[rank][epoch][3]
            names = [name for name, _ in log[at : at + 6]]
            gathers = ["all_gather"] * 2
            assert names == [*gathers, "all_to_all", *gathers, "all_to_all"]
            received = [bytes_ for _, bytes_ in log[at : at + 6]]
            assert received[2] == 8 * sum(came), "8 bytes of each owned sample trained elsewhere"
            rows = received[0] + received[1] + received[3] + received[4]
            assert rows == (size - 1) * 8 * (5 + 5 + 2 + size + 13 + 1), "rows of numbers"
            if epoch < 2:
                fetched = 5 * found[rank][epoch + 1][0]
                assert received[5] == fetched, "5 bytes of each trained sample owned elsewhere"
    cost = shard_cost(N, size, len(undivided("infobatch")["rows"][2]) / N)
    elsewhere = [found[rank][2][0] for rank in range(size)]
    assert 13 * sum(elsewhere) / size == pytest.approx(cost.wire, rel=0.05), "on average"


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_holds_what_the_arithmetic_says(size):
    def work(rank: int) -> tuple[int, int]:
        engine = engine_of("full")
        buffer, share = engine.buffer, engine.buffer.share
        assert share is not None
        tensors = (share.samples, share.place, share.classes, share.records)
        return (
            buffer.records.nbytes + buffer.weight_class.nbytes,
            sum(tensor.nbytes for tensor in tensors),
        )

    found = Ranks(size).run(work)
    cost = shard_cost(N, size, 1.0)
    assert max(own for own, _ in found) == cost.owned
    assert max(share for _, share in found) == cost.share
    assert cost.owned < 9 * N, "control: a part of them"


# --- stopping and going on -----------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 1), (1, 3)])
def test_a_state_goes_on_in_another_world_size(before, after):
    def first(rank: int) -> Any:
        engine = engine_of()
        rows = [train_epoch(engine, before)]
        engine.end_epoch()
        rows.append(train_epoch(engine, before, stop=7))
        return through_disk(engine.state_dict()), rows

    found = Ranks(before).run(first)
    parts = [state for state, _ in found]

    def second(rank: int) -> Any:
        engine = engine_of()
        engine.load_state_dict(parts[::-1])
        rows = [train_epoch(engine, after)]
        engine.end_epoch()
        for _ in engine.epochs():
            rows.append(train_epoch(engine, after))
        return rows, figures(engine), engine.buffer.records

    later = Ranks(after).run(second)
    rows = [interleaved([rank[1][e] for rank in found]) for e in range(2)]
    rest = [interleaved([rank[0][e] for rank in later]) for e in range(EPOCHS - 1)]
    rows = [rows[0], rows[1] + rest[0], *rest[1:]]
    records = torch.cat([rank[2] for rank in later])
    assert_same(
        {"rows": rows, "figures": [rank[1] for rank in later], "records": records},
        undivided("infobatch"),
    )


def test_undivided_scores_can_be_divided_and_back():
    engine = engine_of(divided=False)
    rows = [train_epoch(engine, 1)]
    engine.end_epoch()
    rows.append(train_epoch(engine, 1, stop=5))
    state = engine.state_dict()

    def work(rank: int) -> Any:
        resumed = engine_of()
        resumed.load_state_dict(state)
        return train_epoch(resumed, 2), resumed.state_dict()

    found = Ranks(2).run(work)
    rows[1] += interleaved([share for share, _ in found])
    assert rows == undivided("infobatch")["rows"][:2]
    back = engine_of()  # of one rank
    back.load_state_dict([state for _, state in found])
    plain = engine_of(divided=False)
    plain.load_state_dict(back.state_dict())
    assert train_epoch(plain, 1) == [], "nothing is left of the epoch"
    plain.end_epoch()
    assert train_epoch(plain, 1) == undivided("infobatch")["rows"][2]


def test_parts_that_are_missing_or_of_another_moment_are_refused_by_all_ranks():
    def save(rank: int) -> Any:
        engine = engine_of()
        early = engine.state_dict()
        train_epoch(engine, 2, stop=1)
        return early, engine.state_dict()

    (early, first), (_, second) = Ranks(2).run(save)

    def load(rank: int, *parts: Any) -> None:
        engine = engine_of()
        before = engine.plan.indices
        with pytest.raises(pe.StateMismatchError) as caught:
            engine.load_state_dict(parts)
        assert_bitwise(engine.plan.indices, before, "nothing is half loaded")
        raise pe.StateMismatchError(str(caught.value))

    for parts, message in (
        ((early, second), "part 1 differs from part 0 in cursor, steps"),
        ((first, first), "once, got"),
        ((first,), "got 0 of|rank 1 was given"),
        ((), "once, got 0"),
    ):
        with pytest.raises(pe.StateMismatchError, match=message):
            Ranks(2).run(lambda rank, parts=parts: load(rank, *parts))
    plain = engine_of(divided=False)
    with pytest.raises(pe.StateMismatchError, match="one dictionary, got a list"):
        plain.load_state_dict([first, second])
    with pytest.raises(pe.StateMismatchError, match="records: expected"):
        plain.load_state_dict(first)


def test_the_effective_rate_is_the_same_on_ranks_whose_samples_differ():
    easy = owned(N, 0, 2)

    def work(rank: int) -> tuple[float, float]:
        engine = engine_of()
        for batch in batches(engine.sampler(align=BATCH), BATCH // 2):
            indices = torch.tensor(batch)
            losses = torch.where(indices < easy.stop, 1.0, 3.0)
            engine.observe(torch.ones(len(batch)), indices, score=losses)
        engine.end_epoch()
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        return engine.effective_lr(optimizer), float(engine.plan.weights.max())

    first, second = Ranks(2).run(work)
    assert (first[1], second[1]) == (2, 1), "control: only rank 0 owns a sample that weighs 2"
    assert first[0] == second[0] == 1.0
