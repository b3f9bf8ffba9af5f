# SPDX-License-Identifier: Apache-2.0
"""mode="steps": framework epochs of constant length, pruning epochs flow through them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, Numbers, batches, figures, observe, through_disk

import prune_engine as pe

SIZE = 10


def flowing(n: int = N, total_steps: int = 60, ratio: float = 0.5, **options: Any):
    """Return an engine without epochs."""
    policy = options.pop("policy", pe.InfoBatch(ratio, delta=1.0))
    return pe.PruneEngine(n, policy, mode="steps", total_steps=total_steps, **options)


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


@pytest.mark.parametrize("ahead", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_weights_belong_to_the_plan_that_a_batch_was_drawn_from(ahead, ratio):
    # Every epoch keeps another random subset, and weighs what it keeps alike: a batch that meets
    # the weights of another plan meets zeros.
    policy = pe.RandomSubset(ratio, rescale=True)
    engine = flowing(policy=policy)
    for _ in range(4):
        batch_weights = [
            observe_weights(engine, batch)
            for batch in drawn_ahead(engine.sampler(align=SIZE), ahead)
        ]
        assert len(batch_weights) == N // SIZE
        assert_bitwise(torch.cat(batch_weights).unique(), [engine.plan.weight_table[2]], "weights")
    assert engine.epoch >= 6
    dropped = torch.nonzero(engine.plan.weight_class == 0)[:SIZE, 0].tolist()
    assert not observe_weights(engine, dropped).any(), "control: another plan's samples weigh 0"


def observe_weights(engine: pe.PruneEngine, batch: list[int]) -> torch.Tensor:
    return engine.observe(torch.ones(len(batch)), torch.tensor(batch), reduction="none")


def test_looking_ahead_changes_no_sample_but_what_late_scores_decide():
    # A random subset does not look at scores: looking ahead must change nothing at all.
    runs = []
    for ahead in (0, 3, 100):
        engine = flowing(policy=pe.RandomSubset(0.5))
        runs.append([framework_epoch(engine, ahead) for _ in range(4)])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers_and_prefetch(workers):
    engine = flowing(policy=pe.RandomSubset(0.8, rescale=True))
    loader = engine.loader(Numbers(), SIZE, num_workers=workers, generator=torch.Generator())
    for _ in range(3):
        assert len(loader) == N // SIZE
        for x, _, indices in loader:
            assert_bitwise(x, 10 * indices, "data")
            weights = observe_weights(engine, indices.tolist())
            assert_bitwise(weights.unique(), [engine.plan.weight_table[2]], "weights")
    assert engine.epoch > 6


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


def test_annealing_counts_steps():
    engine = flowing(total_steps=60, policy=pe.InfoBatch(0.5, delta=0.5))
    begins, steps = [], 0
    epoch = -1
    for _ in range(6):
        for batch in drawn_ahead(engine.sampler(align=SIZE), 0):
            observe(engine, batch)
            steps += 1
            if engine.epoch != epoch:
                epoch = engine.epoch
                begins.append((steps, engine.plan.num_kept))
    assert engine.progress == 1.0
    assert all(kept < N for at, kept in begins if 1 < at <= 30)
    assert [kept for at, kept in begins if at > 31] == [N] * len([1 for at, _ in begins if at > 31])
    assert begins[-1][0] > 31, "control: an epoch began after annealing"


def test_progress_is_the_share_of_steps():
    engine = flowing(total_steps=20)
    marks = [engine.progress]
    for batch in drawn_ahead(engine.sampler(align=SIZE), 0):
        observe(engine, batch)
        marks.append(engine.progress)
    assert marks == [step / 20 for step in range(11)]


def test_what_belongs_to_the_other_mode_is_refused():
    engine = flowing()
    with pytest.raises(pe.PruneEngineError, match="mode='epoch'"):
        engine.end_epoch()
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
@pytest.mark.parametrize("ahead", [0, 3])
def test_a_restored_run_continues_bit_for_bit(at, ahead):
    whole, stopped, resumed = flowing(), flowing(), flowing()
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
