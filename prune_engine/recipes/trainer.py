# SPDX-License-Identifier: Apache-2.0
"""One training: model, optimiser, data and their one random generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prune_engine.device_loader import Batch, DeviceLoader
from prune_engine.distributed import world
from prune_engine.engine import PruneEngine
from prune_engine.losses import cross_entropy
from prune_engine.recipes import augment, models, ranks
from prune_engine.recipes.data import Gather, ImageData, Positions


@dataclass(frozen=True)
class TrainConfig:
    """What all arms of a run share.

    Args:
        model: a name of ``models.MODELS``.
        epochs: of the full schedule.
        batch_size: over all ranks; at most the number of training samples.
        lr: the peak of the one-cycle schedule.
        optimizer: ``"sgd"`` (Nesterov momentum 0.9) or ``"adamw"``.
        weight_decay: of all parameters.
        label_smoothing: in [0, 1); the score is then the unsmoothed negative log-likelihood.
        amp: bfloat16 autocast of the forward pass.
        augment: random crop and flip.
        device: such as ``"cpu"`` or ``"cuda"``.
        backend: of the engine.
        num_workers: of the loader; 0 is best for data in memory.
        resident: keep the data on the device and make the batches there, without a ``DataLoader``.
        progress: draw a bar on stderr.
    """

    model: str
    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    amp: bool = False
    augment: bool = False
    device: str = "cpu"
    backend: str = "auto"
    num_workers: int = 0
    resident: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.model not in models.MODELS:
            names = ", ".join(models.MODELS)
            raise ValueError(f"model: expected one of {names}, got {self.model!r}")
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer: expected sgd or adamw, got {self.optimizer!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr: expected more than 0, got {self.lr}")
        if self.resident and self.num_workers:
            raise ValueError(
                f"num_workers: expected 0 for resident data, got {self.num_workers}: no worker "
                "shares the device"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected [0, 1), got {self.label_smoothing}")


class Trainer:
    """The state of one training: model, optimiser, data and their one random generator."""

    def __init__(self, data: ImageData, config: TrainConfig, seed: int) -> None:
        if config.batch_size > data.num_samples:
            raise ValueError(
                f"batch_size: expected at most the {data.num_samples} training samples, "
                f"got {config.batch_size}"
            )
        self.data, self.config = data, config
        self.batch_size = ranks.share_of(config.batch_size)
        self.device = torch.device(config.device)
        # Ranks differ in their augmentation, and in nothing else.
        self.generator = torch.Generator().manual_seed(seed + (world()[0] << 32))
        self.model = models.build(config.model, data.shape, data.num_classes, seed).to(self.device)
        self.averaged = ranks.averaged(self.model)
        self.mean = data.mean.view(1, -1, 1, 1).to(self.device)
        self.scale = (1.0 / data.std).view(1, -1, 1, 1).to(self.device)
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                self.model.parameters(),
                lr=config.lr,
                momentum=0.9,
                nesterov=True,
                weight_decay=config.weight_decay,
            )
        else:
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
            )

    def loader(self, engine: PruneEngine) -> DataLoader[Any] | DeviceLoader:
        """Batches of (images, labels, indices), all of them full: one gather serves a batch."""
        if self.config.resident:
            augmented = self.augment if self.config.augment else None
            data = (self.data.train_images, self.data.train_labels)
            return engine.device_loader(data, self.batch_size, augment=augmented)
        # Workers are other processes: they get the data on the host. Without workers it can lie on
        # the device, and a batch never crosses.
        home = self.device if self.config.num_workers == 0 else torch.device("cpu")
        return DataLoader(
            Positions(self.data.num_samples),
            batch_size=self.batch_size,
            sampler=engine.sampler(align=self.config.batch_size),
            collate_fn=Gather(self.data.train_images.to(home), self.data.train_labels.to(home)),
            num_workers=self.config.num_workers,
            persistent_workers=self.config.num_workers > 0,
            generator=self.generator,
        )

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Crop and flip the images of a batch; what comes after them stays."""
        padding = min(4, self.data.shape[1] // 8)
        return (augment.crop_and_flip(batch[0], generator, padding=padding), *batch[1:])

    def logits(self, images: Tensor) -> Tensor:
        """Normalise uint8 images [B, C, H, W] and apply the model, in training over all ranks."""
        pixels = images.to(self.device, torch.float32, memory_format=torch.channels_last)
        pixels = pixels.sub_(self.mean).mul_(self.scale)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            return self.averaged(pixels) if self.model.training else self.model(pixels)

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment, run forward and return per-sample losses and their score."""
        if self.config.augment and not self.config.resident:  # whose loader has done it
            (images,) = self.augment((images,), self.generator)
        labels = labels.to(self.device)
        logits = self.logits(images).float()
        return cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def step(self, loss: Tensor) -> None:
        """Backward and one optimiser step."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()

    def accuracy(self) -> float:
        """Share of the test samples that are right, in [0, 1]."""
        self.model.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for start in range(0, len(self.data.test_labels), 1000):
                part = slice(start, start + 1000)
                labels = self.data.test_labels[part].to(self.device)
                right += (self.logits(self.data.test_images[part]).argmax(1) == labels).sum()
        self.model.train()
        return int(right) / len(self.data.test_labels)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def warm_up(data: ImageData, config: TrainConfig, steps: int = 10) -> None:
    """Run a throw-away model, so that the first arm does not pay for starting the libraries.

    Args:
        data: the data set of the run.
        config: of the run.
        steps: batches.
    """
    trainer = Trainer(data, config, seed=0)
    for _ in range(steps):
        images = data.train_images[: trainer.batch_size]
        losses, _ = trainer.losses(images, data.train_labels[: trainer.batch_size])
        trainer.step(losses.mean())
    trainer.synchronize()
