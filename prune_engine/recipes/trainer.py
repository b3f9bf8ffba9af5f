# SPDX-License-Identifier: Apache-2.0
"""One training: model, optimiser, data and their one random generator."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prune_engine.data.device_loader import Batch, DeviceLoader, batch_seed
from prune_engine.engine import PruneEngine, Reduction, ScoreName
from prune_engine.epoch.ranks import world
from prune_engine.losses.reduce import cross_entropy
from prune_engine.losses.scores import SCORES
from prune_engine.plain import store_plain
from prune_engine.policies.batches.monitor import PRESETS, ActivationMonitor
from prune_engine.recipes import augment, models, ranks
from prune_engine.recipes.byte_model import ByteTransformer
from prune_engine.recipes.data import Gather, ImageData, Positions
from prune_engine.recipes.optimizers import OPTIMIZERS, make_optimizer
from prune_engine.recipes.text import ByteGPT2, TextData, each_token

MOST_NATS = 709.0  # a float ends at exp(709.78)


@dataclass(frozen=True)
class TrainConfig:
    """What all arms of a run share.

    Args:
        model: a name of ``models.MODELS``.
        epochs: of the full schedule.
        batch_size: over all ranks; at most the number of training samples.
        lr: the peak of the one-cycle schedule.
        optimizer: ``"sgd"`` (Nesterov momentum 0.9), ``"adamw"``, or ``"lars"`` or ``"lamb"`` of
            pytorch-optimizer.
        weight_decay: of all parameters.
        label_smoothing: in [0, 1); a loss that is the score stays unsmoothed.
        score: what is recorded of an image, a name of ``scores.SCORES``.
        amp: bfloat16 autocast of the forward pass.
        augment: random crop and flip.
        device: such as ``"cpu"`` or ``"cuda"``.
        backend: of the engine.
        num_workers: of the loader; 0 is best for data in memory.
        layers: what B-PAS watches: ``"activations"``, a preset of ``ActivationMonitor`` or a
            pattern of module names.
        fuse: B-PAS's statistics are computed by the activations themselves.
        resident: keep the data on the device and make the batches there, without a ``DataLoader``.
        progress: draw a bar on stderr.
        scale_lr: divide the learning rate of each epoch by the largest weight of its plan, so that
            no sample is trained at more than the schedule's rate; weights of a choice within
            batches are not looked at.
    """

    model: str
    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    score: ScoreName = "loss"
    amp: bool = False
    augment: bool = False
    device: str = "cpu"
    backend: str = "auto"
    num_workers: int = 0
    layers: str = "activations"
    fuse: bool = False
    resident: bool = False
    progress: bool = False
    scale_lr: bool = False

    def __post_init__(self) -> None:
        store_plain(self)
        if self.model not in models.MODELS:
            names = ", ".join(models.MODELS)
            raise ValueError(f"model: expected one of {names}, got {self.model!r}")
        if self.optimizer not in OPTIMIZERS:
            names = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer: expected one of {names}, got {self.optimizer!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: expected more than 0 and finite, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay: expected at least 0 and finite, got {self.weight_decay}"
            )
        if self.num_workers < 0:
            raise ValueError(f"num_workers: expected at least 0, got {self.num_workers}")
        if self.resident and self.num_workers:
            raise ValueError(
                f"num_workers: expected 0 for resident data, got {self.num_workers}: no worker "
                "shares the device"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected [0, 1), got {self.label_smoothing}")
        if self.score not in SCORES:
            raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {self.score!r}")


class Trainer(ABC):
    """The state of one training: model, optimiser, data and their one random generator.

    ``ImageTrainer`` and ``TextTrainer`` say what a batch, a loss and the test are.
    """

    METRIC = ""  # what evaluate() returns, as the rows name it
    # By the sum of weights where they differ by more than a policy's few bands: one heavy sample
    # makes no longer a step of its batch.
    reduction: Reduction = "mean"

    def __init__(
        self, data: ImageData | TextData, model: nn.Module, config: TrainConfig, seed: int
    ) -> None:
        if config.batch_size > data.num_samples:
            raise ValueError(
                f"batch_size: expected at most the {data.num_samples} training samples, "
                f"got {config.batch_size}"
            )
        self.num_samples, self.config = data.num_samples, config
        self.batch_size = ranks.share_of(config.batch_size)
        self.device = torch.device(config.device)
        # Ranks differ in their augmentation, and in nothing else. Of a seed torch's generator on
        # the cpu takes the low 32 bits alone, so the rank is mixed into those.
        rank = world()[0]
        mixed = batch_seed(seed, rank, 0) if rank else seed
        self.generator = torch.Generator().manual_seed(mixed)
        self.model = model.to(self.device)
        self.looked = 0  # samples passed forward in an epoch by who chooses, not to be trained
        self.averaged = ranks.averaged(self.model)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.model.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
        )

    def monitor(self) -> ActivationMonitor:
        """Watch the layers that the configuration names."""
        layers, fuse = self.config.layers, self.config.fuse
        if layers == "activations":
            return ActivationMonitor(self.model, fuse=fuse, backend=self.config.backend)
        if layers in PRESETS:
            return ActivationMonitor(self.model, preset=layers, backend=self.config.backend)
        return ActivationMonitor(self.model, layers, fuse=fuse, backend=self.config.backend)

    def loader(self, engine: PruneEngine) -> DataLoader[Any] | DeviceLoader:
        """Batches of (inputs, targets, indices), all of them full: one gather serves a batch."""
        inputs, targets = self.tensors()
        if self.config.resident:
            augmented = self.augment if self.config.augment else None
            return engine.device_loader((inputs, targets), self.batch_size, augment=augmented)
        # Workers are other processes: they get the data on the host. Without workers it can lie on
        # the device, and a batch never crosses.
        home = self.device if self.config.num_workers == 0 else torch.device("cpu")
        seeds = self.generator
        if self.config.num_workers:
            # Workers that persist take a seed when the first epoch begins, and again after a
            # resume: of the augmentation's generator that would be another augmentation.
            seeds = torch.Generator().manual_seed(engine.seed)
        return DataLoader(
            Positions(self.num_samples),
            batch_size=self.batch_size,
            sampler=engine.sampler(align=self.config.batch_size),
            collate_fn=Gather(inputs.to(home), targets.to(home)),
            num_workers=self.config.num_workers,
            persistent_workers=self.config.num_workers > 0,
            generator=seeds,
        )

    @abstractmethod
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The training samples and their targets, [N, ...] each."""

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change what a batch holds at random; the task says how."""
        return batch

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return a batch's inputs as they are trained: augmented, where the loader has not."""
        return inputs

    @abstractmethod
    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward on prepared inputs and return per-sample losses and their score."""

    @contextmanager
    def scoring(self) -> Generator[None, None, None]:
        """Pass forward as in an evaluation: no gradient, and no statistic of a layer moves."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()

    def observe(
        self, engine: PruneEngine, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run forward and record the scores; return the loss to train on, and the plain losses."""
        losses, score = self.losses(self.prepare(inputs), targets)
        if self.config.label_smoothing == 0:
            score = None  # the loss is the score
        return (
            engine.observe(losses, indices, score=score, reduction=self.reduction),
            losses.detach(),
        )

    @abstractmethod
    def evaluate(self) -> float:
        """``METRIC`` on the test samples."""

    def predictions(self) -> Tensor | None:
        """The label predicted for each training sample, int64 [N]; None where there are none."""
        return None

    def step(self, loss: Tensor, share: float = 1.0) -> None:
        """Backward and one optimiser step, at a share of the schedule's rate."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class ImageTrainer(Trainer):
    """Classify images."""

    METRIC = "test_accuracy"

    def __init__(self, data: ImageData, config: TrainConfig, seed: int) -> None:
        model = models.build(config.model, data.shape, data.num_classes, seed)
        super().__init__(data, model, config, seed)
        self.data = data
        self.mean = data.mean.view(1, -1, 1, 1).to(self.device)
        self.scale = (1.0 / data.std).view(1, -1, 1, 1).to(self.device)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        return self.data.train_images, self.data.train_labels

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Crop and flip the images of a batch; what comes after them stays."""
        padding = min(4, self.data.shape[1] // 8)
        return (augment.crop_and_flip(batch[0], generator, padding=padding), *batch[1:])

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images [B, C, H, W] as the model takes them."""
        pixels = images.to(self.device, torch.float32, memory_format=torch.channels_last)
        return pixels.sub_(self.mean).mul_(self.scale)

    def logits(self, images: Tensor) -> Tensor:
        """Normalise uint8 images [B, C, H, W] and apply the model, in training over all ranks."""
        pixels = self.normalised(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            return self.averaged(pixels) if self.model.training else self.model(pixels)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Crop and flip, where that is wanted and the loader of resident data has not done it."""
        if not self.config.augment or self.config.resident:
            return inputs
        (images,) = self.augment((inputs,), self.generator)
        return images

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and return per-sample losses and their score."""
        logits, labels = self._outputs(inputs, targets)
        return cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def observe(
        self, engine: PruneEngine, inputs: Tensor, targets: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run forward and record the scores; another one than the loss comes from the logits."""
        config = self.config
        if config.score == "loss":
            return super().observe(engine, inputs, targets, indices)
        logits, labels = self._outputs(self.prepare(inputs), targets)
        loss = engine.cross_entropy_observe(
            logits,
            labels,
            indices,
            label_smoothing=config.label_smoothing,
            score=config.score,
            reduction=self.reduction,
        )
        plain, _ = cross_entropy(logits.detach(), labels, label_smoothing=config.label_smoothing)
        return loss, plain

    def in_order(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the training images as the model takes them, with their labels and numbers."""
        for start in range(0, self.num_samples, 1000):
            part = torch.arange(start, min(start + 1000, self.num_samples))
            yield self.normalised(self.data.train_images[part]), self.data.train_labels[part], part

    def _outputs(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(inputs).float(), targets.to(self.device)

    def evaluate(self) -> float:
        """Share of the test samples that are right, in [0, 1]; nan without one."""
        labels = self.data.test_labels
        if not len(labels):
            return math.nan
        return int((self._predict(self.data.test_images) == labels).sum()) / len(labels)

    def predictions(self) -> Tensor:
        """The label predicted for each training image, without augmentation."""
        return self._predict(self.data.train_images)

    def _predict(self, images: Tensor) -> Tensor:
        self.model.eval()
        found = torch.empty(len(images), dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for start in range(0, len(images), 1000):
                part = slice(start, start + 1000)
                found[part] = self.logits(images[part]).argmax(1)
        self.model.train()
        return found.cpu()


class TextTrainer(Trainer):
    """Predict the next byte; a sample is a row, its loss the mean over the row's bytes."""

    METRIC = "test_perplexity"

    def __init__(self, data: TextData, config: TrainConfig, seed: int) -> None:
        for name in ("augment", "label_smoothing"):
            if getattr(config, name):
                raise ValueError(f"{name}: expected none for text, got {getattr(config, name)}")
        if config.score != "loss":
            raise ValueError(f"score: expected loss for text, got {config.score!r}")
        make = ByteGPT2 if config.model == "gpt2" else ByteTransformer
        super().__init__(data, make(data.length, seed), config, seed)
        self.data = data

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The rows; their targets are in them."""
        rows = self.data.train_rows
        return rows, torch.empty(len(rows), 0, dtype=torch.uint8)

    def each_token(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and return each token's loss [B, T], and which are no padding."""
        rows = rows.to(self.device, torch.int64)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            logits = (self.averaged if self.model.training else self.model)(rows[:, :-1])
        return each_token(logits, rows)

    def _sums(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        losses, counted = self.each_token(rows)
        return losses.sum(1), counted.sum(1)

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and return per-row losses, which are their own score."""
        sums, counts = self._sums(inputs)
        losses = sums / counts.clamp(min=1)
        return losses, losses.detach()

    def evaluate(self) -> float:
        """Perplexity per byte: exp of the mean negative log-likelihood of the test rows."""
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        with torch.inference_mode():
            for start in range(0, self.data.num_test, 128):
                sums, counts = self._sums(self.data.test_rows[start : start + 128])
                total += torch.stack([sums.sum().double(), counts.sum().double()])
        self.model.train()
        mean = float(total[0] / total[1])
        return math.inf if mean > MOST_NATS else math.exp(mean)  # inf: it diverged


def make_trainer(data: ImageData | TextData, config: TrainConfig, seed: int) -> Trainer:
    """Return the trainer of a data set.

    Args:
        data: images or text.
        config: of the run; its model must fit the data.
        seed: of the weights and the augmentation.

    Returns:
        A trainer.

    Raises:
        ValueError: the model is not one for this data.
    """
    if isinstance(data, ImageData):
        return ImageTrainer(data, config, seed)
    if config.model not in models.TEXT_MODELS:
        names = " or ".join(models.TEXT_MODELS)
        raise ValueError(f"model: expected {names} for text, got {config.model!r}")
    return TextTrainer(data, config, seed)


def warm_up(data: ImageData | TextData, config: TrainConfig, steps: int = 10) -> None:
    """Run a throw-away model, so that the first arm does not pay for starting the libraries.

    Args:
        data: the data set of the run.
        config: of the run.
        steps: batches.
    """
    trainer = make_trainer(data, config, seed=0)
    inputs, targets = (tensor[: trainer.batch_size] for tensor in trainer.tensors())
    for _ in range(steps):
        losses, _ = trainer.losses(trainer.prepare(inputs), targets)
        trainer.step(losses.mean())
    trainer.synchronize()
