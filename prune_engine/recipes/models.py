# SPDX-License-Identifier: Apache-2.0
"""The models of the main job: MLPs, of pixels or characters, small CNNs and CIFAR's ResNet-18."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_MODELS = ("mlp", "small_cnn", "cnn", "resnet18")
CHARACTERS = "char_mlp"  # for windows of a text, each as an image of one row
TEXT_MODELS = ("bytes", "gpt2")  # of torch alone, in byte_model.py; of transformers, in text.py
MODELS = (*IMAGE_MODELS, CHARACTERS, *TEXT_MODELS)


def build(name: str, shape: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
    """Build a model with weights that depend on ``seed`` alone.

    Args:
        name: ``"mlp"``, ``"small_cnn"``, ``"cnn"``, ``"resnet18"``, or ``"char_mlp"`` for windows
            of a text.
        shape: channels, height and width of its input.
        num_classes: number of logits.
        seed: of the initial weights; the global generator is left as it was.

    Returns:
        A model on the CPU, in training mode; convolutions in channels-last memory.

    Raises:
        ValueError: an unknown name, or images too small for the model.

    Example:
        >>> model = build("mlp", (1, 8, 8), 10, seed=0)
        >>> tuple(model(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
    """
    if name == CHARACTERS:
        return _seeded(seed, lambda: _char_mlp(shape, num_classes))
    if name not in IMAGE_MODELS:
        raise ValueError(f"model: expected one of {', '.join(IMAGE_MODELS)}, got {name!r}")
    channels, height, width = shape
    if name != "mlp" and min(height, width) < 16:
        raise ValueError(f"model: {name} needs images of 16 x 16 or more, got {height} x {width}")
    makers = {"small_cnn": _small_cnn, "cnn": _cnn, "resnet18": _resnet18}
    if name == "mlp":
        return _seeded(seed, lambda: _mlp(channels * height * width, num_classes))
    model = _seeded(seed, lambda: makers[name](channels, num_classes))
    to: Any = model.to  # the stubs do not know this overload
    return to(memory_format=torch.channels_last)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model: layers draw their first weights from the global generator, lent a seed."""
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        return make()


class Codes(nn.Module):
    """Turn windows of characters, whose pixels are their codes, into integers [B, T]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float [B, 1, 1, T] to int64 [B, T]."""
        return x.flatten(1).long()


def _char_mlp(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    channels, height, width = shape
    if (channels, height) != (1, 1):
        raise ValueError(f"model: {CHARACTERS} is for windows of a text, got images of {shape}")
    return nn.Sequential(
        Codes(),
        nn.Embedding(256, 16),
        nn.Flatten(),
        nn.Linear(16 * width, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, num_classes),
    )


def _mlp(inputs: int, num_classes: int, hidden: int = 128) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _cnn(channels: int, num_classes: int) -> nn.Module:
    # Strided convolutions and no pooling: pooling and full-resolution layers take most of the
    # time of a small network on a CPU and buy little accuracy on 28 x 28 pixels.
    return nn.Sequential(
        _conv(channels, 32, 5, 2),
        _conv(32, 64, 3, 2),
        _conv(64, 128, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


def _small_cnn(channels: int, num_classes: int) -> nn.Module:
    # A quarter of the time of the one above: for the thousand trainings of a study.
    return nn.Sequential(
        _conv(channels, 16, 5, 2),
        _conv(16, 32, 3, 2),
        _conv(32, 32, 3, 2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, num_classes),
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inputs, outputs, 3, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.activation = nn.ReLU()  # a module, so that a monitor can see what it returns
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return self.activation(self.body(x) + self.shortcut(x))


def _resnet18(channels: int, num_classes: int) -> nn.Module:
    layers: list[tuple[str, nn.Module]] = [("stem", _conv(channels, 64, 3, 1))]
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512), start=1):
        blocks = nn.Sequential(
            BasicBlock(inputs, outputs, stride=1 if stage == 1 else 2),
            BasicBlock(outputs, outputs, stride=1),
        )
        layers.append((f"layer{stage}", blocks))
        inputs = outputs
    layers += [
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(512, num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
