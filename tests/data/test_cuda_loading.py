# SPDX-License-Identifier: Apache-2.0
"""Loaders on a GPU: the CPU's batches, and no wait inside an epoch.

Asked for by ``-m cuda``, these tests fail without a GPU. Search for synchronisation does not see a
wait for an event, so the sampler's own waits are counted and shown to come from no other stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from _assertions import assert_bitwise
from torch.utils.data import TensorDataset

import prune_engine as pe
from prune_engine.data.prefetch import PinnedReader
from prune_engine.epoch.plan import CHUNK
from prune_engine.recipes import data
from prune_engine.recipes.trainer import TrainConfig, Trainer, make_trainer

# torch warns that its search for synchronisation is a prototype.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::UserWarning")]

N, SIZE = 3 * CHUNK + 100, 256


@pytest.fixture
def device() -> torch.device:
    """Fail where a GPU was asked for and none can serve."""
    if not torch.cuda.is_available():
        pytest.fail("these tests need a GPU, and torch finds none")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def no_sync() -> Iterator[None]:
    """Make every wait for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loss_of(indices: torch.Tensor, epoch: int) -> torch.Tensor:
    """Return losses that only depend on the sample and the epoch, exact in float32."""
    return ((indices.to(torch.int64) * 7919 + epoch * 104729) % 4096).to(torch.float32) / 512


def infobatch(where: torch.device | str, n: int = N) -> pe.PruneEngine:
    return pe.PruneEngine(n, pe.InfoBatch(0.5, delta=1.0), num_epochs=4, seed=9, device=where)


def test_an_epoch_of_a_data_loader_never_waits(device: torch.device) -> None:
    inputs = torch.randn(N, 8, generator=torch.Generator().manual_seed(0))
    engine = infobatch(device)
    loader = engine.loader(TensorDataset(inputs), SIZE)
    model = torch.nn.Linear(8, 4, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with no_sync():
            for x, indices in loader:
                losses = model(x.to(device, non_blocking=True)).square().mean(dim=1)
                optimizer.zero_grad()
                engine.observe(losses, indices).backward()
                optimizer.step()
        engine.end_epoch()
    reader = loader.sampler.reader
    assert isinstance(reader, PinnedReader)
    assert reader.waits <= 2, "the first chunk of an epoch at most"
    assert engine.history[-1].missing == engine.history[-1].dropped_tail


def test_the_sampler_serves_the_order_of_the_cpu(device: torch.device) -> None:
    here, there = infobatch("cpu"), infobatch(device)
    indices = torch.arange(N)
    for engine in (here, there):
        where = engine.buffer.device
        engine.observe(loss_of(indices, 0).to(where), indices.to(where))
        engine.end_epoch()
    for rank in range(3):
        got, want = (list(e.sampler(shard=(rank, 3), align=64)) for e in (there, here))
        assert_bitwise(got, want, f"order of rank {rank}")


def test_the_sampler_does_not_queue_behind_the_training(device: torch.device) -> None:
    engine = infobatch(device)
    stream = iter(engine.sampler())
    first = next(stream)
    torch.cuda._sleep(4_000_000_000)  # about two seconds of training
    trained = torch.cuda.Event()
    trained.record()
    served = [first, *stream]
    assert not trained.query(), "the whole epoch was served before the training got on"
    want = engine.plan.indices.tolist()
    assert trained.query(), "control: this road waits for the training"
    assert served == want


def test_the_device_loader_serves_the_batches_of_the_cpu(device: torch.device) -> None:
    rows = (torch.randint(256, (N, 3, 2), generator=torch.Generator().manual_seed(1)).byte(),)
    engines = infobatch("cpu"), infobatch(device)
    loaders = [engine.device_loader(rows, SIZE) for engine in engines]
    for epoch in range(2):
        for number, (want, got) in enumerate(zip(*loaders, strict=True)):
            for name, a, b in zip(("x", "indices"), got, want, strict=True):
                assert a.device == device
                assert_bitwise(a, b, f"{name} of batch {number}")
            for engine, (_, indices) in zip(engines, (want, got), strict=True):
                engine.observe(loss_of(indices, epoch), indices)
        for engine in engines:
            engine.end_epoch()


def images(device: torch.device) -> Trainer:
    """Return a trainer of random pictures that stay on the device."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (2048, 3, 32, 32), generator=generator).byte()
    labels = torch.randint(10, (2048,), generator=generator)
    mean, std = torch.full((3,), 128.0), torch.full((3,), 74.0)
    pictures = data.ImageData("random", pixels, labels, pixels[:8], labels[:8], 10, mean, std)
    config = TrainConfig(
        model="cnn",
        epochs=3,
        batch_size=128,
        lr=0.01,
        augment=True,
        amp=True,
        device=str(device),
        resident=True,
    )
    return make_trainer(pictures, config, seed=0)


def test_a_resident_training_with_augmentation_never_waits(device: torch.device) -> None:
    trainer = images(device)
    engine = infobatch(device, 2048)
    loader = trainer.loader(engine)
    steps = 3 * (2048 // 128)
    schedule = engine.wrap_scheduler(
        torch.optim.lr_scheduler.OneCycleLR(trainer.optimizer, max_lr=0.01, total_steps=steps),
        steps,
    )
    for _ in range(3):
        with no_sync():
            for pictures, labels, indices in loader:
                losses, _ = trainer.losses(pictures, labels)
                trainer.step(engine.observe(losses, indices))
                schedule.step()
        engine.end_epoch()
    assert engine.history[-1].num_seen == 2048
    assert engine.history[-1].nonfinite == 0


def test_the_augmentation_of_a_batch_repeats_itself_on_the_device(device: torch.device) -> None:
    trainer = images(device)
    loader = trainer.loader(infobatch(device, 2048))
    once, twice = ([batch[0] for batch in loader] for _ in range(2))
    assert_bitwise(torch.stack(once), torch.stack(twice), "augmented pictures")
    assert len({int(batch.sum()) for batch in once}) > 1
