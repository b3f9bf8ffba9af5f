# SPDX-License-Identifier: Apache-2.0
"""The real DataLoader: workers, prefetch, subsets, collate functions, lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from _assertions import assert_bitwise
from _processes import start_ranks
from _runs import N, Numbers, Records, epochs, infobatch, losses_at
from torch.utils.data import DataLoader, Subset, default_collate

import prune_engine as pe

BATCH = 16


def loader_of(engine: pe.PruneEngine, dataset: Any, size: int = BATCH, **options: Any) -> Any:
    """Return the engine's loader; its worker seeds come from elsewhere than the global generator.

    Any ``DataLoader`` takes one number from the global generator per epoch, to seed its workers.
    """
    return engine.loader(dataset, size, generator=torch.Generator(), **options)


def train(engine: pe.PruneEngine, loader: Any) -> list[int]:
    """Run one epoch over tuple batches, checking each item; return the indices served."""
    served: list[int] = []
    for x, y, indices in loader:
        assert_bitwise(x, 10 * indices, "data of the indices")
        assert_bitwise(y, indices % 3, "labels of the indices")
        engine.observe(losses_at(indices, engine.epoch), indices)
        served += indices.tolist()
    return served


def two_epochs(**options: Any) -> list[list[int]]:
    """Run two epochs, the second pruned, with one loader made beforehand; return the orders."""
    engine = infobatch(num_epochs=3)
    loader = loader_of(engine, Numbers(), **options)
    orders = []
    for _ in range(2):
        length = len(loader)
        orders.append(train(engine, loader))
        assert len(orders[-1]) == length * BATCH, "every batch is full and len() was right"
        engine.end_epoch()
    return orders


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    """The orders without workers."""
    return two_epochs()


def test_without_workers(plain):
    assert len(set(plain[0])) == N // BATCH * BATCH
    assert 0 < len(plain[1]) < len(plain[0]), "the second epoch is shorter"


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4},
        {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    ],
    ids=["fork", "persistent", "spawn"],
)
def test_workers_serve_the_same_order(plain, options):
    assert two_epochs(**options) == plain


def test_out_of_order_workers_serve_the_same_samples(plain):
    # Whatever order the batches come in, each carries its own indices.
    orders = two_epochs(num_workers=2, in_order=False)
    assert [sorted(order) for order in orders] == [sorted(order) for order in plain]


def test_an_ordinary_loader_around_the_engines_sampler(plain):
    engine = infobatch(num_epochs=3)
    dataset, sampler = engine.dataset(Numbers()), engine.sampler(align=BATCH)
    assert (
        train(engine, DataLoader(dataset, BATCH, sampler=sampler, generator=torch.Generator()))
        == plain[0]
    )
    engine = infobatch(num_epochs=3)
    loose = DataLoader(dataset, BATCH, sampler=engine.sampler(), generator=torch.Generator())
    assert len(loose) == -(-N // BATCH)
    assert len(train(engine, loose)) == N, "without align the short batch is served too"


def test_dict_items():
    engine = infobatch()
    for batch in loader_of(engine, Records()):
        assert sorted(batch) == ["sample_index", "x", "y"]
        assert_bitwise(batch["x"], 10 * batch["sample_index"], "data of the indices")
        engine.observe(losses_at(batch["sample_index"]), batch["sample_index"])
    assert engine.end_epoch().observed == N // BATCH * BATCH


def test_subset():
    subset = Subset(Numbers(), list(range(N - 1, -1, -2)))
    engine = pe.PruneEngine(subset, pe.InfoBatch(delta=1.0), num_epochs=2)
    for x, _, indices in loader_of(engine, subset, align=1):
        assert_bitwise(x, 10 * (N - 1 - 2 * indices), "data of the subset's positions")
        engine.observe(losses_at(indices), indices)
    assert engine.end_epoch().observed == N // 2


def pairs(items: list[Any]) -> tuple[Any, torch.Tensor]:
    """Collate by hand: inputs and labels together, indices apart."""
    return default_collate([item[:2] for item in items]), torch.tensor([i for *_, i in items])


def test_custom_collate_fn():
    engine = infobatch()
    for (x, y), indices in loader_of(engine, Numbers(), collate_fn=pairs):
        assert_bitwise(x, 10 * indices, "data")
        assert_bitwise(y, indices % 3, "labels")
        engine.observe(losses_at(indices), indices)
    assert engine.end_epoch().missing == N % BATCH


def test_indices_are_int64_as_default_collate_makes_them():
    *_, indices = next(iter(loader_of(infobatch(), Numbers())))
    assert indices.dtype == torch.int64
    assert indices.shape == (BATCH,)


def test_breaking_off_an_epoch_serves_the_same_plan_again():
    engine = infobatch()
    epochs(engine, 1)
    loader = loader_of(engine, Numbers())
    first = [indices.tolist() for *_, indices in loader]
    for *_, indices in loader:
        assert indices.tolist() == first[0]
        break
    assert [indices.tolist() for *_, indices in loader] == first


def test_batches_smaller_than_one_are_served_short():
    engine = infobatch(10)
    loader = loader_of(engine, Numbers(10), 32)
    assert len(loader) == 1
    assert sorted(next(iter(loader))[2].tolist()) == list(range(10))


@pytest.mark.parametrize("option", [{"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}])
def test_options_that_decide_the_order_are_refused(option):
    with pytest.raises(TypeError, match=f"{next(iter(option))} must not be given"):
        infobatch().loader(Numbers(), BATCH, **option)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_edge_case_10_batch_size_out_of_range(size, error):
    with pytest.raises(error, match="batch_size"):
        infobatch().loader(Numbers(), size)


class Noise(torch.utils.data.Dataset):
    """Items that a worker draws, as an augmentation does."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(())


def draw_on_a_rank(rank: int, size: int, folder: str) -> None:
    """Leave what a worker of one rank drew, by a generator of ours and by one that is given."""
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    given = {"given": torch.Generator().manual_seed(5)}
    drawn = {}
    for name in ("ours", "given"):
        engine = pe.PruneEngine(N, pe.KeepAll(), num_epochs=1)
        options = {"generator": given[name]} if name in given else {}
        loader = engine.loader(Noise(), BATCH, num_workers=1, **options)
        drawn[name] = next(iter(loader))[0]
    torch.save(drawn, f"{folder}/rank{rank}.pt")
    dist.barrier()


@pytest.mark.full("starts workers on two ranks")
@pytest.mark.distributed
def test_workers_of_two_ranks_draw_other_numbers(tmp_path):
    assert start_ranks(draw_on_a_rank, 2, str(tmp_path)).join() == [0, 0]
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert not torch.equal(one["ours"], two["ours"])
    assert torch.equal(one["given"], two["given"]), "control: of one generator they would be alike"
