# SPDX-License-Identifier: Apache-2.0
"""The README's blocks, and the names that its reader has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import prune_engine as pe

ROOT = Path(__file__).resolve().parent.parent


README = ROOT / "README.md"


FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str = "python") -> list[tuple[int, str]]:
    """Return (line of the first line of code, code) of the fenced blocks of a language."""
    return [
        (text.count("\n", 0, match.start()) + 2, match[2])
        for match in FENCE.finditer(text)
        if match[1] == language
    ]


def readers_names(folder: Path) -> dict[str, Any]:
    """Return what a reader of the README has before its first block: a loop that trains."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(640, 8, generator=generator)
    model = torch.nn.Linear(8, 3)
    return {
        "__name__": "readme",
        "torch": torch,
        "F": torch.nn.functional,
        "DataLoader": DataLoader,
        "pe": pe,
        "dataset": TensorDataset(x, x[:, :3].argmax(dim=1)),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "num_epochs": 4,
        "checkpoint": folder / "checkpoint.pt",
    }
