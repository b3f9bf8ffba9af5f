# SPDX-License-Identifier: Apache-2.0
"""timm's create_loader itself, unmodified: transforms, prefetching, mixup, losses, schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from _ranks_of import on_ranks
from _real import PIXELS, Digits, Net, credited, equals_alone, figures, flat, plain_run, weights
from PIL import Image
from timm.data import FastCollateMixup, Mixup, create_loader
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.scheduler import CosineLRScheduler
from torch import nn

import prune_engine as pe
from prune_engine.integrations.timm import Tap, per_sample, wrap

N, SIZE, EPOCHS, SIDE = 203, 8, 3, 12
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Pictures(Digits):
    """Digits as images of 12 x 12; two pixels of the margin say which it is."""

    def __init__(self, n: int = N) -> None:
        super().__init__(n)
        self.transform: Any = None

    def __getitem__(self, index: int) -> Any:
        self.fetched.append(index)
        image = Image.new("RGB", (SIDE, SIDE))
        pixels = (self.x[index, :PIXELS] * 255).round().long().tolist()
        for at, value in enumerate(pixels):
            image.putpixel((2 + at % 8, 2 + at // 8), (value, value, value))
        image.putpixel((0, 0), (index % 256, index // 256, 0))
        return self.transform(image), int(self.y[index])


def rows(images: torch.Tensor) -> torch.Tensor:
    """Turn what the loader gives into what ``Net`` takes: 64 pixels and the row's number."""
    raw = images if images.dtype == torch.uint8 else images * 0.25 * 255 + 0.5 * 255
    raw = raw.float().round()
    number = raw[:, 0, 0, 0] + 256 * raw[:, 1, 0, 0]
    inside = raw[:, 0, 2:10, 2:10].flatten(1) / 255
    return torch.cat([inside, number[:, None]], dim=1)


PLAIN = {"no_aug": True, "crop_pct": 1.0, "mean": MEAN, "std": STD, "interpolation": "nearest"}


class Run:
    """A script of timm's kind."""

    def __init__(
        self,
        *,
        accumulate: int = 1,
        size: int = SIZE,
        workers: int = 0,
        double: bool = False,
        dataset: Any = None,
        **options: Any,
    ) -> None:
        self.net = Net(double=double)
        self.model = self.net
        self.dataset = Pictures() if dataset is None else dataset
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.engine = pe.PruneEngine(self.dataset, INFOBATCH, num_epochs=EPOCHS)
        self.accumulate = accumulate
        given = {"device": torch.device("cpu"), "num_workers": workers, **PLAIN}
        self.loader, self.tap = wrap(
            create_loader,
            self.dataset,
            self.engine,
            input_size=(3, SIDE, SIDE),
            batch_size=size,
            accumulate=accumulate,
            **{**given, **options},
        )
        self.steps = 0
        self.lengths: list[int] = []

    def train(self, scheduler: Any = None, save_at: Any = (), states: Any = None) -> None:
        for _ in self.engine.epochs():
            self.lengths.append(len(self.loader))
            for images, target in self.loader:
                indices = self.tap.take(target)
                losses = F.cross_entropy(self.model(rows(images)), target, reduction="none")
                (self.engine.observe(losses, indices) / self.accumulate).backward()
                self.steps += 1
                if self.steps % self.accumulate == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    if scheduler is not None:
                        scheduler.step()
                if self.steps % 10 == 0:
                    self.evaluate()
                if self.steps in save_at:
                    model = {name: each.clone() for name, each in self.net.state_dict().items()}
                    states[self.steps] = [model, self.engine.state_dict()]

    def evaluate(self) -> None:
        loader = create_loader(
            Pictures(24), (3, SIDE, SIDE), SIZE, device=torch.device("cpu"), num_workers=0
        )
        self.net.eval()
        for images, _ in loader:
            self.net(rows(images))
        self.net.train()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetcher", [True, False])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_plain_loop(workers, prefetcher, accumulate):
    # M2: through the prefetcher, which takes pairs and looks one batch ahead.
    run = Run(accumulate=accumulate, workers=workers, use_prefetcher=prefetcher)
    with credited() as seen:
        run.train()
    assert run.net.trained == seen, "which image it was, by its pixels"
    plain = Run(accumulate=accumulate, use_prefetcher=prefetcher)
    loader = plain.engine.loader(plain.dataset, SIZE, accumulate=accumulate)
    trained = []
    for _ in plain.engine.epochs():
        for step, (images, target, indices) in enumerate(loader, 1):
            x = images if isinstance(images, torch.Tensor) else torch.tensor(images)
            losses = F.cross_entropy(plain.net(rows(x)), target, reduction="none")
            (plain.engine.observe(losses, indices) / accumulate).backward()
            trained.append(indices.tolist())
            if step % accumulate == 0:
                plain.optimizer.step()
                plain.optimizer.zero_grad()
    assert seen == trained
    assert figures(run.engine) == figures(plain.engine)
    assert torch.equal(weights(run.net), weights(plain.net))
    assert run.lengths == [report.served // SIZE for report in run.engine.history]
    if not workers:
        assert len(run.dataset.fetched) == len(flat(seen)) < 0.9 * EPOCHS * N


@pytest.mark.parametrize("prefetcher", [True, False])
def test_the_data_sets_own_augmentation_is_on(prefetcher):
    # M1: the transform reaches the data set that applies it.
    flipped = Run(
        no_aug=False,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=1.0,
        color_jitter=0.0,
        use_prefetcher=prefetcher,
    )
    straight = Run(use_prefetcher=prefetcher)
    (turned, target), (images, same) = next(iter(flipped.loader)), next(iter(straight.loader))
    assert torch.equal(flipped.tap.take(target), straight.tap.take(same))
    assert torch.equal(turned, images.flip(3))
    assert not torch.equal(turned, images)


def test_a_script_that_looks_ahead_is_credited_right():
    run = Run()
    batches = list(run.loader)  # all of the epoch
    for images, target in batches:
        assert run.tap.take(target).tolist() == rows(images)[:, PIXELS].long().tolist()


def test_a_target_that_was_made_anew_is_refused():
    run = Run()
    mixup = Mixup(mixup_alpha=1.0, num_classes=10)
    images, target = next(iter(run.loader))
    assert len(run.tap.take(target)) == SIZE
    _, mixed = mixup(images, target)
    with pytest.raises(pe.PruneEngineError, match="before mixup"):
        run.tap.take(mixed)
    with pytest.raises(pe.PruneEngineError, match="before mixup"):
        Tap().take(target)


@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
@pytest.mark.parametrize("workers", [0, 2])
def test_mixup_while_collating(mode, workers):
    mixup = FastCollateMixup(mixup_alpha=1.0, mode=mode, num_classes=10, label_smoothing=0.0)
    run = Run(collate_fn=mixup, workers=workers, persistent_workers=False)
    assert run.loader.mixup_enabled
    losses = per_sample(SoftTargetCrossEntropy())
    for images, target in run.loader:
        assert target.shape == (SIZE, 10)
        indices = run.tap.take(target)
        own = run.dataset.y[indices]
        assert bool((target.gather(1, own[:, None]) > 0).any(1).float().mean() > 0.5)
        run.engine.observe(losses(run.net(rows(images)), target), indices)
    assert run.engine.end_epoch().served == 200
    run.loader.mixup_enabled = False
    for images, target in run.loader:
        indices = run.tap.take(target)
        assert torch.equal(target.argmax(1), run.dataset.y[indices]), "switched off, as timm does"
        assert rows(images)[:, PIXELS].long().tolist() == indices.tolist()


def test_half_a_batch_is_refused():
    mixup = FastCollateMixup(mixup_alpha=1.0, mode="half", num_classes=10)
    with pytest.raises(pe.PruneEngineError, match="'half' trains half"):
        next(iter(Run(collate_fn=mixup).loader))


@pytest.mark.parametrize(
    "loss",
    [
        LabelSmoothingCrossEntropy(0.2),
        BinaryCrossEntropy(0.1),
        BinaryCrossEntropy(0.1, sum_classes=True, target_threshold=0.2),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        SoftTargetCrossEntropy(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_the_mean_of_the_losses_is_the_loss(loss):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 5, generator=generator)
    target: Any = torch.tensor([0, 1, 2, 3, 4, 0])
    if isinstance(loss, SoftTargetCrossEntropy):
        target = torch.softmax(torch.randn(6, 5, generator=generator), 1)
    losses = per_sample(loss)(outputs, target)
    assert losses.shape == (6,)
    assert losses.mean().item() == pytest.approx(loss(outputs, target).item(), rel=1e-6)
    assert len(losses.unique()) > 1


def test_a_loss_without_one_value_per_sample_is_refused():
    with pytest.raises(TypeError, match="JsdCrossEntropy"):
        per_sample(JsdCrossEntropy())
    with pytest.raises(ValueError, match="averaged"):
        per_sample(nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(ValueError, match="alike"):
        per_sample(nn.CrossEntropyLoss(weight=torch.ones(10)))


@pytest.mark.parametrize("in_epochs", [False, True])
def test_timms_schedule_ends_where_it_should(in_epochs):
    # M3.
    run = Run()
    steps = EPOCHS * (N // SIZE)
    cosine = CosineLRScheduler(run.optimizer, t_initial=steps, t_in_epochs=in_epochs)
    scheduler = run.engine.wrap_scheduler(cosine, steps)
    run.train(scheduler)
    assert run.steps < steps
    assert scheduler.get_last_lr()[0] < 1e-9


def test_a_resumed_run_is_the_run_that_was_never_stopped():
    run, states = Run(), {}
    stops = {"inside": 31, "epoch's end": N // SIZE, "evaluation": 30}
    run.train(save_at=stops.values(), states=states)
    for at in stops.values():
        resumed = Run(workers=2)
        resumed.net.load_state_dict(states[at][0])
        resumed.engine.load_state_dict(states[at][1])
        resumed.train()
        assert resumed.net.trained == run.net.trained[at:], at
        assert figures(resumed.engine) == figures(run.engine)
        assert torch.equal(weights(resumed.net), weights(run.net))


def test_a_loop_that_is_left_early_is_reported():
    run = Run()
    for count, (images, target) in enumerate(run.loader):
        run.engine.observe(rows(images)[:, 0], run.tap.take(target))
        if count == 4:
            break
    assert run.engine.end_epoch(partial=True).observed == 5 * SIZE


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_aug_repeats": 3}, "several times"),
        ({"num_aug_splits": 2}, "several rows"),
        ({"use_multi_epochs_loader": True}, "before it is decided"),
        ({"is_training": False}, "is_training"),
        ({"input_size_choices": [8, 12]}, "batches of its own"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(options, match):
    with pytest.raises(ValueError, match=match):
        Run(**options)


def test_a_data_set_without_a_transform_is_refused():
    with pytest.raises(TypeError, match="nothing would be augmented"):
        Run(dataset=torch.utils.data.Subset(Pictures(), range(N)))


def ranks_work(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo")
    run = Run(accumulate=4, size=4, double=True, distributed=True)
    run.model = nn.parallel.DistributedDataParallel(run.net)
    with credited() as seen:
        run.train()
    assert run.net.trained == seen
    for report in run.engine.history:
        assert (report.observed, report.missing) == (report.served, report.dropped_tail)
        assert (report.extra, report.repeated, report.served % 32) == (0, 0, 0)
    trained = [None] * size
    dist.all_gather_object(trained, run.net.trained)
    torch.save([figures(run.engine), trained], f"{folder}/{rank}")


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    alone = Run(accumulate=4, double=True)
    alone.train()
    equals_alone(torch.load(tmp_path / "0"), alone.engine, alone.net)


def test_control_the_plain_digits_are_another_data_set():
    _, net = plain_run(Digits(N), INFOBATCH)
    assert len(flat(net.trained)) < EPOCHS * N
