# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu.py times of a model: its activations' statistics, its loss, its whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from gpu_work import Row, Work
from torch import Tensor

import prune_engine as pe

LOGITS = ((256, 1000), (4096, 1000), (2048, 50_257), (512, 262_144))  # (batch, classes)
BOTTLENECKS = (3, 4, 6, 3)  # ResNet-50's stages


def post_relu_shapes(side: int) -> Iterator[tuple[int, int, int]]:
    """(channels, height, width) of every ReLU of a ResNet-50 (torchvision's, stride in the 3x3).

    Example:
        >>> shapes = list(post_relu_shapes(224))
        >>> len(shapes), sum(c * h * w for c, h, w in shapes)
        (49, 9608704)
    """
    size = side // 2
    yield 64, size, size
    size //= 2
    for stage, blocks in enumerate(BOTTLENECKS):
        width = 64 << stage
        for block in range(blocks):
            yield width, size, size
            if stage and not block:
                size //= 2
            yield width, size, size
            yield 4 * width, size, size


def activation_work(batch: int, side: int, device: torch.device) -> list[Work]:
    """X(b) of a ResNet-50 in bfloat16, channels_last: in a pass of its own and inside the ReLU."""
    generator = torch.Generator(device).manual_seed(0)
    tensors = [
        torch.empty(batch, *shape, dtype=torch.bfloat16, device=device)
        .contiguous(memory_format=torch.channels_last)
        .normal_(generator=generator)
        for shape in post_relu_shapes(side)
    ]
    largest = max(tensors, key=Tensor.numel)
    copied = torch.empty_like(largest)
    out = torch.zeros(1, dtype=torch.float64, device=device)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    rows: list[tuple[str, int, Callable[[], object]]] = [
        ("copy of the largest", 2 * largest.numel() * 2, lambda: copied.copy_(largest)),
        ("activation_std", size, lambda: pe.ops.activation_std(tensors, out, 0)),
        (
            "activation_std, sample=8",
            size // 8,
            lambda: pe.ops.activation_std(tensors, out, 0, sample=8),
        ),
        ("moments, a call a layer", size, lambda: [pe.ops.moments([t]) for t in tensors]),
        ("torch.std loop", size, lambda: torch.stack([t.std() for t in tensors]).mean()),
        ("torch.relu_", 2 * size, lambda: [torch.relu_(t) for t in tensors]),
        (
            "relu_moments, in place",
            2 * size,
            lambda: [pe.ops.relu_moments(t, inplace=True) for t in tensors],
        ),
    ]
    return [(Row("activation_std", batch, name, moved), call) for name, moved, call in rows]


def loss_work(batch: int, classes: int, device: torch.device) -> list[Work]:
    """From logits to their gradient, with the loss, its score and the record of it."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(batch, classes, dtype=torch.bfloat16, device=device)
    logits.normal_(generator=generator).requires_grad_()
    targets = torch.randint(classes, (batch,), device=device, generator=generator)
    indices = torch.arange(batch, device=device)
    engine = pe.PruneEngine(1_281_167, pe.InfoBatch(), num_epochs=9, device=device)

    def backward(loss: Tensor) -> None:
        logits.grad = None
        loss.backward()

    def eager() -> None:
        losses = F.cross_entropy(logits, targets, reduction="none")
        backward(engine.observe(losses, indices))

    size = 3 * logits.numel() * logits.element_size()  # read, read again, written
    rows: list[tuple[str, int, Callable[[], object]]] = [
        (
            "cross_entropy_observe",
            size,
            lambda: backward(engine.cross_entropy_observe(logits, targets, indices)),
        ),
        ("F.cross_entropy + observe", size, eager),
        ("F.cross_entropy (no pruning)", size, lambda: backward(F.cross_entropy(logits, targets))),
    ]
    liger = liger_loss()
    if liger is not None:
        rows.append(("Liger (no pruning)", size, lambda: backward(liger(logits, targets))))
    table = f"cross_entropy, {classes:,} classes"
    return [(Row(table, batch, name, moved), call) for name, moved, call in rows]


def liger_loss() -> Any:
    """Liger's fused cross entropy, or None where it is not installed."""
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss  # type: ignore[import-untyped]
    except ImportError:
        return None
    return LigerCrossEntropyLoss()


def resnet_work(device: torch.device) -> list[Work]:
    """A training step of ResNet-50 in bfloat16 at B = 256, with and without the engine."""
    from torchvision.models import resnet50

    batch = 256
    images = torch.zeros(batch, 3, 224, 224, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(batch, device=device)

    def step_of(policy: pe.Policy | None, **monitor: Any) -> Callable[[], object]:
        model = resnet50().to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = policy and pe.PruneEngine(1_281_167, policy, num_epochs=9, device=device)
        if engine and isinstance(policy, pe.BPAS):
            engine.attach(pe.ActivationMonitor(model, **monitor))

        def step() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                losses = F.cross_entropy(model(images), targets, reduction="none")
            loss = engine.observe(losses, targets) if engine else losses.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step

    rows = (
        ("plain", step_of(None)),
        ("with observe", step_of(pe.InfoBatch())),
        ("with BPAS", step_of(pe.BPAS(batch))),
        ("with BPAS, fuse=True", step_of(pe.BPAS(batch), fuse=True)),
    )
    return [(Row("ResNet-50 step", batch, name), step) for name, step in rows]
