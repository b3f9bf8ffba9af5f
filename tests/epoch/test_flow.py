# SPDX-License-Identifier: Apache-2.0
"""mode="flow": framework epochs of constant length, pruning epochs flow through them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, Numbers, batches, figures, losses_at, observe, through_disk

import prune_engine as pe

SIZE = 10


def flowing(n: int = N, num_epochs: int = 12, ratio: float = 0.5, **options: Any):
    """Return an engine whose epochs flow."""
    policy = options.pop("policy", pe.InfoBatch(ratio, delta=1.0))
    return pe.PruneEngine(n, policy, mode="flow", num_epochs=num_epochs, **options)


def drawn_ahead(stream: Iterable[int], ahead: int) -> Iterator[list[int]]:
    """Yield one framework epoch's batches, each some batches later than it was drawn."""
    waiting: deque[list[int]] = deque()
    for batch in batches(iter(stream), SIZE):
        waiting.append(batch)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def framework_epoch(engine: pe.PruneEngine, ahead: int = 0) -> list[list[int]]:
    """Train one framework epoch."""
    trained = []
    for batch in drawn_ahead(engine.sampler(align=SIZE), ahead):
        observe(engine, batch)
        trained.append(batch)
    return trained


def test_length_is_constant():
    engine = flowing()
    lengths = set()
    for _ in range(6):
        sampler = engine.sampler(align=SIZE)
        lengths |= {len(sampler), SIZE * len(framework_epoch(engine)), len(sampler)}
    assert lengths == {N}
    planned = {report.planned for report in engine.history}
    assert len(planned) > 1, "control: the pruning epochs are of different lengths"


def test_pruning_epochs_flow_through_framework_epochs():
    engine = flowing()
    stream = [index for _ in range(6) for batch in framework_epoch(engine) for index in batch]
    assert len(stream) == 6 * N
    assert engine.epoch > 6, "more pruning epochs than framework epochs"
    at = 0
    for report in engine.history:
        piece = stream[at : at + report.served]
        assert len(set(piece)) == len(piece) == report.served == report.observed
        assert (report.missing, report.extra) == (report.dropped_tail, 0)
        at += report.served
    assert engine.cursor == len(stream) - at


@pytest.mark.parametrize(("ahead", "horizon"), [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.0)])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_weights_belong_to_the_plan_that_a_batch_was_drawn_from(ahead, horizon, ratio):
    # Every epoch keeps another random subset, and weighs what it keeps alike: a batch that meets
    # the weights of another plan meets zeros.
    policy = pe.RandomSubset(ratio, rescale=True)
    engine = flowing(policy=policy, horizon=horizon)
    for _ in range(4):
        batch_weights = [
            observe_weights(engine, batch)
            for batch in drawn_ahead(engine.sampler(align=SIZE), ahead)
        ]
        assert len(batch_weights) == N // SIZE
        assert_bitwise(torch.cat(batch_weights).unique(), [engine.plan.weight_table[2]], "weights")
    assert engine.epoch >= 5
    dropped = torch.nonzero(engine.plan.weight_class == 0)[:SIZE, 0].tolist()
    assert not observe_weights(engine, dropped).any(), "control: another plan's samples weigh 0"


def observe_weights(engine: pe.PruneEngine, batch: list[int]) -> torch.Tensor:
    return engine.observe(torch.ones(len(batch)), torch.tensor(batch), reduction="none")


@pytest.mark.parametrize("horizon", [0.0, 0.3, 0.5])
def test_looking_ahead_changes_nothing(horizon):
    # The next plan is decided at a fixed moment of the training, not when a loader asks for it.
    runs = []
    for ahead in (0, 1, 2):
        engine = flowing(horizon=horizon)
        runs.append([framework_epoch(engine, ahead) for _ in range(5)])
        assert len({report.planned for report in engine.history}) > 1
    assert runs[0] == runs[1] == runs[2]


def test_control_another_horizon_decides_by_other_scores():
    runs = []
    for horizon in (0.0, 0.5):
        engine = flowing(horizon=horizon)
        runs.append([framework_epoch(engine) for _ in range(5)])
    assert runs[0] != runs[1]


def test_a_loader_beyond_the_horizon_is_refused_and_not_served_another_plan():
    engine = flowing()
    with pytest.raises(pe.PruneEngineError, match=r"too far ahead.*horizon=0.5.*fewer workers"):
        for _ in range(3):
            framework_epoch(engine, 8)


def test_workers_change_no_plan():
    def run(workers: int) -> list[list[int]]:
        engine = flowing(400, num_epochs=4)
        loader = engine.loader(Numbers(400), SIZE, num_workers=workers, prefetch_factor=None)
        served = []
        while not engine.done:
            for _, _, indices in loader:
                observe(engine, indices.tolist())
                served.append(indices.tolist())
        return served

    assert run(0) == run(2)


def test_the_work_is_done_when_all_pruning_epochs_are():
    engine = flowing(num_epochs=5)
    trained, epochs = 0, 0
    while not engine.done:
        trained += SIZE * len(framework_epoch(engine))
        epochs += 1
    assert epochs < 5, "less than the epochs that a framework would have run"
    assert (engine.epoch, engine.progress, len(engine.history)) == (5, 1.0, 5)
    assert trained == engine.history.samples_trained == sum(r.served for r in engine.history)
    assert engine.history.dsi == pytest.approx(1 - trained / (5 * N)), "of the work asked for"
    assert framework_epoch(engine) == [], "a loop without the flag trains nothing more"


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_state_of_the_end_is_loaded(broken_off):
    """What trainers save last."""
    engine = flowing(num_epochs=2)
    for batch in drawn_ahead(engine.sampler(align=SIZE), 0):
        observe(engine, batch)
    for batch in islice(batches(engine.sampler(align=SIZE), SIZE), 3 if broken_off else None):
        observe(engine, batch)
    if broken_off:
        engine.end_epoch(partial=True)
    assert engine.done
    again = flowing(num_epochs=2)
    again.load_state_dict(through_disk(engine.state_dict()))
    assert again.done and figures(again) == figures(engine)
    assert_bitwise(again.scores(), engine.scores(), "scores")
    assert list(again.sampler(align=SIZE)) == []


def test_what_is_broken_off_is_reported():
    engine = flowing(num_epochs=5)
    framework_epoch(engine)
    for batch in batches(engine.sampler(align=SIZE), SIZE):
        observe(engine, batch)
        if engine.cursor >= 20 and engine.epoch == 1:
            break
    report = engine.end_epoch(partial=True)
    assert (report.epoch, report.partial, report.served) == (1, True, engine.history[1].served)
    assert report.served == report.observed
    assert report.missing > report.dropped_tail
    nominal = engine.history.nominal_trained
    assert N < nominal < 2 * N, "the share of the epoch that was run"
    framework_epoch(engine)
    assert engine.history[2].epoch == 2
    assert engine.history[2].missing == engine.history[2].dropped_tail


def test_an_optimizer_step_of_several_batches_never_crosses_an_epoch():
    engine = flowing(num_epochs=6)
    for _ in range(3):
        for batch in batches(engine.sampler(batch_size=SIZE, accumulate=2), 2 * SIZE):
            for half in (batch[:SIZE], batch[SIZE:]):
                epoch = engine.epoch
                observe(engine, half)
                assert half is not batch[SIZE:] or engine.epoch == epoch
    assert {report.served % (2 * SIZE) for report in engine.history} == {0}


def test_a_step_that_observes_twice_is_one_step():
    once, twice = flowing(), flowing()
    for _ in range(3):
        for first, second in zip(
            batches(once.sampler(align=SIZE), SIZE),
            batches(twice.sampler(align=SIZE), SIZE),
            strict=True,
        ):
            assert first == second
            losses, indices = losses_at(first, once.epoch), torch.tensor(second)
            once.observe(losses, torch.tensor(first))
            for _ in range(2):
                twice.observe(losses, indices)
            assert (once.epoch, once.cursor) == (twice.epoch, twice.cursor)
    assert once.epoch > 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers_and_prefetch(workers):
    n = 4 * N
    engine = flowing(n, policy=pe.RandomSubset(0.5, rescale=True))
    loader = engine.loader(Numbers(n), SIZE, num_workers=workers, generator=torch.Generator())
    for _ in range(3):
        assert len(loader) == n // SIZE
        for x, _, indices in loader:
            assert_bitwise(x, 10 * indices, "data")
            weights = observe_weights(engine, indices.tolist())
            assert_bitwise(weights.unique(), [engine.plan.weight_table[2]], "weights")
    assert engine.epoch > 4


def test_a_batch_across_two_epochs_is_refused_not_weighed_wrong():
    engine = flowing()
    with pytest.raises(pe.PruneEngineError, match="align"):
        for _ in range(3):
            for batch in batches(engine.sampler(), 32):
                observe(engine, batch)


def test_coverage_is_audited_at_every_turn_of_an_epoch():
    engine = flowing()
    with pytest.raises(pe.CoverageError, match="epoch 0: 50 of 100"):
        for batch in (b for _ in range(3) for b in batches(engine.sampler(align=SIZE), SIZE)):
            observe(engine, batch[::2] * 2)  # half of each batch, twice
    assert (engine.epoch, len(engine.history)) == (0, 0)
    forgiving = flowing(coverage="ignore")
    for batch in (b for _ in range(3) for b in batches(forgiving.sampler(align=SIZE), SIZE)):
        observe(forgiving, batch[::2] * 2)
    assert forgiving.history[0].missing == 50


@pytest.mark.parametrize("at", [4, 13, 17])
def test_a_state_saved_after_a_skipped_step_knows_where_it_was(at):
    whole, engine, resumed = flowing(), flowing(), flowing()
    want = [batch for _ in range(3) for batch in framework_epoch(whole)]
    seen: list[list[int]] = []
    while len(seen) < at:
        for batch in batches(engine.sampler(align=SIZE), SIZE):
            seen.append(batch)
            if len(seen) != at - 1:  # the last but one is skipped by a guard
                observe(engine, batch)
            if len(seen) == at:
                break
    assert seen == want[:at]
    resumed.load_state_dict(through_disk(engine.state_dict()))
    assert next(batches(resumed.sampler(align=SIZE), SIZE)) == want[at]


def test_annealing_counts_pruning_epochs():
    engine = flowing(num_epochs=8, policy=pe.InfoBatch(0.5, delta=0.75))
    while not engine.done:
        framework_epoch(engine)
    planned = [report.planned for report in engine.history]
    assert planned[0] == planned[6] == planned[7] == N, "delta is reached"
    assert all(kept < N for kept in planned[1:6])


def test_progress_is_the_share_of_pruning_epochs():
    engine = flowing(num_epochs=2, policy=pe.KeepAll())
    marks = [engine.progress]
    while not engine.done:
        for batch in drawn_ahead(engine.sampler(align=SIZE), 0):
            observe(engine, batch)
            marks.append(engine.progress)
    assert marks == [step / 20 for step in range(21)]


def test_what_belongs_to_the_other_mode_is_refused():
    engine = flowing()
    with pytest.raises(pe.PruneEngineError, match=r"end_epoch\(partial=True\)"):
        engine.end_epoch()
    with pytest.raises(ValueError, match="mode='steps' is no more: mode='flow'"):
        pe.PruneEngine(N, pe.KeepAll(), mode="steps", num_epochs=3)
    with pytest.raises(pe.StateMismatchError, match="the state is of mode='steps'"):
        engine.load_state_dict(engine.state_dict() | {"mode": "steps"})
    with pytest.raises(pe.PruneEngineError, match="epochs"):
        next(engine.epochs())
    engine.sampler().set_epoch(7)  # the framework's epochs are its own
    assert engine.epoch == 0


def test_an_epoch_that_keeps_nothing_is_said():
    engine = flowing(1, policy=pe.RandomSubset(0.999), seed=1)
    with pytest.raises(pe.PruneEngineError, match="keeps 0 samples"):
        for _ in range(5):
            for batch in batches(engine.sampler(), 1):
                observe(engine, batch)


@pytest.mark.parametrize("at", [1, 5, 9, 14, 20, 23])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_restored_run_continues_bit_for_bit(at, ahead):
    whole, stopped, resumed = (flowing(num_epochs=20) for _ in range(3))
    want = train(whole, 40, ahead)
    got = train(stopped, at, ahead)
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    got += train(resumed, 40 - at, ahead, at)
    assert got == want
    assert_bitwise(resumed.scores(), whole.scores(), "scores")
    assert figures(resumed) == figures(whole)
    assert resumed.progress == whole.progress


def train(engine: pe.PruneEngine, count: int, ahead: int, skipped: int = 0) -> list[list[int]]:
    """Train some batches in framework epochs of ten, the first of which may have begun before."""
    trained: list[list[int]] = []
    while len(trained) < count:
        rest = N - (skipped + len(trained)) * SIZE % N
        stream = islice(engine.sampler(align=SIZE), rest)
        for batch in islice(drawn_ahead(stream, ahead), count - len(trained)):
            observe(engine, batch)
            trained.append(batch)
    return trained
