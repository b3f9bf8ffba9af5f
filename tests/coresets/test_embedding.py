# SPDX-License-Identifier: Apache-2.0
"""Features of a data set: in the right rows, from the right layer, resumed, and refused."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prune_engine as pe
from prune_engine.coresets import embed

N = 23


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
        return nn.Sequential(*layers)


@pytest.fixture
def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 4, generator=generator), torch.arange(N) % 3)


def want(model: nn.Module, dataset: TensorDataset) -> tuple[Tensor, Tensor]:
    model.eval()
    with torch.no_grad():
        features = model[:4](dataset.tensors[0])
        return features, model[4](features)


def shuffled(dataset: TensorDataset) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(pe.data.IndexedDataset(dataset), 5, shuffle=True, generator=generator)


def test_rows_are_the_data_sets_own_whatever_the_order(model, dataset) -> None:
    model.train()
    model[1].eval()  # one module that its owner keeps apart
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for loader in (DataLoader(dataset, 5, generator=torch.Generator()), shuffled(dataset)):
        found = embed(model, loader)
        assert model.training and not model[1].training and model[3].training
        assert not model[4]._forward_pre_hooks
        copy = nn.Sequential(*model)
        features, logits = want(copy, dataset)
        model.train(), model[1].eval()
        torch.testing.assert_close(found.features, features)
        torch.testing.assert_close(found.logits, logits)
        assert torch.equal(found.targets, dataset.tensors[1])
        assert torch.equal(found.head, model[4].weight)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_what_is_embedded_is_what_select_takes(model, dataset) -> None:
    made = embed(model, shuffled(dataset))
    found = pe.coresets.select(
        "deepfool", logits=made.logits, head=made.head, targets=made.targets, k=5
    )
    assert len(found) == 5


def test_another_layer_and_half_precision(model, dataset) -> None:
    loader = DataLoader(dataset, 5, generator=torch.Generator())
    made = embed(model, loader, layer=model[2], amp=True)
    assert made.features.shape == (N, 6) and made.features.dtype == torch.float32
    assert made.head is None, "a ReLU has no weights"
    exact = embed(model, loader, layer=model[2])
    assert not torch.equal(made.logits, exact.logits)
    torch.testing.assert_close(made.logits, exact.logits, rtol=0.1, atol=0.1)


def test_files_are_mapped_and_gone_on_with(model, dataset, tmp_path: Path) -> None:
    whole = embed(model, shuffled(dataset))
    told: list[int] = []

    def stop(done: int, of: int) -> None:
        told.append(done)
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(model, shuffled(dataset), folder=tmp_path, progress=stop)
    assert told == [5, 10, 15]
    calls: list[int] = []
    model[0].register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = embed(model, shuffled(dataset), folder=tmp_path)
    assert calls == [5, 3], "what was done is not done again"
    for name in ("features", "logits", "targets"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert np.array_equal(stored, whole.features.numpy())
    again = embed(model, shuffled(dataset), folder=tmp_path)
    assert calls == [5, 3] and torch.equal(again.features, whole.features)


def test_another_order_goes_on_as_well(model, dataset, tmp_path: Path) -> None:
    whole = embed(model, shuffled(dataset))

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(model, shuffled(dataset), folder=tmp_path, progress=stop)
    found = embed(model, DataLoader(dataset, 7, generator=torch.Generator()), folder=tmp_path)
    torch.testing.assert_close(found.features, whole.features)


def test_the_work_of_another_model_is_refused(model, dataset, tmp_path: Path) -> None:
    embed(model, shuffled(dataset), folder=tmp_path)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="holds the work of another model"):
        embed(model, shuffled(dataset), folder=tmp_path)
    (tmp_path / "embedding.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON object"):
        embed(model, shuffled(dataset), folder=tmp_path)


def test_the_work_of_another_layer_or_precision_is_refused(model, dataset, tmp_path: Path) -> None:
    made = embed(model, shuffled(dataset), folder=tmp_path)
    for options in ({"layer": model[2]}, {"amp": True}):
        with pytest.raises(ValueError, match="another model, layer or data set"):
            embed(model, shuffled(dataset), folder=tmp_path, **options)
    again = embed(model, shuffled(dataset), folder=tmp_path, layer=model[4], amp=False)
    assert torch.equal(again.features, made.features), "control: the same layer by its name"


@pytest.mark.parametrize("broken_off", [True, False])
def test_the_work_of_another_data_set_is_refused(model, dataset, tmp_path, broken_off) -> None:
    def stop(done: int, of: int) -> None:
        if broken_off:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if broken_off else nullcontext():
        embed(model, shuffled(dataset), folder=tmp_path, progress=stop)
    other = TensorDataset(dataset.tensors[0], (dataset.tensors[1] + 1) % 3)
    with pytest.raises(ValueError, match="another data set: its targets are not those"):
        embed(model, shuffled(other), folder=tmp_path)
    assert len(embed(model, shuffled(dataset), folder=tmp_path).targets) == N  # control


def test_a_disk_without_room_says_so_and_leaves_nothing(model, dataset, tmp_path, monkeypatch):
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*features\.npy"):
        embed(model, shuffled(dataset), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []

    def unknown(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    assert len(embed(model, shuffled(dataset), folder=tmp_path).targets) == N


class Cooled(nn.Module):
    """A model whose logits are not what its last layer gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / 2


@pytest.mark.parametrize("amp", [True, False])
def test_a_head_is_given_only_where_it_makes_the_logits(model, dataset, amp) -> None:
    loader = DataLoader(dataset, 5, generator=torch.Generator())
    assert embed(model, loader, amp=amp).head is not None
    assert embed(Cooled(model), loader, amp=amp).head is None


def batches(*indices: list[int]) -> list[tuple[Tensor, ...]]:
    return [
        (torch.ones(len(rows), 4), torch.zeros(len(rows)).long(), torch.tensor(rows))
        for rows in indices
    ]


@pytest.mark.parametrize(
    ("loader", "kind", "message"),
    [
        (batches([0, 1], [1]), ValueError, "each sample once"),
        (batches([0, 0], [1]), ValueError, "each sample once"),
        (batches([0, 2]), ValueError, "got 2; sample 1 never came"),
        (batches([0, 3]), IndexError, r"indices in 0\.\.2, got 3"),
        (batches([-1, 0]), IndexError, "got -1"),
        ([], ValueError, "sample 0 never came"),
        ([(torch.ones(3, 4), torch.zeros(3))], TypeError, "targets that are integers, got"),
        (
            [(torch.ones(3, 4), torch.zeros(3, 2).long())],
            ValueError,
            r"one target and one index a sample, got targets \[3, 2\]",
        ),
        ([torch.ones(3, 4)], TypeError, r"batches \(inputs, targets\)"),
        ([{"x": torch.ones(3, 4)}], TypeError, "got dict"),
    ],
)
def test_what_a_loader_gives_wrong_is_refused(model, loader, kind, message) -> None:
    good = batches([2, 0], [1])
    assert embed(model, good, num_samples=3).features.shape == (3, 6)  # control
    with pytest.raises(kind, match=message):
        embed(model, loader, num_samples=3)


def test_a_shuffling_loader_without_indices_is_refused(model, dataset) -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match="in order, got shuffle=True"):
        embed(model, DataLoader(dataset, 5, shuffle=True, generator=generator))
    sampler = torch.utils.data.SubsetRandomSampler(range(N), generator=generator)
    with pytest.raises(ValueError, match="got SubsetRandomSampler"):
        embed(model, DataLoader(dataset, 5, sampler=sampler, generator=generator))


def test_what_is_no_classifier_is_refused(model, dataset) -> None:
    loader = DataLoader(dataset, 5, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"model must have an nn\.Linear"):
        embed(nn.ReLU(), loader)
    with pytest.raises(ValueError, match="layer must be a part of the model"):
        embed(model, loader, layer=nn.ReLU())
    with pytest.raises(ValueError, match="num_samples must be given"):
        embed(model, batches([0]))
