# SPDX-License-Identifier: Apache-2.0
"""What a recording costs: of an epoch of the demo's CNN on Fashion-MNIST, and alone at any size."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import prune_engine as pe
from prune_engine.recipes import compare, environment, files

HEAD = 4096  # bytes of a file before its first epoch


def train(data_root: str, folder: Path, epochs: int) -> list[dict]:
    """Train with a recording; return the rows."""
    defaults = compare.DEFAULTS["fashion_mnist"]
    settings = {**vars(defaults), "epochs": epochs}
    options = compare.RunOptions(
        data="fashion_mnist", data_root=data_root, out=folder, train=type(defaults)(**settings)
    )
    run = compare.run(options, print)
    assert run is not None
    return files.read_rows(folder / "infobatch-seed0" / "metrics.jsonl")


def alone(n: int, rounds: int = 5) -> tuple[float, float]:
    """Return the median seconds of recording an epoch of n samples, and bytes per sample."""
    with tempfile.TemporaryDirectory() as folder:
        path, seconds = Path(folder) / "run", []
        engine = pe.PruneEngine(n, pe.InfoBatch(0.5, delta=1.0), num_epochs=rounds + 1)
        engine.record(path, max_samples=n)
        for _ in range(rounds):
            order = torch.tensor(list(engine.sampler()))
            engine.observe((order % 977 + 1).float() / 977, order)
            before = engine.recording_seconds
            engine.end_epoch()
            seconds.append(engine.recording_seconds - before)
        size = (path.stat().st_size - HEAD) / rounds / n
    return sorted(seconds)[rounds // 2], size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = train(arguments.data_root, Path(folder) / "run", arguments.epochs)
    print("\n| epoch | trained | epoch, s | recording, ms | share % |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        share = 100 * row["recording_seconds"] / row["seconds"]
        print(
            f"| {row['epoch'] + 1} | {row['served']:,} | {row['seconds']:.2f} | "
            f"{1000 * row['recording_seconds']:.2f} | {share:.3f} |"
        )
    print("\n| samples | recording, ms | bytes per sample and epoch |\n| ---: | ---: | ---: |")
    for n in (60_000, 1_281_167):
        seconds, size = alone(n)
        print(f"| {n:,} | {1000 * seconds:.2f} | {size:.3f} |")
    print(f"\n{environment.describe()}\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
