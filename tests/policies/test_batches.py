# SPDX-License-Identifier: Apache-2.0
"""Fixed batches: dealt once, served whole and in a row, re-formed by a plain DataLoader."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from _assertions import assert_bitwise
from _runs import Numbers, batches, epochs, serve
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

import prune_engine as pe
from prune_engine.data.sampler import check_fixed
from prune_engine.policies.batches.fixed import FixedBatches

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def engine_of(n: int, kept: tuple[int, ...], size: int = 8, **options) -> pe.PruneEngine:
    names = ("shuffle_batches", "drop_last")
    policy = pe.RandomBatches(size, kept=kept, **{k: options.pop(k) for k in names if k in options})
    return pe.PruneEngine(n, policy, num_epochs=8, **options)


def formed(engine: pe.PruneEngine, size: int = 8) -> list[list[int]]:
    return list(batches(engine.sampler(), size))


@given(
    n=st.integers(1, 300), size=st.integers(1, 40), drop_last=st.booleans(), seed=st.integers(0, 9)
)
def test_every_sample_is_in_one_batch_or_left_out(n, size, drop_last, seed):
    if drop_last and n < size:
        with pytest.raises(ValueError, match="batch_size must be at most"):
            FixedBatches(n, size, drop_last, seed, CPU, "auto")
        return
    fixed = FixedBatches(n, size, drop_last, seed, CPU, "auto")
    everyone = fixed.members(torch.arange(fixed.num_batches))
    assert len(set(everyone.tolist())) == len(everyone) == fixed.dealt
    assert n - fixed.dealt == (n % size if drop_last else 0)
    assert fixed.sizes().tolist() == [fixed.size_of(b) for b in range(fixed.num_batches)]
    cut = everyone.split(fixed.sizes().tolist())
    for b, members in enumerate(cut):
        assert set(fixed.batch_of[members.long()].tolist()) == {b}
    left = set(range(n)) - set(everyone.tolist())
    assert all(int(fixed.batch_of[i]) == fixed.num_batches for i in left)


def test_membership_is_a_function_of_the_seed_and_looks_random():
    one, two, other = (FixedBatches(4096, 64, False, seed, CPU, "auto") for seed in (1, 1, 2))
    assert_bitwise(one.batch_of, two.batch_of, "same seed")
    assert not torch.equal(one.batch_of, other.batch_of)
    reference = FixedBatches(4096, 64, False, 1, CPU, "reference")
    assert_bitwise(reference.batch_of, one.batch_of, "another backend")
    together = (one.batch_of[:-1] == one.batch_of[1:]).double().mean()  # neighbours in the data
    assert abs(float(together) - 1 / 64) < 0.01


@given(
    n=st.integers(1, 200),
    size=st.integers(1, 30),
    keep=st.integers(0, 40),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_order_is_whole_batches_in_a_row_and_random_access(n, size, keep, shuffle, epoch):
    fixed = FixedBatches(n, size, False, 3, CPU, "auto")
    alive = torch.arange(fixed.num_batches) % 41 < keep
    kept = fixed.keep(alive, shuffle)
    samples = kept.samples()
    order = kept.order(samples, range(len(samples)), epoch)
    assert sorted(order.tolist()) == sorted(samples.tolist())
    rows = [fixed.batch_of[part.long()] for part in order.split(size)] if len(order) else []
    assert all(len(set(row.tolist())) == 1 for row in rows)
    turns = [int(row[0]) for row in rows]
    listed = alive.nonzero()[:, 0].tolist()
    assert sorted(turns) == listed
    assert shuffle or turns == listed
    if rows and len(rows[-1]) < size:
        assert turns[-1] == fixed.num_batches - 1, "the incomplete one is last"
    some = torch.arange(len(order))[::3]
    assert_bitwise(kept.order(samples, some, epoch), order[::3], "any positions")
    assert_bitwise(kept.order(samples, range(0, len(order), 3), epoch), order[::3], "a range")


def test_a_position_beyond_the_end_is_refused():
    plan = engine_of(20, (3,)).plan
    for wrong in (range(21), range(-1, 3), torch.tensor([3, 20]), torch.tensor([-1])):
        with pytest.raises(IndexError, match=r"positions must be in 0\.\.19"):
            plan.order(wrong)
    assert plan.order(range(0)).tolist() == plan.order(torch.tensor([], dtype=torch.int64)).tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_the_same_in_every_epoch_and_their_order_by_choice(shuffle):
    engine = engine_of(100, (13, 13, 13, 9, 9), shuffle_batches=shuffle)
    found = []
    for _ in range(5):
        found.append(formed(engine))
        serve(engine, 8)
        engine.end_epoch()
    sets = [{frozenset(batch) for batch in epoch} for epoch in found]
    assert sets[0] == sets[1] == sets[2] > sets[3] == sets[4]
    assert [len(epoch[-1]) for epoch in found[:3]] == [4] * 3, "the incomplete one is served last"
    inside = {frozenset(batch): batch for batch in found[0]}
    assert all(inside[frozenset(batch)] == batch for epoch in found for batch in epoch)
    assert (found[0] == found[1]) != shuffle


def test_an_incomplete_batch_is_kept_or_left_out():
    kept, left = (engine_of(100, (13,), drop_last=drop) for drop in (False, True))
    assert [len(batch) for batch in formed(kept)] == [8] * 12 + [4]
    assert [len(batch) for batch in formed(left)] == [8] * 12
    assert left.plan.num_kept == 96
    serve(left, 8)
    report = left.end_epoch()
    assert (report.missing, report.extra, report.dsi) == (0, 0, 0.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_re_forms_the_batches(workers):
    engine = engine_of(100, (13, 9))
    serve(engine, 8)
    engine.end_epoch()
    want = formed(engine)
    seeds = torch.Generator().manual_seed(0)
    numbers = engine.dataset(Numbers(100))
    loader = DataLoader(numbers, 8, sampler=engine.sampler(), num_workers=workers, generator=seeds)
    assert [indices.tolist() for *_, indices in loader] == want
    own = engine.loader(Numbers(100), 8, num_workers=workers)
    assert [indices.tolist() for *_, indices in own] == want
    assert len(own) == len(want)
    assert list(BatchSampler(engine.sampler(), 8, drop_last=False)) == want


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_hold_equal_shares_of_each_batch(world):
    engine = engine_of(100, (13, 10))
    for _ in range(2):
        whole = formed(engine)
        shares = [
            list(batches(engine.sampler(shard=(rank, world)), 8 // world)) for rank in range(world)
        ]
        for turn, batch in enumerate(whole):
            if len(batch) % world == 0:
                assert sorted(i for share in shares for i in share[turn]) == sorted(batch)
        serve(engine, 8)
        engine.end_epoch()


def test_what_would_tear_a_batch_apart_is_refused():
    engine = engine_of(100, (13,))
    for align in (1, 2, 8, 24):
        engine.sampler(align=align)
    with pytest.raises(ValueError, match=r"align must be a multiple or a divisor .*8, got 12"):
        engine.sampler(align=12)
    with pytest.raises(ValueError, match="multiple of the 3 ranks, got 8"):
        engine.sampler(shard=(0, 3))
    with pytest.raises(ValueError, match=r"batch_size must divide .*8 over 1 ranks, got 6"):
        engine.loader(Numbers(100), 6)
    assert len(list(engine.loader(Numbers(100), 4))) == 25, "a divisor: accumulation"
    with pytest.raises(ValueError, match="align"):
        check_fixed(8, 3, 1)


def test_an_arrangement_that_does_not_list_what_is_kept_is_refused():
    @dataclass(frozen=True)
    class Liar(pe.RandomBatches):
        def rule(self, buffer, progress, memory=None):
            selection = super().rule(buffer, progress, memory)
            selection.weight_class[:4] = 0
            return selection

    with pytest.raises(ValueError, match=r"arrangement must list the 9[67] samples"):
        pe.PruneEngine(100, Liar(8, kept=(13,)), num_epochs=2)


def test_an_empty_data_set_has_no_batches():
    engine = engine_of(0, (1,))
    assert engine.plan.num_kept == 0
    assert formed(engine) == []
    engine.end_epoch()
    assert not engine.history[0].ended_early


def test_memory_is_four_bytes_a_sample_and_four_a_kept_one():
    n = 50_000
    engine = engine_of(n, (n // 8, n // 16))
    tensors = [
        tensor
        for part in (engine.buffer, engine.plan, engine._run.memory.batches)
        for tensor in vars(part).values()
        if isinstance(tensor, torch.Tensor) and tensor.numel() >= n
    ]
    long = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    assert sorted(long.values()) == [n, 4 * n, 4 * n, 8 * n]  # class, kept, batch, record
    epochs(engine, 1, 8 * 1000 // 1000 * 8)
    assert engine.plan.kept.nbytes == 4 * (n // 16) * 8
