# SPDX-License-Identifier: Apache-2.0
"""What is made under ``torch.inference_mode()`` works in training, and trains the same run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prune_engine as pe
from prune_engine.epoch import ScoreBuffer
from prune_engine.losses import BatchScalar, MixedPairs, Pixels, Tokens, mix_targets
from prune_engine.policies import Policy

N, B = 16, 4
DATA = torch.linspace(-1, 1, N * 3).reshape(N, 3), torch.arange(N) % 2
POLICIES: list[Policy] = [
    pe.KeepAll(),
    pe.InfoBatch(0.5, 0.75),
    pe.InfoBatchQuantile(),
    pe.Budget(0.5),
    pe.UCB(0.5, period=1),
    pe.EpsilonGreedy(0.5, period=1),
    pe.RandomSubset(0.5),
    pe.RandomBatches(B),
    pe.BPAS(B, delta_start=1e-3, delta_end=1.0, min_batches=1),
]
named = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)


def a_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def an_engine(policy: Policy, model: nn.Module, **options: Any) -> pe.PruneEngine:
    engine = pe.PruneEngine(N, policy, **{"num_epochs": 4, **options})
    if isinstance(policy, pe.BPAS):
        engine.attach(pe.ActivationMonitor(model))
    return engine


def train(engine: pe.PruneEngine, model: nn.Module, epochs: int) -> list[float]:
    """Train some epochs; return every loss."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    losses: list[float] = []
    for _ in range(epochs):
        for x, y, indices in engine.device_loader(DATA, B):
            logits = model(x)
            if engine.epoch % 2:
                loss = engine.cross_entropy_observe(logits, y, indices)
            else:
                loss = engine.observe(F.cross_entropy(logits, y, reduction="none"), indices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        engine.end_epoch()
    return losses


@named
def test_an_engine_made_in_inference_mode_trains_the_same_run(policy: Policy) -> None:
    runs: list[list[float]] = []
    for mode in (nullcontext(), torch.inference_mode()):
        model = a_model()
        with mode:
            engine = an_engine(policy, model)
        runs.append(train(engine, model, 4))
    assert runs[0] == runs[1]


@named
def test_a_state_saved_and_loaded_in_inference_mode_resumes_the_same_run(
    policy: Policy, tmp_path: Path
) -> None:
    runs: list[list[float]] = []
    for mode in (nullcontext, torch.inference_mode):
        model = a_model()
        first = an_engine(policy, model)
        train(first, model, 2)
        with mode():
            pe.save_state(first, tmp_path / "run.pt", extra={"w": torch.ones(1)})
            second = an_engine(policy, model)
            extra = pe.load_state(second, tmp_path / "run.pt")
        assert not extra["w"].is_inference()
        runs.append(train(second, model, 2))
    assert runs[0] == runs[1]


@named
def test_an_epoch_ended_in_inference_mode_is_followed_by_training(policy: Policy) -> None:
    model = a_model()
    engine = an_engine(policy, model)
    with torch.inference_mode():
        for x, _, indices in engine.device_loader(DATA, B):
            model(x)
            engine.observe(torch.ones(indices.shape[0]), indices)
        engine.end_epoch()
    assert train(engine, model, 3) != []
    assert len(engine.history) == 4


@named
def test_a_batch_drawn_in_inference_mode_can_be_trained_on(policy: Policy) -> None:
    model = a_model()
    engine = an_engine(policy, model)
    batches = iter(engine.device_loader(DATA, B, augment=lambda rows, _: [x + 0 for x in rows]))
    with torch.inference_mode():
        drawn = next(batches)
    later = next(batches)  # of the same chunk of the order
    assert not any(tensor.is_inference() for tensor in (*drawn, *later))
    x, y, indices = drawn
    engine.cross_entropy_observe(model(x), y, indices).backward()


def test_a_plan_made_ahead_in_inference_mode_serves_training() -> None:
    engine = pe.PruneEngine(N, pe.InfoBatch(0.5), mode="flow", num_epochs=8)
    for _ in range(3):
        with torch.inference_mode():
            batches = [indices for _, indices in engine.device_loader(DATA[:1], B)]
        for indices in batches:
            engine.observe(torch.ones(B, requires_grad=True), indices).backward()
    assert engine.epoch >= 1
    assert not engine.plan.kept.is_inference()


def test_a_buffer_made_in_inference_mode_records() -> None:
    with torch.inference_mode():
        buffer = ScoreBuffer(3)
    buffer.observe(torch.tensor([2.0]), torch.tensor([1]))
    assert buffer.scores[1].item() == 2.0


CALLS: dict[str, Callable[[pe.PruneEngine, Tensor], Tensor]] = {
    "targets": lambda engine, x: engine.cross_entropy_observe(x, made([0, 1]), made([0, 1])),
    "class_weight": lambda engine, x: engine.cross_entropy_observe(
        x, torch.tensor([0, 1]), made([0, 1]), class_weight=made([1.0, 2.0])
    ),
    "denom": lambda engine, x: engine.observe(x.sum(1), made([0, 1]), denom=made(3.0)),
    "denom of logits": lambda engine, x: engine.cross_entropy_observe(
        x, torch.tensor([0, 1]), made([0, 1]), denom=made(3.0)
    ),
    "score": lambda engine, x: engine.observe(x.sum(1), made([0, 1]), score=made([1.0, 2.0])),
    "mask": lambda engine, x: engine.observe(
        x, made([0, 1]), reducer=Tokens(made([[True, True], [True, False]]))
    ),
    "auxiliary": lambda engine, x: engine.observe(
        x, made([0, 1]), reducer=Pixels(auxiliary=[(made(0.5), x * 2)])
    ),
    "pairs": lambda engine, x: engine.observe(
        x.sum(1),
        made([0, 1]),
        reducer=MixedPairs(
            made([[0.0, 1.0], [1.0, 0.0]]), made([0, 1]), mix_targets(made([0, 1]), 2, 0.5)
        ),
    ),
    "scalar": lambda engine, x: engine.observe(x.sum(), made([0, 1]), reducer=BatchScalar()),
}


def made(values: Any) -> Tensor:
    with torch.inference_mode():
        return torch.tensor(values)


@pytest.mark.parametrize("name", list(CALLS))
def test_arguments_made_in_inference_mode_are_served(name: str) -> None:
    engine = pe.PruneEngine(N, pe.KeepAll(), num_epochs=1)
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    CALLS[name](engine, x).backward()
    assert x.grad is not None
    assert int(x.grad.count_nonzero()) > 0


def test_torch_itself_would_refuse_them() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    with pytest.raises(RuntimeError, match="saved for backward"):
        F.cross_entropy(x, made([0]))
