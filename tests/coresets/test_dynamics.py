# SPDX-License-Identifier: Apache-2.0
"""Scores of training dynamics equal their papers' formulas, whatever order batches came in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from _processes import start_ranks
from torch import Tensor

import prune_engine as pe
from prune_engine.coresets import DynamicsMemory, TrainingDynamics

N, C, EPOCHS = 12, 3, 9
POLICY = TrainingDynamics(window=4, first=6, decay=0.7, num_classes=C)
TARGETS = torch.arange(N) % C


def logits_at(epoch: int) -> Tensor:
    return torch.randn(N, C, generator=torch.Generator().manual_seed(epoch), dtype=torch.float64)


def trained(policy: TrainingDynamics = POLICY, epochs: int = EPOCHS, **options: Any):
    engine = pe.PruneEngine(N, policy, num_epochs=EPOCHS, seed=3, **options)
    while engine.epoch < epochs:
        epoch(engine)
    return engine


def epoch(engine: pe.PruneEngine) -> None:
    served = torch.tensor(list(engine.sampler()))
    for part in served.split(5):
        engine.cross_entropy_observe(logits_at(engine.epoch)[part], TARGETS[part], part)
    engine.end_epoch()


def memory_of(engine: pe.PruneEngine) -> DynamicsMemory:
    assert isinstance(engine.memory, DynamicsMemory)
    return engine.memory


def want(name: str, policy: TrainingDynamics = POLICY) -> np.ndarray:
    z = np.stack([logits_at(epoch).numpy() for epoch in range(EPOCHS)])
    logs = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
    p = np.exp(logs)
    j, found = policy.window, []
    for i, y in enumerate(TARGETS.tolist()):
        own = p[:, i, y]
        if name == "aum":
            others = np.delete(z[:, i], y, axis=1).max(axis=1)
            found.append(-np.mean(z[:, i, y] - others))
        elif name == "dyn_unc":
            found.append(np.mean([own[t : t + j].std(ddof=1) for t in range(EPOCHS - j + 1)]))
        elif name == "dual":
            parts = [own[t : t + j] for t in range(policy.first - j + 1)]
            found.append(np.mean([part.std(ddof=1) * (1 - part.mean()) for part in parts]))
        else:
            kl = [
                np.abs(p[t + 1, i] * (logs[t + 1, i] - logs[t, i])).sum() for t in range(EPOCHS - 1)
            ]
            total = 0.0
            for t in range(len(kl) - j + 1):
                part = np.array(kl[t : t + j])
                length = np.linalg.norm(part - part.mean())
                total += policy.decay * (1 - policy.decay) ** (len(kl) - j - t) * length
            found.append(total)
    return np.array(found)


@pytest.mark.parametrize("name", ["aum", "dyn_unc", "dual", "tdds"])
def test_scores_are_those_of_the_papers(name: str, backend: str) -> None:
    found = memory_of(trained(backend=backend)).scores(name)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), want(name), rtol=1e-5)


def test_the_window_advances_and_all_epochs_count() -> None:
    """The known faults: a window that stays, an AUM of the last epoch alone."""
    whole = memory_of(trained())
    z = logits_at(EPOCHS - 1)
    margins = [z[i, y] - torch.cat((z[i, :y], z[i, y + 1 :])).max() for i, y in enumerate(TARGETS)]
    assert not torch.allclose(whole.scores("aum"), -torch.stack(margins).float())
    for name in ("dyn_unc", "tdds"):
        early = memory_of(trained(epochs=6)).scores(name)
        assert not torch.allclose(whole.scores(name), early)
    assert torch.allclose(whole.scores("dual"), memory_of(trained(epochs=6)).scores("dual"))


def test_a_state_resumes_bit_for_bit() -> None:
    stopped, whole = trained(epochs=5), trained()
    part = torch.tensor(list(stopped.sampler()))[:5]
    stopped.cross_entropy_observe(logits_at(5)[part], TARGETS[part], part)
    disk = io.BytesIO()
    torch.save(stopped.state_dict(), disk)
    disk.seek(0)
    resumed = pe.PruneEngine(N, POLICY, num_epochs=EPOCHS, seed=3)
    resumed.load_state_dict(torch.load(disk, weights_only=True))
    while resumed.epoch < EPOCHS:
        epoch(resumed)
    for name in ("aum", "dyn_unc", "dual", "tdds"):
        one, other = (memory_of(engine).scores(name) for engine in (resumed, whole))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    state = stopped.state_dict()
    other = TrainingDynamics(window=5, first=6, decay=0.7, num_classes=C)
    with pytest.raises(pe.StateMismatchError, match="window"):
        pe.PruneEngine(N, other, num_epochs=EPOCHS, seed=3).load_state_dict(state)


def test_a_sample_that_is_not_shown_is_as_it_was() -> None:
    memory = DynamicsMemory(POLICY, N, torch.device("cpu"))
    buffer = pe.epoch.ScoreBuffer(N)
    for t in range(EPOCHS):
        shown = torch.arange(N) if t not in (0, 5) else torch.arange(1, N)
        memory.record(shown, logits_at(t)[shown], TARGETS[shown])
        memory.end_epoch(buffer, t)
    p = [torch.softmax(logits_at(t), 1)[0, 0].item() for t in range(EPOCHS)]
    p[5] = p[4]
    windows = [np.std(p[t : t + 4], ddof=1) for t in range(1, EPOCHS - 3)]  # none with epoch 0
    assert memory.scores("dyn_unc")[0].item() == pytest.approx(np.mean(windows))
    np.testing.assert_allclose(memory.scores("dyn_unc").numpy()[1:], want("dyn_unc")[1:], rtol=1e-5)
    logs = [torch.log_softmax(logits_at(t), 1)[0].numpy() for t in range(EPOCHS)]
    logs[5] = logs[4]
    kl = [np.abs(np.exp(logs[t + 1]) * (logs[t + 1] - logs[t])).sum() for t in range(1, EPOCHS - 1)]
    total = 0.0
    for t in range(len(kl) - 3):
        part = np.array(kl[t : t + 4])
        total = 0.3 * total + 0.7 * np.linalg.norm(part - part.mean())
    assert memory.scores("tdds")[0].item() == pytest.approx(total)


def test_too_few_epochs_are_nan_and_refused_by_select() -> None:
    memory = memory_of(trained(epochs=3))
    assert memory.scores("aum").isfinite().all()
    for name in ("dyn_unc", "dual", "tdds"):
        assert memory.scores(name).isnan().all()
    with pytest.raises(ValueError, match="scores must not be nan, got nan at sample 0"):
        pe.coresets.select("hardest", scores=memory.scores("dual"), k=3, balance=False)
    found = pe.coresets.select("hardest", scores=memory.scores("aum"), targets=TARGETS, k=6)
    assert torch.bincount(TARGETS[found.indices]).tolist() == [2, 2, 2]


def test_ignored_targets_and_strange_indices_are_left_out() -> None:
    memory = DynamicsMemory(POLICY, N, torch.device("cpu"))
    z = logits_at(0)[:3]
    memory.record(torch.tensor([0, N, -1]), z, torch.tensor([-100, 0, 1]))
    assert memory.scores("aum").isnan().all()
    memory.record(torch.tensor([0, 1, 2], dtype=torch.int32), z, torch.tensor([0, 1, 2]))
    assert memory.scores("aum").isfinite().sum() == 3


def test_what_does_not_fit_is_refused() -> None:
    engine = pe.PruneEngine(N, POLICY, num_epochs=2)
    with pytest.raises(ValueError, match=r"call engine\.cross_entropy_observe"):
        engine.observe(torch.ones(2), torch.tensor([0, 1]))
    memory = DynamicsMemory(TrainingDynamics(), N, torch.device("cpu"))
    with pytest.raises(ValueError, match="num_classes must be given"):
        memory.scores("tdds")
    with pytest.raises(ValueError, match="name must be one of 'aum'"):
        memory.scores("loss")
    with pytest.raises(ValueError, match="num_classes=3, got 4"):
        DynamicsMemory(POLICY, N, torch.device("cpu")).record(
            torch.arange(2), torch.zeros(2, 4), torch.zeros(2).long()
        )
    for options in ({"window": 1}, {"first": 3}, {"decay": 0.0}, {"num_classes": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TrainingDynamics(**options)


def refused_on(rank: int, size: int, store: str) -> None:
    """One rank: a policy without such a memory is an engine's, this one is nobody's."""
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    assert pe.PruneEngine(N, pe.KeepAll(), num_epochs=1).plan.num_kept == N
    with pytest.raises(ValueError, match=f"recorded by one process, got {size} ranks"):
        trained()
    dist.barrier()


@pytest.mark.full("starts processes")
@pytest.mark.parametrize("size", [1, 2])
def test_several_ranks_are_refused_where_one_is_not(tmp_path, size) -> None:
    codes = start_ranks(refused_on, size, str(tmp_path / "store")).join()
    assert codes == ([0, 0] if size == 2 else [1]), "control: one rank records, and nothing raises"
