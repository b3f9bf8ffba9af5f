# SPDX-License-Identifier: Apache-2.0
"""Run folders made without training: rows, a recording and a configuration, as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import prune_engine as pe
from prune_engine.recipes import compare, files


def rows(arm: str, seed: int, served: list[int], n: int, test: float | None) -> list[dict]:
    """Return the rows of one training."""
    return [
        {
            "schema": 1,
            "arm": arm,
            "seed": seed,
            "epoch": epoch,
            "num_epochs": len(served),
            "num_samples": n,
            "train_loss": 0.5,
            "test_accuracy": test,
            "lr": 0.1,
            "planned": count,
            "served": count,
            "saved": n - count,
            "nominal": n,
            "batches": None,
            "threshold": None if arm == "full" or not epoch else 0.5 / epoch,
            "nonfinite": 0,
            "seconds": count / 1000,
            "eval_seconds": 0.1,
            "engine_seconds": 0.02,
            "observe_seconds": 0.01,
            "order_seconds": 0.002,
            "audit_seconds": 0.003,
            "plan_seconds": 0.004,
            "recording_seconds": 0.001,
        }
        for epoch, count in enumerate(served)
    ]


def record(path: Path, n: int, epochs: int, *, max_samples: int = 1 << 22) -> list[int]:
    """Record a run of known losses, all of an epoch in one batch; return what was planned."""
    policy = pe.InfoBatch(0.5, delta=1.0) if epochs > 1 else pe.KeepAll()
    engine = pe.PruneEngine(n, policy, num_epochs=epochs)
    engine.record(path, max_samples=max_samples)
    served: list[int] = []
    for epoch in range(epochs):
        order = torch.tensor(list(engine.sampler()))
        served.append(len(order))
        losses = (1 + (order * 40503 + 7919) % 65521).float() / 32768 / (epoch + 1)
        engine.observe(losses, order)
        engine.end_epoch()
    return served


def make(
    folder: Path,
    *,
    n: int = 400,
    epochs: int = 4,
    test: float | None = 0.9,
    data: str = "digits",
    **more: Any,
) -> files.Run:
    """Make a run of one policy and full training beside it; return it as it is read."""
    name = "infobatch-seed0"
    (folder / name).mkdir(parents=True)
    served = record(folder / name / compare.RECORDING, n, epochs, **more)
    np.save(folder / name / compare.PREDICTIONS, np.zeros(n, np.int32))
    arguments = {"data": data, "limit": n, "train": {"model": "mlp", "epochs": epochs}}
    config = {
        "schema": 1,
        "runs": ["full-seed0", name],
        "policy_arm": "infobatch",
        "num_samples": n,
        "arguments": arguments,
    }
    files.write_json(folder / "config.json", config)
    files.write_rows(
        folder / "full-seed0" / "metrics.jsonl", rows("full", 0, [n] * epochs, n, test)
    )
    files.write_rows(folder / name / "metrics.jsonl", rows("infobatch", 0, served, n, test))
    return files.load_run(folder)
