# SPDX-License-Identifier: Apache-2.0
"""What ``prune-engine inspect`` finds in a saved state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine.epoch.fits import row, rows
from prune_engine.epoch.score_buffer import ScoreBuffer

STATE_NAMES = (
    "version",
    "num_samples",
    "policy",
    "seed",
    "mode",
    "num_epochs",
    "horizon",
    "epoch",
    "cursor",
    "steps",
)
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def inspect_state(file: Path) -> dict[str, Any]:
    """Say what a saved engine state holds, without an engine and without running any code in it.

    Args:
        file: see ``load_buffer``.

    Returns:
        Version, run, position, what was seen and quantiles of the scores, ready for JSON.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state of an engine.
    """
    saved, buffer = load_buffer(file)
    scores = buffer.scores
    seen = torch.sort(scores[torch.isfinite(scores)]).values
    history = [row(report) for report in rows(saved.get("history"))]
    return {
        **{name: saved.get(name) for name in STATE_NAMES},
        "epochs_ended": len(history),
        "data_saving_index": history[-1].get("dsi", 0.0) if history else 0.0,
        "planned": int((buffer.weight_class != 0).sum()),
        "seen": len(seen),
        "score_quantiles": {
            f"{q:g}": float(seen[round(q * (len(seen) - 1))]) for q in QUANTILES if len(seen)
        },
    }


def load_buffer(file: Path) -> tuple[dict[str, Any], ScoreBuffer]:
    """Read a saved engine state and its scores, as plain data.

    Args:
        file: written by ``torch.save`` of ``engine.state_dict()``, or of a checkpoint that has it
            under one of its keys.

    Returns:
        The state and a buffer on the cpu that holds its scores.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state of an engine.
    """
    if not file.is_file():
        raise FileNotFoundError(f"state: no file {file}")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise  # it cannot be read, so nothing is known of what is in it
    except Exception as error:
        # torch raises many kinds for what is not its file, or holds more than tensors and numbers.
        raise ValueError(f"state: torch cannot load {file} as plain data: {error}") from error
    saved = _find_state(loaded)
    if saved is None:
        raise ValueError(f"state: {file} holds no engine.state_dict(), neither whole nor by a key")
    if not isinstance(saved["buffer"].get("records"), Tensor):
        raise ValueError(f"state: {file} has no tensor 'records' in its buffer")
    buffer = ScoreBuffer(saved["buffer"]["records"].numel(), device="cpu", backend="reference")
    problems = buffer.state_problems(saved["buffer"])
    if problems:
        raise ValueError(f"state: {file}: {'; '.join(problems)}")
    buffer.load_state_dict(saved["buffer"])
    return saved, buffer


def _find_state(loaded: Any) -> dict[str, Any] | None:
    """The engine's state in a loaded file: the file itself, or one of its values."""
    if not isinstance(loaded, dict):
        return None
    outer = cast(dict[str, Any], loaded)
    for value in (outer, *outer.values()):
        if isinstance(value, dict):
            inner = cast(dict[str, Any], value)
            if {"num_samples", "policy"} <= set(inner) and isinstance(inner.get("buffer"), dict):
                return inner
    return None
