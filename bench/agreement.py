# SPDX-License-Identifier: Apache-2.0
"""Whether a cheaper X(b) drops the same batches: hooks, fused, sampled, and torch's float32 std.

python bench/agreement.py --data-root ../shared/data --out bench/results/agreement.json

One training of the recipe's small CNN on Fashion-MNIST, in fixed batches and a fixed order, is
watched by all ways at once, so that nothing but the measurement differs. In every epoch from the
third on each way drops the share of the batches whose X moved least; what counts is how many of
those that the hooks' exact X drops are dropped by the other as well.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import compare
import environment
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prune_engine as pe
from prune_engine.policies.batches.monitor import FusedActivation
from prune_engine.policies.batches.stability import smallest, statistic
from prune_engine.recipes import data, models

EXACT = "hooks"
SAMPLES = (8, 32)
FIRST = 2  # B-PAS decides first after its second epoch


class TorchStd:
    """X(b) by ``Tensor.std``, in the activations' own float32."""

    def __init__(self, model: nn.Module) -> None:
        self.parts: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, FusedActivation):
                module.register_forward_hook(lambda _m, _i, y: self.parts.append(y.detach().std()))

    def take(self) -> Tensor:
        """The mean over the layers of what the last forward pass left."""
        parts, self.parts = self.parts, []
        return torch.stack(parts).mean().double()


def watch(model: nn.Module) -> dict[str, Any]:
    """All ways, on one model: the fused activations first, the hooks on what they return."""
    ways: dict[str, Any] = {"fused": pe.ActivationMonitor(model, fuse=True)}
    ways[EXACT] = pe.ActivationMonitor(model, FusedActivation)
    for sample in SAMPLES:
        name = f"sample=1/{sample}"
        ways[name] = pe.ActivationMonitor(model, FusedActivation, sample=sample)
    ways["torch.std, float32"] = TorchStd(model)
    return ways


def value(way: Any) -> Tensor:
    """X(b) of the batch that was just seen, float64 []."""
    taken = way.take()
    return taken if taken.dim() == 0 else statistic(taken[None], unbiased=True)[0]


def record(images: Tensor, labels: Tensor, batch: int, epochs: int, seed: int) -> dict[str, Tensor]:
    """Train once; return X of every way, float64 [epochs, batches]."""
    model = models.build("cnn", (1, 28, 28), 10, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ways = watch(model)
    generator = torch.Generator().manual_seed(seed)
    members = torch.randperm(len(images), generator=generator).split(batch)
    seen: dict[str, list[Tensor]] = {name: [] for name in ways}
    for epoch in range(epochs):
        for part in members:
            loss = F.cross_entropy(model(images[part]), labels[part])
            for name, way in ways.items():
                seen[name].append(value(way))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"seed {seed}, epoch {epoch + 1}/{epochs}", file=sys.stderr, flush=True)
    return {name: torch.stack(values).view(epochs, -1) for name, values in seen.items()}


def compare_ways(found: dict[str, Tensor], share: float) -> dict[str, dict[str, float]]:
    """For each way: error of X, error beside the change that decides, and equal drops."""
    exact = found[EXACT]
    alive = torch.ones(exact.shape[1], dtype=torch.bool)
    count = round(share * exact.shape[1])

    def dropped(way: Tensor, epoch: int) -> Tensor:
        change = (way[epoch] - way[epoch - 1]).abs()
        return change <= smallest(change, alive, count)

    out: dict[str, dict[str, float]] = {}
    for name, way in found.items():
        change, wanted = way.diff(dim=0)[FIRST - 1 :], exact.diff(dim=0)[FIRST - 1 :]
        same = [
            (dropped(way, epoch) & dropped(exact, epoch)).sum().item() / count
            for epoch in range(FIRST, len(exact))
        ]
        out[name] = {
            "relative_error": float((way / exact - 1).abs().median()),
            "error_of_change": float(((change - wanted).abs() / wanted.abs()).median()),
            "same_drops": sum(same) / len(same),
        }
    return out


def mean_over_seeds(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Each figure's mean over the runs."""
    return {
        name: {what: sum(run[name][what] for run in runs) / len(runs) for what in figures}
        for name, figures in runs[0].items()
    }


def page(document: dict[str, Any]) -> str:
    """The run as a Markdown table."""
    setting, facts = document["setting"], document["environment"]
    lines = [
        [
            name,
            f"{figures['relative_error']:.1e}",
            f"{figures['error_of_change']:.1e}",
            f"{figures['same_drops']:.1%}",
        ]
        for name, figures in document["ways"].items()
    ]
    header = ["X(b) by", "median error of X", "of its change", "same batches dropped"]
    return (
        f"n = {setting['seeds']} seeds, {setting['batches']} batches of {setting['batch']}, "
        f"{setting['epochs']} epochs, the {setting['share']:.0%} that moved least; {facts['cpu']}, "
        f"torch {facts['torch']}, commit {facts['commit']}, {document['started']}.\n\n"
        f"{tables.markdown(header, lines)}\n"
    )


def main(argv: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench/agreement.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(argv)
    loaded = data.load("fashion_mnist", str(given.data_root), limit=given.batch * given.batches)
    assert isinstance(loaded, data.ImageData)
    images = (loaded.train_images.float() - loaded.mean) / loaded.std
    labels = loaded.train_labels
    started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    runs = [
        compare_ways(record(images, labels, given.batch, given.epochs, seed), given.share)
        for seed in range(given.seeds)
    ]
    document = {
        "started": started,
        "environment": environment.describe(),
        "setting": {
            "batch": given.batch,
            "batches": given.batches,
            "epochs": given.epochs,
            "share": given.share,
            "seeds": given.seeds,
        },
        "ways": mean_over_seeds(runs),
        "runs": runs,
    }
    given.out.write_text(compare.to_json(document))
    print(page(document), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
