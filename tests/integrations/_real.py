# SPDX-License-Identifier: Apache-2.0
"""Real data whose content says which sample it is, plain loops, and what was credited to whom."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

import prune_engine as pe

PIXELS = 64
MARKS = 3  # tokens at the start of a row that say which it is


class Digits(Dataset[Any]):
    """Handwritten digits, 8 x 8; the 65th number of a row is the row's own."""

    def __init__(self, n: int = 203, first: int = 0) -> None:
        images, labels = load_digits(return_X_y=True)
        rows = torch.arange(n, dtype=torch.float32)[:, None]
        chosen = torch.tensor(images[first : first + n], dtype=torch.float32) / 16
        self.x = torch.cat([chosen, rows], dim=1)
        self.y = torch.tensor(labels[first : first + n])
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        self.fetched.append(index)
        return self.x[index], int(self.y[index])


class DigitRecords(Digits):
    """The same as mappings."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"x": x, "labels": y}


class Net(nn.Module):
    """A small classifier that notes which rows it was trained on, by their content.

    With ``double`` several ranks score as one process does, to the last bit of a float32: they add
    gradients in another order.
    """

    def __init__(self, seed: int = 0, *, double: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, 10))
        self.dtype = torch.float64 if double else torch.float32
        self.layers.to(self.dtype)
        self.trained: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.trained.append(x[:, PIXELS].long().tolist())
        return self.layers(x[:, :PIXELS].to(self.dtype))


class Order(Sampler[int]):
    """Some rows in a given order, another one in each epoch."""

    def __init__(self, orders: list[list[int]]) -> None:
        self.orders, self.epoch = orders, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.orders[0])

    def __iter__(self) -> Any:
        return iter(self.orders[self.epoch])


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    """Return all entries in their order."""
    return [each for batch in batches for each in batch]


def weights(model: nn.Module) -> Tensor:
    """Return a copy of all parameters in one vector."""
    return torch.cat([each.detach().flatten().clone() for each in model.parameters()])


@contextmanager
def credited() -> Iterator[list[list[int]]]:
    """Note the indices of each call of ``observe``, in whatever engine."""
    seen: list[list[int]] = []
    observe = pe.PruneEngine.observe

    def noted(self: Any, losses: Tensor, indices: Tensor, **options: Any) -> Tensor:
        seen.append(indices.tolist())
        return observe(self, losses, indices, **options)

    with mock.patch.object(pe.PruneEngine, "observe", noted):
        yield seen


def figures(engine: pe.PruneEngine) -> list[str]:
    """Return the history as text, in which nan equals nan, without the figure of the clock."""
    return [str({**report.as_dict(), "engine_seconds": 0}) for report in engine.history]


def plain_run(
    dataset: Any,
    policy: Any,
    *,
    epochs: int = 3,
    batch_size: int = 8,
    lr: float = 0.1,
    seed: int = 0,
    accumulate: int = 1,
    double: bool = False,
) -> tuple[pe.PruneEngine, Net]:
    """Train the plain loop of the README, which every integration must equal."""
    net = Net(double=double)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    engine = pe.PruneEngine(dataset, policy, num_epochs=epochs, seed=seed)
    loader = engine.loader(dataset, batch_size, accumulate=accumulate)
    for _ in engine.epochs():
        for step, (x, y, indices) in enumerate(loader, 1):
            losses = F.cross_entropy(net(x), y, reduction="none")
            (engine.observe(losses, indices) / accumulate).backward()
            if step % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return engine, net


def equals_alone(
    saved: tuple[list[str], list[list[list[int]]]], engine: pe.PruneEngine, net: Net
) -> None:
    """Fail unless two ranks trained, batch for batch in halves, what one process does.

    Args:
        saved: what a rank saw: the figures of its engine, and what each rank trained.
        engine: of the training by one process.
        net: its.
    """
    history, (first, second) = saved
    assert history == figures(engine)
    # The same gradient but for the order of its sum: the same samples, two halves a batch.
    steps = [sorted([*a, *b]) for a, b in zip(first, second, strict=True)]
    assert steps == [sorted(batch) for batch in net.trained]
    assert len(flat(first)) == len(flat(second))


def english(count: int, *, longest: int = 48) -> list[dict[str, Any]]:
    """Return rows of Python's own manual as bytes, of 16 tokens and more.

    Each begins with three tokens, not trained on, that say which row it is; the text itself is
    there too, as a column that no model takes.
    """
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    body = text.encode("ascii", "ignore")
    rows: list[dict[str, Any]] = []
    at = 0
    for index in range(count):
        size = 13 + index * 7 % (longest - MARKS - 12)
        piece = body[at : at + size]
        at += size
        marks = [128 + index // 64**place % 64 for place in range(MARKS)]
        rows.append(
            {
                "input_ids": [*marks, *piece],
                "labels": [-100] * MARKS + list(piece),
                "text": piece.decode("ascii"),
            }
        )
    assert at <= len(body)
    return rows


def named(input_ids: Tensor) -> list[int]:
    """Return which rows these are."""
    digits = input_ids[:, :MARKS] - 128
    return (digits * torch.tensor([64**place for place in range(MARKS)])).sum(1).tolist()


def padded(items: Sequence[Any]) -> dict[str, Tensor]:
    """Collate rows of tokens."""
    size = max(len(item["input_ids"]) for item in items)
    batch = {"input_ids": torch.zeros(len(items), size, dtype=torch.long)}
    batch["labels"] = torch.full((len(items), size), -100)
    batch["attention_mask"] = torch.zeros(len(items), size, dtype=torch.long)
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        batch["input_ids"][row, :length] = torch.tensor(item["input_ids"])
        batch["labels"][row, :length] = torch.tensor(item["labels"])
        batch["attention_mask"][row, :length] = 1
    return batch
