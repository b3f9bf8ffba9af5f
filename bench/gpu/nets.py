# SPDX-License-Identifier: Apache-2.0
"""The networks that are trained: a ResNet-50 by its paper, and a small one for 32 x 32 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from gpu.operators import BOTTLENECKS


def convolution(inside: int, outside: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, padded to keep the size, and its batch normalisation."""
    conv = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride), 1x1, and the sum with what came in."""

    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        outside = 4 * planes
        self.layers = nn.Sequential(
            convolution(inside, planes, 1),
            nn.ReLU(inplace=True),
            convolution(planes, planes, 3, stride),
            nn.ReLU(inplace=True),
            convolution(planes, outside, 1),
        )
        same = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if same else convolution(inside, outside, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return self.relu(self.layers(x) + self.shortcut(x))


def resnet50(width: int = 64, classes: int = 1000) -> nn.Sequential:
    """He et al., "Deep Residual Learning", 2016, with the stride in the 3x3 convolution."""
    layers: list[nn.Module] = [
        convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inside = width
    for stage, blocks in enumerate(BOTTLENECKS):
        planes = width << stage
        for block in range(blocks):
            layers.append(Bottleneck(inside, planes, 2 if stage and not block else 1))
            inside = 4 * planes
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))
    return nn.Sequential(*layers, *head)


def small_net(width: int = 64, classes: int = 10) -> nn.Sequential:
    """Six convolutions for images of 32 x 32 pixels."""
    layers: list[nn.Module] = []
    inside = 3
    for outside, stride in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)):
        layers += [convolution(inside, outside * width, 3, stride), nn.ReLU(inplace=True)]
        inside = outside * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))
