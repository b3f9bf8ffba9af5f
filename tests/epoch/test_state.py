# SPDX-License-Identifier: Apache-2.0
"""State: saved at any batch, restored bit for bit, in any world size, or refused as a whole."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, batches, figures, infobatch, losses_at, observe, serve, through_disk
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

SIZE = 10
STATE = ("records", "score_sum", "counters", "step", "weight_class", "weight_table", "epoch")


def step(engine: pe.PruneEngine, count: int) -> list[int]:
    """Train a number of batches across epochs; return the samples."""
    trained: list[int] = []
    while count and engine.epoch < 8:
        for batch in islice(batches(engine.sampler(), SIZE), count):
            observe(engine, batch)
            trained += batch
            count -= 1
        if engine.cursor >= engine.served:
            engine.end_epoch()
    return trained


def assert_same(got: pe.PruneEngine, want: pe.PruneEngine) -> None:
    """Fail unless two engines are in the same state, but for the time they took."""
    for name in STATE:
        assert_bitwise(getattr(got.buffer, name), getattr(want.buffer, name), name)
    assert_bitwise(got.plan.indices, want.plan.indices, "order")
    assert_bitwise(got.plan.weights, want.plan.weights, "weights")
    assert_bitwise(got.plan.threshold, want.plan.threshold, "threshold")
    assert (got.epoch, got.cursor, got.progress) == (want.epoch, want.cursor, want.progress)
    assert figures(got) == figures(want)


@given(at=st.integers(0, 70), backend=st.sampled_from(["cpu", "reference"]))
def test_restored_at_any_batch_the_rest_is_bit_for_bit_the_same(at, backend):
    whole, stopped, resumed = (infobatch(seed=9) for _ in range(3))
    want = step(whole, at + 6)
    got = step(stopped, at)
    resumed = infobatch(seed=9, backend=backend)
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    assert_same(resumed, stopped)
    rest = stopped.plan.indices[stopped.cursor :]
    assert_bitwise(list(resumed.sampler()), rest, "the remaining order")
    got += step(resumed, 6)
    assert got == want
    assert_same(resumed, whole)


def test_control_a_fresh_engine_continues_otherwise():
    stopped, fresh = infobatch(), infobatch()
    step(stopped, 25)
    assert list(fresh.sampler()) != list(stopped.sampler())


def test_the_plan_is_stored_not_recomputed():
    # Scores move within the epoch: a plan made again from them is another plan.
    engine = infobatch()
    step(engine, 13)
    resumed = infobatch()
    resumed.load_state_dict(through_disk(engine.state_dict()))
    assert_bitwise(resumed.plan.weight_class, engine.plan.weight_class, "weight classes")
    rule = engine.policy.rule(engine.buffer, pe.policies.Progress(1, 1, 8))
    again, _ = pe.ops.plan(engine.buffer.records, rule, seed=engine.seed, epoch=1)
    assert not torch.equal(again, engine.plan.weight_class)


def test_the_cursor_is_the_consumed_one_not_the_drawn_one():
    engine = infobatch()
    stream = batches(engine.sampler(), SIZE)
    drawn = [next(stream) for _ in range(4)]
    observe(engine, drawn[0])
    resumed = infobatch()
    resumed.load_state_dict(engine.state_dict())
    assert list(islice(resumed.sampler(), 30)) == [*drawn[1], *drawn[2], *drawn[3]]


@given(
    stops=st.lists(st.integers(1, 6), max_size=5),
    workers_ahead=st.integers(0, 3),
)
def test_an_epoch_broken_off_and_taken_up_again_trains_every_sample_once(stops, workers_ahead):
    engine, whole = infobatch(), infobatch()
    trained: list[int] = []
    for stop in [*stops, 99]:
        if len(trained) == N:
            with pytest.raises(pe.PruneEngineError, match="trained to its end"):
                iter(engine.sampler())
            break
        stream = batches(iter(engine.sampler()), SIZE)
        length = len(engine.sampler())
        for batch in islice(stream, stop):
            observe(engine, batch)
            trained += batch
            assert len(engine.sampler()) == length, "a progress bar's end does not move"
            assert engine.cursor == len(trained)
        list(islice(stream, workers_ahead))  # drawn by a loader, never trained
    serve(whole)
    assert trained == whole.plan.indices.tolist()
    assert engine.end_epoch() == whole.end_epoch()
    assert_same(engine, whole)


def test_looking_at_a_batch_in_the_middle_of_an_epoch_changes_nothing():
    engine, whole = infobatch(), infobatch()
    stream = batches(engine.sampler(), SIZE)
    for batch in stream:
        assert next(batches(engine.sampler(), SIZE)) == batch, "the next one to train"
        observe(engine, batch)
        if engine.cursor < N:
            next(iter(engine.sampler()))
    serve(whole)
    assert_same(engine, whole)


def test_a_state_is_plain_data_and_a_copy():
    engine = infobatch()
    step(engine, 13)
    state = engine.state_dict()
    before = through_disk(state)  # weights_only=True: tensors and plain data
    step(engine, 20)
    torch.testing.assert_close(state["buffer"], before["buffer"], rtol=0, atol=0)
    resumed = infobatch()
    resumed.load_state_dict(state)
    step(resumed, 20)
    torch.testing.assert_close(state["buffer"], before["buffer"], rtol=0, atol=0)


def test_a_state_holds_two_tensors_of_length_n():
    sizes = [
        v.numel() for v in infobatch(5000).state_dict()["buffer"].values() if hasattr(v, "numel")
    ]
    assert sorted(sizes) == [5, 256, 5000, 5000]


# --- world sizes --------------------------------------------------------------------------------


def train_ranks(engine: pe.PruneEngine, world: int, count: int) -> list[int]:
    """Train some batches on each rank of a world in turn; return the samples."""
    streams = [batches(iter(engine.sampler(shard=(q, world))), SIZE) for q in range(world)]
    trained: list[int] = []
    for _ in range(count):
        for stream in streams:
            batch = next(stream)
            observe(engine, batch)
            trained += batch
    return trained


def test_world_size_may_change_from_one_to_two_to_three():
    n = 480
    whole = infobatch(n)
    serve(whole)
    order = whole.plan.indices.tolist()
    engine, done = infobatch(n), []
    for world, count in ((1, 6), (2, 5), (3, 4), (1, 20)):
        done += train_ranks(engine, world, count)
        assert sorted(done) == sorted(order[: len(done)]), "what was trained is a prefix"
        restored = infobatch(n)
        restored.load_state_dict(through_disk(engine.state_dict()))
        rest = [list(restored.sampler(shard=(q, 2))) for q in range(2)]
        assert [i for pair in zip(*rest, strict=True) for i in pair] == order[len(done) :]
        engine = restored
    assert len(done) == n
    assert_bitwise(engine.buffer.records, whole.buffer.records, "records")
    engine.end_epoch()
    whole.end_epoch()
    assert_bitwise(engine.plan.indices, whole.plan.indices, "the next order")


@given(first=st.integers(1, 4), second=st.integers(1, 4), count=st.integers(0, 30))
def test_ranks_stay_equal_whatever_world_the_epoch_began_in(first, second, count):
    n = 101
    engine, resumed = infobatch(n), infobatch(n)
    order = engine.plan.indices.tolist()
    for at in range(count % (n // first)):  # batches of one: any multiple of the world
        for rank in range(first):
            observe(engine, [order[at * first + rank]])
    resumed.load_state_dict(engine.state_dict())
    samplers = [resumed.sampler(shard=(rank, second)) for rank in range(second)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(sampler) for sampler in samplers} == {len(share) for share in shares}
    assert len({len(share) for share in shares}) == 1, "no rank waits for another"
    rest = [index for step in zip(*shares, strict=True) for index in step]
    assert rest == order[engine.cursor : engine.cursor + len(rest)]
    assert n - engine.cursor - len(rest) < second
    observe(resumed, rest)
    report = resumed.end_epoch()
    assert report.missing == report.dropped_tail == n - engine.cursor - len(rest)


def test_batches_stay_full_whatever_batch_size_the_epoch_began_with():
    engine, resumed = infobatch(), infobatch()
    order = engine.plan.indices.tolist()
    observe(engine, order[:7])
    resumed.load_state_dict(engine.state_dict())
    taken = list(batches(resumed.sampler(align=16), 16))
    assert [len(batch) for batch in taken] == [16] * 5
    for batch in taken:
        observe(resumed, batch)
    with pytest.raises(pe.PruneEngineError, match=r"epoch 0 is trained to its end.*end_epoch"):
        iter(resumed.sampler(align=16))
    later = infobatch()
    later.load_state_dict(resumed.state_dict())
    assert list(later.sampler(align=16)) == [], "the tail stays dropped"
    assert later.end_epoch().dropped_tail == 13


def test_a_state_between_the_last_batch_and_the_end_of_the_epoch():
    engine, resumed = infobatch(), infobatch()
    serve(engine)
    resumed.load_state_dict(through_disk(engine.state_dict()))
    assert (len(resumed.sampler()), list(resumed.sampler())) == (0, [])
    assert resumed.end_epoch() == engine.end_epoch()
    assert_same(resumed, engine)


def test_no_world_size_is_in_the_state():
    assert not [name for name in infobatch().state_dict() if "world" in name or "rank" in name]


# --- what is refused ----------------------------------------------------------------------------


def test_edge_case_09_every_difference_is_listed():
    state = infobatch(seed=1).state_dict() | {"version": 99}
    other = pe.PruneEngine(N + 1, pe.RandomSubset(), num_epochs=7, mode="flow", seed=2)
    names = ["version", "num_samples", "policy", "seed", "mode", "num_epochs", "horizon"]
    with pytest.raises(pe.StateMismatchError) as caught:
        other.load_state_dict(state)
    for name in [*names, "records", "weight_class"]:
        assert f"{name}: expected" in str(caught.value)
    assert "got 99" in str(caught.value)


def damaged(path: str, value: Any) -> dict[str, Any]:
    """Return a good state with one thing wrong; a value of None removes it."""
    engine = infobatch()
    step(engine, 13)
    state: Any = copy.deepcopy(engine.state_dict())
    *folders, name = path.split(".")
    inner = state
    for folder in folders:
        inner = inner[int(folder)] if folder.isdigit() else inner[folder]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 1, "version: expected 3, got 1"),
        ("seed", None, "seed: expected 0, got None"),
        ("epoch", "1", "epoch: expected int"),
        ("cursor", None, "cursor: expected int"),
        ("cursor", -1, "cursor: expected at least 0, got -1"),
        ("threshold", [1.0], "threshold: expected tuple"),
        ("history", None, "history: expected tuple"),
        ("history.0.planned", None, r"history\[0\]: planned missing"),
        ("buffer", None, "buffer: expected dict"),
        ("buffer.records", None, "records: expected a tensor"),
        ("buffer.records", torch.zeros(3, dtype=torch.int64), r"records: .*got torch.int64 \(3,\)"),
        ("buffer.weight_class", torch.zeros(N), "weight_class: .*got torch.float32"),
        ("buffer.counters", torch.zeros(6, dtype=torch.int64), "counters"),
        ("buffer.weight_table", None, "weight_table"),
        ("buffer.epoch", None, "epoch: expected an int"),
        ("ahead", ({"epoch": 3},), r"ahead\[0\]: weight_class, weight_table, threshold missing"),
    ],
)
def test_edge_case_09_a_damaged_state_is_refused_and_nothing_is_half_loaded(path, value, message):
    engine, twin = infobatch(), infobatch()
    step(engine, 17)
    step(twin, 17)
    with pytest.raises(pe.StateMismatchError, match=message):
        engine.load_state_dict(damaged(path, value))
    assert_same(engine, twin)
    step(engine, 9)
    step(twin, 9)
    assert_same(engine, twin)


def test_edge_case_09_the_buffer_alone_refuses_too():
    buffer = pe.epoch.ScoreBuffer(4)
    buffer.observe(losses_at([1, 2]), torch.tensor([1, 2]))
    before = buffer.records.clone()
    with pytest.raises(pe.StateMismatchError, match=r"records.*weight_class"):
        buffer.load_state_dict(pe.epoch.ScoreBuffer(5).state_dict())
    assert_bitwise(buffer.records, before, "records")


def test_a_restored_sum_is_the_running_sum():
    buffer, twin = pe.epoch.ScoreBuffer(50), pe.epoch.ScoreBuffer(50)
    buffer.observe(losses_at(range(40)), torch.arange(40))
    twin.load_state_dict(through_disk(buffer.state_dict()))
    assert_bitwise(twin.score_sum, buffer.score_sum, "sum")
    assert_bitwise(twin.mean_threshold(), buffer.mean_threshold(), "threshold")
