# SPDX-License-Identifier: Apache-2.0
"""DeviceLoader and EpochPlan.batches: the DataLoader's batches, made where the data lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, Numbers, epochs, infobatch, losses_at, through_disk
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

import prune_engine as pe
from prune_engine.epoch.plan import CHUNK

SIZE = 16
ROWS = (torch.arange(N) * 10, torch.arange(N) % 3)  # what Numbers serves


def same(got: Sequence[Sequence[Tensor]], want: Sequence[Sequence[Tensor]]) -> None:
    assert len(got) == len(want)
    for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        for name, a, b in zip(("x", "y", "indices"), mine, theirs, strict=True):
            assert_bitwise(a, b, f"{name} of batch {number}")


def trained(engine: pe.PruneEngine, loader: Any) -> list[Any]:
    """Serve and observe an epoch, end it, return its batches."""
    served = []
    for batch in loader:
        engine.observe(losses_at(batch[-1], engine.epoch), batch[-1])
        served.append(tuple(batch))
    engine.end_epoch()
    return served


@given(n=st.integers(0, 300), size=st.integers(1, 70), dtype=st.sampled_from([None, torch.int64]))
def test_batches_of_a_plan_are_its_order_cut_up(n, size, dtype):
    engine = infobatch(n)
    if n:
        epochs(engine, 1)
    batches = engine.plan.batches(size, **({} if dtype is None else {"dtype": dtype}))
    cut = list(engine.plan.indices.to(dtype or torch.int32).split(size)) if n else []
    assert len(batches) == len(cut)
    for number, want in enumerate(cut):
        assert_bitwise(batches[number], want, f"batch {number}")
        assert_bitwise(batches[number - len(cut)], want, f"batch {number} from the end")
    for number, (got, want) in enumerate(zip(batches, cut, strict=True)):
        assert_bitwise(got, want, f"iterated batch {number}")
    for outside in (len(cut), -len(cut) - 1):
        with pytest.raises(IndexError):
            batches[outside]


def test_batches_longer_than_a_chunk_and_shares_of_ranks():
    plan = pe.PruneEngine(3 * CHUNK + 5, pe.KeepAll(), num_epochs=1).plan
    order = plan.indices
    assert_bitwise(torch.cat(list(plan.batches(1000))), order, "small batches")
    large = list(plan.batches(CHUNK + 1))
    assert [len(batch) for batch in large] == [CHUNK + 1, CHUNK + 1, CHUNK + 1, 2]
    assert_bitwise(torch.cat(large), order, "large batches")
    share = plan.batches(7, range(2, plan.num_kept, 3))
    assert_bitwise(torch.cat(list(share)), order[2::3], "a rank's share")
    assert_bitwise(share[4], order[2::3][28:35], "a batch of it")


def test_batches_refuse_what_does_not_fit():
    plan = infobatch().plan
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        plan.batches(0)
    with pytest.raises(TypeError, match=r"dtype must be torch.int32 or torch.int64.*float32"):
        plan.batches(1, dtype=torch.float32)


@pytest.mark.parametrize(
    "data", [ROWS, list(ROWS), TensorDataset(*ROWS)], ids=["tuple", "list", "ds"]
)
def test_serves_the_batches_of_the_data_loader(data):
    ours, theirs = infobatch(), infobatch()
    loader = ours.device_loader(data, SIZE)
    plain = theirs.loader(Numbers(), SIZE)
    lengths = []
    for _ in range(3):
        assert len(loader) == len(plain)
        lengths.append(len(loader))
        got = trained(ours, loader)
        same(got, trained(theirs, plain))
        assert len(got) == lengths[-1]
    assert lengths[1] < lengths[0], "the second epoch is pruned"
    assert {batch.dtype for batch in got[0]} == {torch.int64}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_an_epoch_as_samplers_do(world):
    engine = infobatch(1000)
    epochs(engine, 1)
    rows = [torch.arange(1000)]
    shares = [engine.device_loader(rows, 8, shard=(rank, world)) for rank in range(world)]
    for rank, loader in enumerate(shares):
        sampler = engine.sampler(shard=(rank, world), align=8 * world)
        got = torch.cat([indices for _, indices in loader])
        assert_bitwise(got, list(sampler), f"rank {rank}")
        assert len(loader) * 8 == len(sampler), "every batch is full"
    loose = engine.device_loader(rows, 8, align=1)
    assert sum(len(indices) for _, indices in loose) == engine.plan.num_kept


def test_a_resumed_run_serves_the_rest_with_the_same_augmentation():
    engine = infobatch()
    epochs(engine, 1)
    loader = engine.device_loader(ROWS, 8, augment=noisy)
    want = []
    for number, batch in enumerate(loader):
        want.append(batch)
        if number < 2:
            engine.observe(losses_at(batch[-1], engine.epoch), batch[-1])
        if number == 1:
            saved = through_disk(engine.state_dict())
    resumed = infobatch()
    resumed.load_state_dict(saved)
    rest = resumed.device_loader(ROWS, 8, augment=noisy)
    assert len(rest) == len(want) - 2
    same(list(rest), want[2:])


def noisy(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    x, y = batch
    noise = torch.rand(x.shape, generator=generator, device=generator.device)
    return x + noise, y


def test_augmentation_differs_by_batch_epoch_and_seed_and_repeats_itself():
    def drawn(engine: pe.PruneEngine) -> list[Tensor]:
        loader = engine.device_loader(ROWS, SIZE, augment=noisy)
        return [x - i * 10 for x, _, i in loader]

    engine = infobatch(seed=1)
    first = drawn(engine)
    assert_bitwise(torch.stack(first), torch.stack(drawn(engine)), "noise of the same epoch")
    epochs(engine, 1)
    everything = [*first, *drawn(engine), *drawn(infobatch(seed=2))]
    assert len({tuple(noise.tolist()) for noise in everything}) == len(everything)


def test_pruning_epochs_flow_from_epoch_to_epoch_as_in_the_data_loader():
    def make() -> pe.PruneEngine:
        return pe.PruneEngine(N, pe.InfoBatch(delta=1.0), num_epochs=9, mode="flow", seed=5)

    ours, theirs = make(), make()
    loader = ours.device_loader(ROWS, 10)
    plain = theirs.loader(Numbers(), 10)
    assert len(loader) == len(plain) == N // 10
    for _ in range(3):
        for mine, other in zip(loader, plain, strict=True):
            same([mine], [other])
            for engine, batch in ((ours, mine), (theirs, other)):
                engine.observe(losses_at(batch[-1], engine.epoch), batch[-1])
    assert ours.epoch == theirs.epoch > 0, "it went beyond the first epoch"


def test_nothing_kept_is_no_batch_and_few_kept_are_a_short_one():
    assert list(infobatch(0).device_loader([torch.zeros(0, 3)], 4)) == []
    ((x, indices),) = infobatch(3).device_loader([torch.arange(3)], 4)
    assert sorted(indices.tolist()) == sorted(x.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([torch.zeros(99)], ValueError, r"data\[0\] must have 100 rows, got shape \(99,\)"),
        ([torch.zeros(N), torch.tensor(1)], ValueError, r"data\[1\] must have 100 rows"),
        ([], ValueError, "at least one tensor"),
        ([[1] * N], TypeError, r"data\[0\] must be a tensor, got list"),
        (Numbers(), TypeError, "sequence of tensors or a TensorDataset, got Numbers"),
        (torch.zeros(N), TypeError, "got Tensor"),
    ],
)
def test_edge_case_07_data_that_do_not_fit(data, error, message):
    with pytest.raises(error, match=message):
        infobatch().device_loader(data, SIZE)


def test_edge_case_10_numbers_out_of_range():
    with pytest.raises(ValueError, match="batch_size"):
        infobatch().device_loader(ROWS, 0)
    with pytest.raises(ValueError, match="align"):
        infobatch().device_loader(ROWS, SIZE, align=0)
    with pytest.raises(ValueError, match="shard"):
        infobatch().device_loader(ROWS, SIZE, shard=(2, 2))
