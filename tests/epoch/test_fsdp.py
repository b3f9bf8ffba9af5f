# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and DDP over two gloo ranks: the engine prunes the same, whoever holds the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from _processes import start_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import prune_engine as pe

N, SIZE, EPOCHS = 480, 20, 4
pytestmark = pytest.mark.distributed


def small_model() -> torch.nn.Sequential:
    """Return a model that draws nothing: the same on every rank."""
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3, bias=False)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            count = parameter.numel()
            parameter.copy_(torch.linspace(-0.5, 0.5, count).sin().view_as(parameter))
    return model


def train(model: Any, prune: bool = True) -> dict[str, Any]:
    """Train a wrapped model; return each epoch's kept set and this rank's last losses."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 8, generator=generator)
    dataset = TensorDataset(x, x[:, :3].argmax(dim=1))
    policy = pe.InfoBatch(0.5, delta=1.0) if prune else pe.KeepAll()
    engine = pe.PruneEngine(dataset, policy, num_epochs=EPOCHS, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    kept, losses = [], torch.empty(0)
    for _ in engine.epochs():
        kept.append(engine.plan.kept.clone())
        for features, labels, indices in engine.loader(dataset, SIZE):
            losses = cross_entropy(model(features), labels, reduction="none")
            engine.observe(losses, indices).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"kept": kept, "losses": losses.detach(), "scores": engine.scores()}


def work(rank: int, size: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    sharded, mesh = small_model(), init_device_mesh("cpu", (size,))
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    held: Any = sharded[0].weight
    assert held.to_local().shape[0] == 16 // size, "control: each rank holds a part"
    found = {
        "ddp": train(DistributedDataParallel(small_model())),
        "fsdp": train(sharded),
        "full": train(DistributedDataParallel(small_model()), prune=False),
    }
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()


def test_fsdp_keeps_the_sets_that_ddp_keeps(tmp_path):
    assert start_ranks(work, 2, str(tmp_path)).join() == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{q}.pt", weights_only=True) for q in range(2))
    for rank in (first, second):
        for ours, theirs in zip(rank["fsdp"]["kept"], rank["ddp"]["kept"], strict=True):
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(rank["fsdp"]["scores"], rank["ddp"]["scores"])
        torch.testing.assert_close(rank["fsdp"]["losses"], rank["ddp"]["losses"])
    sizes = [len(kept) for kept in first["fsdp"]["kept"]]
    assert sizes[0] == N
    assert max(sizes[1:]) < N, "control: something is pruned"
    assert not torch.equal(first["fsdp"]["losses"], second["fsdp"]["losses"]), "two shares"
    full = first["full"]["scores"]
    assert not torch.allclose(full, first["fsdp"]["scores"]), "control: pruning trains another way"
