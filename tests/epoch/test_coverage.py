# SPDX-License-Identifier: Apache-2.0
"""The coverage audit: were exactly the planned samples seen, and if not, why."""

from __future__ import annotations

import math

import pytest
import torch
from _runs import N, batches, epochs, infobatch, losses_at, observe

import prune_engine as pe


def sharded_twice(engine: pe.PruneEngine) -> list[list[int]]:
    """Observe every other batch, as if a framework sharded the sampler again; return the others."""
    served = list(batches(engine.sampler(), 10))
    for batch in served[::2]:
        observe(engine, batch)
    return served[1::2]


def test_coverage_raises_names_the_cause_and_changes_nothing():
    engine = infobatch()
    left = sharded_twice(engine)
    with pytest.raises(pe.CoverageError, match=r"50 of 100 .*framework shards the sampler again"):
        engine.end_epoch()
    assert (engine.epoch, len(engine.history), engine.plan.epoch) == (0, 0, 0)
    for batch in left:  # the samples come after all
        observe(engine, batch)
    assert engine.end_epoch().missing == 0


def test_coverage_explains_drop_last():
    engine = infobatch()
    for batch in batches(engine.sampler(), 16):
        if len(batch) == 16:
            observe(engine, batch)
    with pytest.raises(pe.CoverageError, match=r"4 of 100 .*drop_last.*align=batch_size"):
        engine.end_epoch()


def test_coverage_warns_or_is_silent_when_told():
    engine = infobatch(coverage="warn")
    sharded_twice(engine)
    with pytest.warns(RuntimeWarning, match="50 of 100"):
        assert engine.end_epoch().missing == 50
    engine = infobatch(coverage="ignore")
    sharded_twice(engine)
    assert engine.end_epoch().missing == 50


def test_coverage_names_an_epoch_without_observe():
    with pytest.raises(pe.CoverageError, match="observe was never called"):
        infobatch().end_epoch()


def test_coverage_finds_samples_that_were_not_planned():
    engine = infobatch()
    epochs(engine, 1)
    assert engine.plan.num_kept < N
    for batch in batches(iter(range(N)), 10):  # a loader without the engine's sampler
        observe(engine, batch)
    extra = N - engine.plan.num_kept
    with pytest.raises(pe.CoverageError, match=rf"{extra} samples.*engine\.sampler\(\)"):
        engine.end_epoch()


def test_coverage_finds_indices_that_do_not_belong_to_the_losses():
    engine = infobatch()
    for batch in batches(engine.sampler(), 10):
        observe(engine, [batch[0]] * len(batch))
    with pytest.raises(pe.CoverageError, match="indices do not belong to the losses"):
        engine.end_epoch()


def test_coverage_forgives_the_dropped_tail_and_non_finite_losses():
    engine = infobatch()
    lost = 0
    for batch in batches(engine.sampler(align=16), 16):
        losses = losses_at(batch)
        losses[3] = math.nan
        lost += 1
        engine.observe(losses, torch.tensor(batch))
    report = engine.end_epoch()
    assert (report.dropped_tail, report.nonfinite, report.missing) == (4, lost, 4 + lost)
