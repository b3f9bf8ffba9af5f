# SPDX-License-Identifier: Apache-2.0
"""plan_levels: every sample in the class of its level, dropped by its own draw."""

from __future__ import annotations

import random

import _levels
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import epochs, int64, salts, seeds, sizes, threads
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import native


def levels_of(
    scores: list[float | None], target: int, least: int = 1, unseen: torch.Tensor | None = None
) -> pe.ops.Levels:
    counts = pe.ops.cells(int64(_levels.records_of(scores)))
    return pe.ops.solve_levels(counts, target, least=least, unseen=unseen)


@pytest.mark.parametrize("row", _levels.written()["plans"], ids=lambda row: row["name"])
def test_the_written_vectors(backend, row):
    scores = _levels.written_scores(row)
    case = (
        int64(_levels.records_of(scores)),
        *(row[name] for name in ("target", "least", "seed", "epoch")),
        0,
    )
    found = _levels.run(backends.load(backend), case)
    assert _levels.facts(found, row["classes"]) == _levels.written_facts(row)
    drawn = oracle.draws(len(scores), row["seed"], row["epoch"])
    assert drawn == row["draws"]


@given(
    num_samples=sizes,
    salt=salts,
    seed=seeds,
    epoch=epochs,
    share=st.floats(0, 1),
    unseen=st.sampled_from([None, -1.0, 1e-30, 0.6, 1e30]),
)
def test_a_plan_is_the_oracles(backend, num_samples, salt, seed, epoch, share, unseen):
    rng = random.Random(salt)
    some = _levels.random_scores(rng, min(num_samples, 300))  # the oracle is slow
    scores = (some * (num_samples // max(1, len(some)) + 1))[:num_samples] if some else []
    least = rng.choice([1, 100, 3000])
    score = None if unseen is None else torch.tensor([unseen])
    want = _levels.solve(_levels.counts_of(scores), round(share * num_samples), least, unseen)
    got = levels_of(scores, round(share * num_samples), least, score)
    records = int64(_levels.records_of(scores))
    classes, offsets = pe.ops.plan_levels(
        records, got.top, got.cut, seed=seed, epoch=epoch, unseen=score, backend=backend
    )
    planned = _levels.plan(scores, want, seed, epoch, unseen=unseen)
    assert_bitwise(classes, torch.tensor(planned, dtype=torch.uint8), "weight_class")
    assert offsets.tolist() == oracle.block_offsets(planned)


@given(salt=salts, thread_count=threads, first=st.sampled_from([0, 4096, 2**40, 2**61]))
def test_threads_and_shards_do_not_show(num_threads, salt, thread_count, first):
    scores = _levels.random_scores(random.Random(salt), 700) * 30
    records, got = int64(_levels.records_of(scores)), levels_of(scores, 9000)
    made = {
        backend: pe.ops.plan_levels(
            records, got.top, got.cut, seed=5, epoch=2, first=first, backend=backend
        )
        for backend in ("reference", "cpu")
    }
    with num_threads(thread_count):
        again = pe.ops.plan_levels(records, got.top, got.cut, seed=5, epoch=2, first=first)
    for name, a, b, c in zip(
        ("weight_class", "block_offsets"), made["cpu"], made["reference"], again, strict=True
    ):
        assert_bitwise(a, b, name)
        assert_bitwise(c, b, name)
    if first == 0:  # a later shard's draws are those of its place in the data set
        part, _ = pe.ops.plan_levels(records[8192:], got.top, got.cut, seed=5, epoch=2, first=8192)
        assert_bitwise(part, made["cpu"][0][8192:], "weight_class")
        other, _ = pe.ops.plan_levels(records[8192:], got.top, got.cut, seed=5, epoch=2)
        assert other.tolist() != part.tolist() or len(set(part.tolist())) == 1


def test_a_plan_can_be_written_over_an_old_one(backend):
    scores = _levels.random_scores(random.Random(0), 6000)
    records, got = int64(_levels.records_of(scores)), levels_of(scores, 3000)
    out = torch.full((6000,), 7, dtype=torch.uint8)
    version = out._version
    keys = {"seed": 1, "epoch": 1, "backend": backend}
    classes, offsets = pe.ops.plan_levels(records, got.top, got.cut, out=out, **keys)
    assert classes is out and out._version > version
    want = pe.ops.plan_levels(records, got.top, got.cut, **keys)
    assert_bitwise(out, want[0], "weight_class")
    assert_bitwise(offsets, want[1], "block_offsets")


def test_edge_case_01_no_samples(backend):
    got = levels_of([], 0)
    classes, offsets = pe.ops.plan_levels(
        int64([]), got.top, got.cut, seed=0, epoch=0, backend=backend
    )
    assert (classes.tolist(), offsets.tolist()) == ([], [0])


def test_edge_case_07_what_does_not_fit(backend):
    records, got = int64(_levels.records_of([1.0, 2.0])), levels_of([1.0, 2.0], 1)
    key = {"seed": 0, "epoch": 0, "backend": backend}
    with pytest.raises(TypeError, match=r"top must be int32, got torch\.int64"):
        pe.ops.plan_levels(records, got.top.long(), got.cut, **key)
    with pytest.raises(ValueError, match="cut must be a vector of 256 elements"):
        pe.ops.plan_levels(records, got.top, got.cut[:9], **key)
    with pytest.raises(ValueError, match="first must be a multiple of 4096"):
        pe.ops.plan_levels(records, got.top, got.cut, first=5, **key)
    with pytest.raises(ValueError, match="out must be a vector of 2 elements"):
        pe.ops.plan_levels(records, got.top, got.cut, out=torch.empty(3).byte(), **key)
    with pytest.raises(ValueError, match="unseen must be a vector of 1 elements"):
        pe.ops.plan_levels(records, got.top, got.cut, unseen=torch.zeros(2), **key)
    with pytest.raises(TypeError, match="unseen must be float32"):
        pe.ops.plan_levels(records, got.top, got.cut, unseen=got.top, **key)


def test_the_never_seen_are_of_the_class_of_their_score_at_every_place(backend, num_threads):
    """Half of three blocks is unseen, of a score that not every draw keeps, then of one it does."""
    scores = [None if i % 2 else 1.0 + i % 5 for i in range(3 * 4096 + 7)]
    records, got = int64(_levels.records_of(scores)), levels_of(scores, 4000, 900, torch.ones(1))
    for unseen, whole in ((1.0, False), (1e9, True)):
        with num_threads(2):
            classes, offsets = pe.ops.plan_levels(
                *(records, got.top, got.cut),
                seed=3,
                epoch=1,
                unseen=torch.tensor([unseen]),
                backend=backend,
            )
        want = _levels.plan(
            scores,
            _levels.solve(_levels.counts_of(scores), 4000, 900, 1.0),
            *(3, 1),
            unseen=unseen,
        )
        assert_bitwise(classes, torch.tensor(want, dtype=torch.uint8), "weight_class")
        assert offsets[-1] == int((classes > 0).sum())
        assert bool((classes[1::2] == 1).all()) == whole
    assert classes.tolist() != _levels.plan(
        scores, _levels.solve(_levels.counts_of(scores), 4000, 900), 3, 1
    ), "control: levels in which they stay are others"


def test_levels_that_are_none_are_refused_on_a_cpu():
    records, got = int64(_levels.records_of([1.0])), levels_of([1.0], 1)
    for top, cut, words in (
        (got.top * 0, got.cut, "top must be a cell in 4112..8448, got 0"),
        (got.top, got.cut - 1, "cut must be in 0..65536, got -1"),
        (got.top, got.cut + 1, "cut must be in 0..65536, got 65537"),
    ):
        with pytest.raises(RuntimeError, match=words):
            pe.ops.plan_levels(records, top, cut, seed=0, epoch=0, backend="cpu")
    arguments = (records, got.top, got.cut, 0, 0, torch.empty(1).byte(), 0)
    with pytest.raises(RuntimeError, match=r"unseen must be a cell in 4112\.\.8448, got 8449"):
        native.plan_levels(*arguments, torch.tensor([8449]).int())
    with pytest.raises(RuntimeError, match="unseen must have 1 elements"):
        native.plan_levels(*arguments, torch.zeros(2).int())


def test_opcheck_and_compile():
    records, got = int64(_levels.records_of([1.0, None])), levels_of([1.0, None], 1)
    classes = torch.empty(2, dtype=torch.uint8)
    for cell in (None, got.top):
        torch.library.opcheck(
            native.plan_levels, (records, got.top, got.cut, 0, 0, classes, 0, cell)
        )

    def step(x: torch.Tensor, unseen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pe.ops.plan_levels(x, got.top, got.cut, seed=0, epoch=0, unseen=unseen)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for unseen in (None, torch.ones(1)):
        for a, b in zip(compiled(records, unseen), step(records, unseen), strict=True):
            assert_bitwise(a, b, "plan")
