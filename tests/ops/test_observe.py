# SPDX-License-Identifier: Apache-2.0
"""observe: same bits as the oracle on every backend, whatever the order, dtype or threads."""

from __future__ import annotations

import math
import random

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    AWKWARD,
    EVERY_WEIGHT,
    MAX_EPOCH,
    NON_FINITE,
    counters,
    epochs,
    float32,
    floats,
    int64,
    records,
    salts,
    sizes,
    table,
    threads,
    uint8,
)
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WEIGHTS = table(*EVERY_WEIGHT)


class State:
    """The tensors that observe mutates or reads, beginning from the given records."""

    def __init__(self, old: list[int], classes: list[int]) -> None:
        """Start with an exact sum and no samples counted."""
        self.records = int64(old)
        self.score_sum = int64(oracle.sum_of_records(old))
        self.counters = counters()
        self.step = int64([41])
        self.weight_class = uint8(classes)

    def observe(self, losses, indices, backend, *, epoch=0, score=None, **changed):
        """Call the public function."""
        names = ("records", "score_sum", "counters", "step", "weight_class")
        state = {name: getattr(self, name) for name in names} | {"weight_table": WEIGHTS}
        return pe.ops.observe(
            losses, indices, epoch=epoch, score=score, backend=backend, **(state | changed)
        )

    def snapshot(self) -> list[int]:
        """Return everything mutable as one list."""
        changed = (self.records, self.score_sum, self.counters, self.step)
        return [number for tensor in changed for number in tensor.tolist()]


def fresh(count: int = 8) -> State:
    return State([0] * count, [1] * count)


@given(
    num_samples=sizes.filter(bool),
    batch_size=st.integers(0, 70) | st.sampled_from([256, 3001]),
    dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    score_dtype=st.sampled_from([None, None, *DTYPES]),
    epoch=epochs,
    salt=salts,
    thread_count=threads,
)
def test_observe_equals_oracle(
    backend,
    num_threads,
    num_samples,
    batch_size,
    dtype,
    index_dtype,
    score_dtype,
    epoch,
    salt,
    thread_count,
):
    rng = random.Random(salt)
    old = records(rng, num_samples, epoch, unseen=rng.choice([0.0, 0.3, 1.0]))
    classes = [rng.randrange(256) for _ in range(num_samples)]
    span = rng.choice([num_samples, min(num_samples, 5)])  # the second: many duplicates
    indices = [rng.randrange(span) for _ in range(batch_size)]
    losses = torch.tensor(floats(rng, batch_size, finite=False), dtype=torch.float64).to(dtype)
    scores = None
    if score_dtype is not None:
        scores = torch.tensor(floats(rng, batch_size, finite=False)).to(score_dtype)

    want = oracle.Buffer(list(old), oracle.sum_of_records(old))
    want_losses, want_weights = oracle.observe(
        losses.double().tolist(),
        str(dtype).removeprefix("torch."),
        indices,
        None if scores is None else scores.double().tolist(),
        want,
        classes,
        WEIGHTS.tolist(),
        epoch,
    )
    state = State(old, classes)
    with num_threads(thread_count):
        rescaled, weights = state.observe(
            losses, torch.tensor(indices, dtype=index_dtype), backend, epoch=epoch, score=scores
        )
    want_rescaled = torch.tensor(want_losses, dtype=torch.float64).to(dtype)
    assert rescaled.dtype == dtype
    assert_bitwise(rescaled, want_rescaled, "rescaled")
    assert_bitwise(weights, float32(want_weights), "batch_weights")
    assert_bitwise(state.records, want.records, "records")
    assert_bitwise(state.score_sum, want.score_sum, "score_sum")
    assert_bitwise(state.counters, want.counters, "counters")
    assert_bitwise(state.step, [42], "step")


@given(salt=salts, thread_count=threads)
def test_batches_commute(backend, num_threads, salt, thread_count):
    rng = random.Random(salt)
    indices = int64([rng.randrange(40) for _ in range(90)])
    losses = float32(floats(rng, 90, finite=False))
    outcomes = []
    for shuffled in (False, True):
        positions = list(range(90))
        if shuffled:
            rng.shuffle(positions)
        state, start = fresh(40), 0
        while start < 90:
            stop = start + rng.randrange(1, 40)
            take = int64(positions[start:stop])
            with num_threads(thread_count):
                state.observe(losses[take], indices[take], backend)
            start = stop
        outcomes.append(state.snapshot()[:-1])  # all but the number of batches
    assert_bitwise(outcomes[0], outcomes[1], "state after the same samples in another order")


def test_large_batch_of_duplicates_has_the_same_bits_at_any_thread_count(num_threads):
    rng = random.Random(7)
    indices = int64([rng.randrange(1000) for _ in range(200_000)])
    losses = float32(floats(rng, 200_000, finite=False))
    outcomes = []
    for name, count in (("reference", 1), ("cpu", 1), ("cpu", 2), ("cpu", 4)):
        state = fresh(1000)
        with num_threads(count):
            rescaled, _ = state.observe(losses, indices, name)
        outcomes.append((state.snapshot(), rescaled))
    for snapshot, rescaled in outcomes[1:]:
        assert_bitwise(snapshot, outcomes[0][0], "state")
        assert_bitwise(rescaled, outcomes[0][1], "rescaled")


def test_results_are_fresh_and_arguments_are_left_alone(backend):
    losses, indices = float32([0.5, 1.5]), int64([3, 0])
    state = State([0] * 8, [1, 0, 0, 2, 0, 0, 0, 0])
    rescaled, weights = state.observe(losses, indices, backend)
    assert_bitwise(rescaled, [1.0, 1.5], "rescaled")
    assert_bitwise(weights, [2.0, 1.0], "batch_weights")
    rescaled.zero_()
    weights.zero_()
    assert_bitwise(losses, [0.5, 1.5], "losses after the results were overwritten")
    assert_bitwise(indices, [3, 0], "indices")
    assert_bitwise(WEIGHTS, table(*EVERY_WEIGHT), "weight_table")


def test_a_sum_over_all_exponents_is_exact(backend):
    # What no float could add up: the large ones cancel, the small one is all that is left.
    scores = [oracle.FLT_MAX, -oracle.FLT_MAX, 2.0**-149]
    state = fresh(3)
    state.observe(float32(scores), int64([0, 1, 2]), backend)
    assert_bitwise(state.score_sum, [1, 0, 0, 0, 0, 0, 0, 2**32, -1, 3], "score_sum")
    assert sum(scores[:2]) + scores[2] == 2.0**-149
    assert scores[0] + (scores[1] + scores[2]) == 0.0, "control: in floats the order decides"


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("advance", [True, False])
def test_a_step_is_a_batch_that_is_served_and_not_a_call(backend, advance, size):
    state = fresh()
    for _ in range(3):
        state.observe(torch.ones(size), torch.arange(size), backend, advance=advance)
    assert state.step.item() == 41 + 3 * advance


def test_minus_zero_is_stored_as_zero(backend):
    state = fresh(2)
    state.observe(float32([-0.0, 0.0]), int64([0, 1]), backend)
    assert state.records[0] == state.records[1] == oracle.record_of(0.0, 0)


def test_edge_case_01_no_samples_or_no_batch(backend):
    state = fresh(0)
    rescaled, weights = state.observe(float32([]), int64([]), backend)
    assert rescaled.shape == weights.shape == (0,)
    state = fresh(4)
    before = state.snapshot()
    state.observe(float32([]), torch.empty(0, dtype=torch.int32), backend, advance=False)
    assert_bitwise(state.snapshot(), before, "state after an empty batch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", NON_FINITE)
def test_edge_case_02_non_finite_loss_passes_through_and_is_only_counted(backend, bad, dtype):
    state = fresh(2)
    state.observe(float32([0.25]), int64([1]), backend, epoch=0)
    records_before, sum_before = state.records.clone(), state.score_sum.clone()
    loss = torch.tensor([bad, 2.0], dtype=dtype)
    rescaled, _ = state.observe(loss, int64([1, 0]), backend, epoch=3)
    assert_bitwise(rescaled, loss, "rescaled")
    assert_bitwise(state.records[1:], records_before[1:], "the last finite score")
    assert_bitwise(state.counters, [3, 1, 0, oracle.INT64_MAX, 0], "counters")
    assert not torch.equal(state.score_sum, sum_before), "control: the finite one is recorded"


def test_edge_case_02_float64_loss_that_overflows_float32_is_non_finite(backend):
    state = fresh(5)
    wide = [1e300, -3.5e38, math.inf, oracle.FLT_MAX, math.nan]
    losses = torch.tensor(wide, dtype=torch.float64)
    rescaled, _ = state.observe(losses, torch.arange(5), backend)
    assert (state.records != 0).tolist() == [False, False, False, True, False]
    assert_bitwise(rescaled, losses, "rescaled")
    # Two were finite until they were rounded: they are counted by name too.
    assert state.counters.tolist() == [5, 4, 0, oracle.INT64_MAX, 2]
    state.observe(torch.ones(5), torch.arange(5), backend, score=losses)
    assert state.counters.tolist() == [10, 8, 0, oracle.INT64_MAX, 4]
    state.observe(losses.float(), torch.arange(5), backend)  # control: they came infinite
    assert state.counters.tolist() == [15, 12, 0, oracle.INT64_MAX, 4]


@pytest.mark.parametrize("bad", [-1, 8, 2**31 - 1, -(2**31), 2**40, -(2**63)])
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_edge_case_03_index_out_of_range_writes_nothing(backend, bad, index_dtype):
    if index_dtype == torch.int32 and not -(2**31) <= bad < 2**31:
        bad = 9
    state = fresh()
    state.observe(float32([0.5]), int64([2]), backend)
    before = state.snapshot()
    for batch in ([0, 1, bad], [bad, 0, 1]):
        indices = torch.tensor(batch, dtype=index_dtype)
        with pytest.raises(IndexError, match=str(bad)):
            state.observe(float32([1.0, 2.0, 3.0]), indices, backend, epoch=1)
        assert_bitwise(state.snapshot(), before, "state after a refused batch")


@pytest.mark.parametrize("losses", [[1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0]])
def test_edge_case_04_the_larger_score_of_an_epoch_stays(backend, losses):
    together, apart = fresh(), fresh()
    together.observe(float32(losses), int64([5, 5, 5]), backend, epoch=4)
    for loss in losses:
        apart.observe(float32([loss]), int64([5]), backend, epoch=4)
    assert together.records[5] == apart.records[5] == oracle.record_of(3.0, 4)
    assert_bitwise(together.score_sum, oracle.sum_of_scores([3.0]), "score_sum")
    assert_bitwise(apart.score_sum, together.score_sum, "score_sum, one by one")
    together.observe(float32([0.5]), int64([5]), backend, epoch=5)
    assert together.records[5] == oracle.record_of(0.5, 5), "a later epoch wins even if smaller"


@pytest.mark.parametrize("value", AWKWARD)
def test_every_awkward_float_leaves_its_exact_value(backend, value):
    state = fresh(1)
    state.observe(float32([value]), int64([0]), backend, epoch=MAX_EPOCH)
    stored = oracle.f32(value)
    assert state.records.item() == oracle.record_of(stored, MAX_EPOCH)
    assert_bitwise(state.score_sum, oracle.sum_of_scores([stored]), "score_sum")
