# SPDX-License-Identifier: Apache-2.0
"""Train a small net on CIFAR-sized images through ``device_loader``: ``python -m gpu.training``.

Once with every sample and once with InfoBatch, for as many epochs: how long, how many samples, how
well. The images are made here: ten patterns under noise that hides some of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import prune_engine as pe
from gpu import events
from gpu.nets import small_net
from gpu.place import PLACES, Place

BATCH, TIMED, MOST = 512, 20, 40
FEWEST = 3


def images_of(count: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Images and labels; the patterns are the same for every seed."""
    patterns = torch.Generator(device).manual_seed(7)
    coarse = torch.randn(10, 3, 8, 8, device=device, generator=patterns)
    sharp = F.interpolate(coarse, scale_factor=4, mode="nearest")
    generator = torch.Generator(device).manual_seed(seed)
    labels = torch.randint(10, (count,), device=device, generator=generator)
    noise = torch.randn(count, 3, 32, 32, device=device, generator=generator)
    hidden = 0.5 + 3.5 * torch.rand(count, 1, 1, 1, device=device, generator=generator) ** 2
    return sharp[labels] + hidden * noise, labels


class Training:
    """One net, one engine, one way to train them."""

    def __init__(self, place: Place, policy: Any, epochs: int) -> None:
        self.place = place
        size, _, _ = place.trained
        self.model: Any = small_net(place.width).to(place.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.engine = pe.PruneEngine(
            size, policy, num_epochs=epochs, device=place.device, backend=place.backend
        )
        data = images_of(size, 1, place.device)
        self.loader = self.engine.device_loader(data, min(BATCH, size // 4), augment=self.flipped)
        self.steps = self.samples = 0

    def flipped(self, rows: tuple[Tensor, ...], generator: torch.Generator) -> list[Tensor]:
        """Half of the images, mirrored."""
        images, labels = rows
        coin = torch.rand(len(images), 1, 1, 1, device=images.device, generator=generator) < 0.5
        return [torch.where(coin, images.flip(3), images), labels]

    def epoch(self, most: int | None = None) -> None:
        """Train until the loader ends, or some steps."""
        self.model.train()
        for number, (images, labels, indices) in enumerate(self.loader):
            if number == most:
                break
            with torch.autocast(self.place.device, torch.bfloat16, enabled=self.place.on_gpu):
                logits = self.model(images.contiguous(memory_format=torch.channels_last))
            loss = self.engine.cross_entropy_observe(logits.float(), labels, indices)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.steps += 1
            self.samples += len(indices)

    def wait(self) -> None:
        """Until the device has done it all."""
        if self.place.on_gpu:
            torch.cuda.synchronize()

    def accuracy(self) -> float:
        """On images that were not trained, in percent."""
        images, labels = images_of(self.place.trained[1], 2, self.place.device)
        self.model.eval()
        with (
            torch.no_grad(),
            torch.autocast(self.place.device, torch.bfloat16, enabled=self.place.on_gpu),
        ):
            found = torch.cat([self.model(part).argmax(1) for part in images.split(1000)])
        return 100 * float((found == labels).float().mean())


def epochs_for(place: Place) -> int:
    """As many as fit into the seconds, by the time of some steps."""
    trial = Training(place, pe.KeepAll(), MOST)
    trial.epoch(3)
    trial.wait()
    began = time.perf_counter()
    steps = trial.steps
    trial.epoch(TIMED)
    trial.wait()
    step = (time.perf_counter() - began) / max(1, trial.steps - steps)
    return max(FEWEST, min(MOST, int(place.trained[2] / (step * len(trial.loader)))))


def rows_of(name: str, place: Place, policy: Any, epochs: int) -> None:
    """Train; the row is told after each epoch."""
    training = Training(place, policy, epochs)
    spent = 0.0
    for epoch in training.engine.epochs():
        training.wait()
        began = time.perf_counter()
        training.epoch()
        training.wait()
        spent += time.perf_counter() - began
        row: dict[str, Any] = {"name": name, "epochs": epoch + 1, "seconds": round(spent, 3)}
        row |= {"samples": training.samples, "accuracy": round(training.accuracy(), 2)}
        row["us/step"] = round(1e6 * spent / training.steps, 1)
        if epoch + 1 == epochs:
            row["note"] = f"{training.samples / (epochs * place.trained[0]):.0%} of all samples"
        events.emit("rows", rows=[row])


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu.training", description=__doc__)
    parser.add_argument("--size", choices=PLACES, default="full")
    place = PLACES[parser.parse_args(argv).size]
    torch.manual_seed(0)
    if place.on_gpu:
        torch.backends.cudnn.benchmark = True
    epochs = epochs_for(place)
    for name, policy in (("every sample", pe.KeepAll()), ("InfoBatch", pe.InfoBatch())):
        if name in events.finished():
            continue
        torch.manual_seed(0)
        events.emit("begin", key=name)
        rows_of(name, place, policy, epochs)
        events.emit("end", key=name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
