# SPDX-License-Identifier: Apache-2.0
"""What a training step calls, through the engine: with its gradient, and in a whole ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import prune_engine as pe
from gpu.graphs import Replay
from gpu.nets import resnet50
from gpu.operators import Batches, Call, Operator, logit_operators, observe_operator
from gpu.place import Place
from gpu.rivals import observe_rival


def engine_of(place: Place, n: int, policy: Any = None) -> pe.PruneEngine:
    """An engine that never anneals within a benchmark."""
    policy = policy or pe.InfoBatch()
    options = {"num_epochs": 1000, "device": place.device, "backend": place.backend}
    return pe.PruneEngine(n, policy, **options)


def observe_works(place: Place, backend: str, batch: int) -> list[Operator]:
    """A step's bookkeeping at one batch size: bare, with its gradient, each also as a graph."""
    made = Batches(place.n, batch, place.steps, place.device)
    bare = observe_operator(place.kernels(backend), made)
    engine = engine_of(place, place.n)
    losses = [row.clone().requires_grad_() for row in made.losses]

    def backward_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
        def steps() -> None:
            for row, indices in zip(losses, made.indices, strict=True):
                row.grad = None
                loss(row, indices).backward()

        return steps

    def news() -> None:
        engine.buffer.epoch.add_(1)

    ours = backward_of(engine.observe)
    count = len(losses)
    works = [
        bare,
        Operator("engine.observe, backward", ours, made.bytes + 8 * batch, news, count),
        Operator("losses.mean(), backward", backward_of(lambda row, _: row.mean()), 0, calls=count),
        observe_rival(made),
    ]
    if place.on_gpu:
        works += [
            Operator("observe, in a graph", Replay(bare.call), made.bytes, made.next_epoch, count),
            Operator("engine.observe, backward, in a graph", Replay(ours), 0, news, count),
        ]
    return works


def loss_works(place: Place, backend: str, batch: int, classes: int) -> list[Operator]:
    """From logits to their gradient: the two operators alone, and whole steps."""
    bare, made, (logits, targets) = logit_operators(
        place.kernels(backend), batch, classes, place.n, place.device
    )
    indices = made.indices[0]
    engine = engine_of(place, max(place.n, batch))
    leaf = logits.detach().requires_grad_()  # the bare operators get what has no gradient
    size = 3 * logits.numel() * logits.element_size()  # read, read again, written

    def news() -> None:
        engine.buffer.epoch.add_(1)

    def whole(loss: Callable[[], Tensor]) -> Call:
        def step() -> None:
            leaf.grad = None
            loss().backward()

        return step

    def fused() -> Tensor:
        return engine.cross_entropy_observe(leaf, targets, indices)

    def eager() -> Tensor:
        return engine.observe(F.cross_entropy(leaf, targets, reduction="none"), indices)

    works = [
        *bare,
        Operator("cross_entropy_observe, backward", whole(fused), size, news),
        Operator("F.cross_entropy, observe, backward", whole(eager), size, news),
        Operator("F.cross_entropy, backward", whole(lambda: F.cross_entropy(leaf, targets)), size),
    ]
    liger = liger_loss()
    if liger is not None:
        works.append(Operator("Liger, backward", whole(lambda: liger(leaf, targets)), size))
    return works


def liger_loss() -> Any:
    """Liger's fused cross entropy, or None where it is not installed."""
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss  # type: ignore[import-untyped]
    except ImportError:
        return None
    return LigerCrossEntropyLoss()


def resnet_works(place: Place) -> list[Operator]:
    """A training step of a ResNet-50 in bfloat16 on random images, without and with the engine."""
    batch, device = place.images, place.device
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(batch, 3, place.side, place.side, device=device, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(1000, (batch,), device=device, generator=generator)
    indices = torch.arange(batch, device=device)

    def step_of(name: str, policy: Any = None, **monitor: Any) -> Operator:
        model: Any = resnet50(place.width).to(device)
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = engine_of(place, max(place.n, batch), policy) if policy else None
        if engine and isinstance(policy, pe.BPAS):
            engine.attach(pe.ActivationMonitor(model, backend=place.backend, **monitor))

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=place.on_gpu):
                losses = F.cross_entropy(model(images), targets, reduction="none")
            loss = engine.observe(losses, indices) if engine else losses.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        def news() -> None:
            if engine:
                engine.buffer.epoch.add_(1)

        return Operator(name, step, prepare=news)

    return [
        step_of("plain"),
        step_of("with observe", pe.InfoBatch()),
        step_of("with BPAS", pe.BPAS(batch)),
        step_of("with BPAS, fuse=True", pe.BPAS(batch), fuse=True),
    ]
