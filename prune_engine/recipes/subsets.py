# SPDX-License-Identifier: Apache-2.0
"""What ``prune-engine select`` does: a fixed subset from the scores of a saved state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from prune_engine.bands import decimal_fraction
from prune_engine.data.subset import save_subset, select_subset
from prune_engine.losses.scores import forgetting_events
from prune_engine.recipes.inspection import load_buffer


def choose(
    state: Path,
    out: Path,
    *,
    keep: Literal["hard", "easy", "moderate"],
    count: int | None = None,
    fraction: float | None = None,
    events: bool = False,
) -> dict[str, Any]:
    """Select a subset from a saved engine state and write it for any loader.

    Args:
        state: see ``inspection.load_buffer``.
        out: the ``.npy`` to write.
        keep: see ``subset.select_subset``.
        count: how many samples, or
        fraction: which share of all, in 0..1, rounded down.
        events: the scores were made with ``score="forgetting"``: select by the number of events.

    Returns:
        What was written, ready for JSON.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state, a sample was never seen, or a number does not fit.
    """
    if (count is None) == (fraction is None):
        raise ValueError("exactly one of count and fraction must be given")
    saved, buffer = load_buffer(state)
    if fraction is not None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in 0..1, got {fraction}")
        count = int(decimal_fraction(fraction) * buffer.num_samples)
    scores = forgetting_events(buffer.scores) if events else buffer.scores
    indices = select_subset(scores, count or 0, keep)
    chosen = scores[indices]
    finite = chosen[torch.isfinite(chosen)]
    about = {
        "keep": keep,
        "score": "forgetting events" if events else "as recorded",
        "state": state.name,
        "epoch": saved.get("epoch"),
        "seed": saved.get("seed"),
        "lowest": float(finite.min()) if len(finite) else None,
        "highest": float(finite.max()) if len(finite) else None,
    }
    save_subset(out, indices, buffer.num_samples, about=about)
    return {"out": str(out), "count": len(indices), "num_samples": buffer.num_samples, **about}
