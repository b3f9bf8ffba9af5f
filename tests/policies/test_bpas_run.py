# SPDX-License-Identifier: Apache-2.0
"""A run of B-PAS: early end, resume at any batch, what is refused, and the random control."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _bpas import EPOCHS, SAMPLES, SIZE, memory_of, train
from _runs import N, batches, epochs, figures, losses_at, observe, serve, through_disk
from torch import Tensor

import prune_engine as pe

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the run ------------------------------------------------------------------------------------


def bpas(policy: pe.BPAS | None = None, **options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(N, policy or pe.BPAS(10, 0.02, 0.2), num_epochs=8, **options)


def test_an_early_end_is_reported_and_not_hidden_in_the_saving():
    engine = bpas(pe.BPAS(10, 10.0, 10.0))
    ran = []
    for epoch in engine.epochs():
        ran.append(epoch)
        serve(engine)
    assert ran == [0, 1], "after the second epoch everything is stable"
    assert [report.ended_early for report in engine.history] == [False, True]
    assert engine.plan.num_kept == len(engine.sampler()) == 0
    assert engine.history.dsi == 0.0, "of the epochs that ran"
    assert engine.history.published_dsi(8) == 1 - 2 / 8
    spared = bpas(pe.BPAS(10, 10.0, 10.0, min_batches=2))
    orders = epochs(spared, 4)
    assert [len(order) for order in orders] == [100, 100, 20, 20]
    assert not any(report.ended_early for report in spared.history)
    # Served 240 of 8 x 100 so far; the epochs that were run save 1 - 240 / 400.
    assert spared.history.dsi == pytest.approx(0.4)


def test_published_dsi_of_a_whole_run():
    engine, _ = train(pe.BPAS(SIZE, 0.015, 0.05, drop_last=True))
    counts = [report.planned // SIZE for report in engine.history]
    assert len(counts) == EPOCHS
    want = 1 - sum(counts) / (EPOCHS * counts[0])
    assert engine.history.published_dsi(EPOCHS) == pytest.approx(want, abs=1e-15)
    assert engine.history.dsi == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("at", [7, 20, 95, 120, 203, 333])
def test_resume_at_any_batch_and_within_one(at):
    policy = pe.BPAS(10, 0.02, 0.2, noise_floor=1.0, shuffle_batches=True)
    whole, stopped, resumed = (bpas(policy, seed=5) for _ in range(3))
    epochs(whole, 7)
    got, done = [], 0
    while done < at:
        for batch in batches(stopped.sampler(), 10):
            batch = batch[: at - done]
            if batch:
                observe(stopped, batch)
            done += len(batch)
        if stopped.cursor == stopped.plan.num_kept:
            stopped.end_epoch()
    state = through_disk(stopped.state_dict())
    resumed.load_state_dict(state)
    rest = list(resumed.sampler())
    assert rest == stopped.plan.indices.tolist()[stopped.cursor :]
    head = -stopped.cursor % 10 if resumed.cursor % 10 else 0
    for batch in [rest[:head], *batches(iter(rest[head:]), 10)]:
        if batch:  # the rest of the batch in which it stopped, then whole ones
            observe(resumed, batch)
    resumed.end_epoch()
    epochs(resumed, 7 - resumed.epoch)
    got, want = (figures(engine) for engine in (resumed, whole))
    assert got == want
    assert_bitwise(memory_of(resumed).alive, memory_of(whole).alive, "alive")
    if at % 10 == 0:  # within a batch the moments are merged of two parts
        assert_bitwise(memory_of(resumed).now, memory_of(whole).now, "X")


def test_a_state_that_does_not_fit_is_listed_and_nothing_is_loaded():
    engine = bpas()
    serve(engine)
    state = engine.state_dict()
    for name, wrong, message in (
        ("now", torch.zeros(3), "memory.now: expected torch.float64"),
        ("alive", None, "memory.alive: .*got NoneType"),
        ("moments", torch.zeros(2, 2), "memory.moments"),
        ("counts", 3, "memory.counts: expected list, got int"),
        ("decided", "2", "memory.decided"),
    ):
        fresh = bpas()
        with pytest.raises(pe.StateMismatchError, match=message):
            fresh.load_state_dict({**state, "memory": {**state["memory"], name: wrong}})
        assert not fresh.buffer.records.any()


def test_the_host_does_not_wait_within_an_epoch():
    engine = bpas(device="cpu")
    memory = memory_of(engine)
    parts = pe.ops.moments([torch.rand(5, generator=torch.Generator().manual_seed(0))])
    memory.commit(parts, torch.tensor(next(batches(engine.sampler(), 10))))

    class Waits(torch.utils._python_dispatch.TorchDispatchMode):
        found: list[str]

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.found.append(str(func))
            return func(*args, **(kwargs or {}))

    with Waits() as mode:
        mode.found = []
        memory.commit(parts, torch.tensor([1, 2]))
        assert mode.found == []
        memory.batches.keep(memory.alive, shuffle=False)
        assert mode.found, "control: the end of an epoch reads the count"


# --- what does not fit --------------------------------------------------------------------------


def test_without_a_monitor_nothing_is_recorded():
    engine = bpas()
    with pytest.raises(pe.PruneEngineError, match=r"engine.attach\(pe.ActivationMonitor"):
        engine.observe(losses_at(range(10)), torch.arange(10))
    assert not engine.buffer.records.any()
    assert engine.cursor == 0


def test_a_monitor_is_for_policies_that_look_at_activations():
    with pytest.raises(TypeError, match="looks at activations, such as BPAS, got InfoBatch"):
        pe.PruneEngine(N, pe.InfoBatch(), num_epochs=2).attach(bpas())
    with pytest.raises(TypeError, match=r"monitor must have take\(\), got int"):
        bpas().attach(3)


def test_samples_of_different_batches_in_one_call_are_found_at_the_epochs_end():
    engine = bpas(coverage="ignore")
    order = list(engine.sampler())
    observe(engine, order[:10])
    observe(engine, order[15:25])
    with pytest.raises(pe.PruneEngineError, match=r"1 calls of observe\(\) had samples of diff"):
        engine.end_epoch()
    assert engine.epoch == 0


def test_a_batch_that_was_not_served_whole_has_no_x_and_stays():
    engine = bpas(pe.BPAS(10, 10.0, 10.0), coverage="ignore")
    for _ in range(2):
        order = list(engine.sampler())
        for batch in batches(iter(order[:95]), 10):
            observe(engine, batch)
        engine.end_epoch()
    assert engine.plan.num_kept == 10
    assert set(engine.plan.kept.tolist()) == set(order[90:])


def test_other_layers_than_before_are_refused():
    engine = bpas()
    observe(engine, list(engine.sampler())[:10])

    class One:
        def take(self) -> Tensor:
            return torch.zeros(1, 3, dtype=torch.float64)

    engine.attach(One())
    with pytest.raises(pe.PruneEngineError, match=r"same layers .*got 1 after 2"):
        engine.observe(losses_at(range(10)), torch.arange(10))


def test_frameworks_with_epochs_of_a_constant_length_are_refused():
    for policy in (pe.BPAS(10), pe.RandomBatches(10)):
        with pytest.raises(ValueError, match="mode must be 'epoch'"):
            pe.PruneEngine(N, policy, mode="flow", num_epochs=9)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("batch_size", 0, ValueError),
        ("batch_size", 2.5, TypeError),
        ("batch_size", True, TypeError),
        ("delta_start", 0.0, ValueError),
        ("delta_end", -1e-3, ValueError),
        ("delta_end", math.nan, ValueError),
        ("delta_end", "1", TypeError),
        ("min_batches", -1, ValueError),
        ("target_dsi", 1.0, ValueError),
        ("target_dsi", "0.4", TypeError),
        ("noise_floor", 0.0, ValueError),
        ("noise_floor", math.inf, ValueError),
        ("strict", 1, TypeError),
        ("drop_last", None, TypeError),
    ],
)
def test_edge_case_10_parameters_out_of_range(field, value, error):
    with pytest.raises(error, match=rf"{field} must be .*got"):
        dataclasses.replace(pe.BPAS(), **{field: value})


# --- the control --------------------------------------------------------------------------------


def test_the_control_repeats_the_counts_with_other_batches():
    engine, _ = train(pe.BPAS(SIZE, 0.015, 0.05, drop_last=True))
    kept = tuple(report.planned // SIZE for report in engine.history)
    policy = pe.RandomBatches(SIZE, kept=kept, drop_last=True)
    control = pe.PruneEngine(SAMPLES, policy, num_epochs=EPOCHS, seed=2)
    sets = [set(order) for order in epochs(control, EPOCHS, SIZE)]
    assert [len(found) for found in sets] == [SIZE * count for count in kept]
    assert all(after <= before for before, after in pairwise(sets)), "for ever"
    other = pe.PruneEngine(SAMPLES, policy, num_epochs=EPOCHS, seed=3)
    assert [set(order) for order in epochs(other, EPOCHS, SIZE)][-1] != sets[-1]


@pytest.mark.parametrize(
    ("kept", "error"), [((3, 4), ValueError), ((-1,), ValueError), ((2.0,), TypeError)]
)
def test_edge_case_10_counts_that_cannot_be(kept, error):
    with pytest.raises(error, match="kept must"):
        pe.RandomBatches(10, kept=kept)
