# SPDX-License-Identifier: Apache-2.0
"""Runs stopped in the middle of an epoch, whose states earlier versions saved.

``tests/epoch/states/NAME.pt`` is what ``write`` left there when it ran on the package as it was
before policies had their socket (version 2), ``states/3/NAME.pt`` when a state got its device step
and 256 weights; a version that cannot go on from one has broken a user's run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from _runs import N, batches, observe

import prune_engine as pe

SEED, EPOCHS = 11, 8
STATES = Path(__file__).with_name("epoch") / "states"
VERSIONS = {2: STATES, 3: STATES / "3"}
POLICIES: dict[str, pe.policies.Policy] = {
    "infobatch": pe.InfoBatch(0.5, delta=1.0),
    "bpas": pe.BPAS(10, 0.05, 0.2, noise_floor=1.0, shuffle_batches=True),
    "random_batches": pe.RandomBatches(10, kept=(9, 8, 8, 6)),
    "ucb": pe.UCB(0.6, period=2),
}
EPOCH, BATCHES = 4, 3  # where they stopped: so many batches of that epoch are trained


def fresh(name: str) -> pe.PruneEngine:
    """Return the engine of a run that has not begun."""
    return pe.PruneEngine(N, POLICIES[name], num_epochs=EPOCHS, seed=SEED, backend="cpu")


def train(engine: pe.PruneEngine, until: tuple[int, int]) -> list[list[int]]:
    """Train to (epoch, batches of it) and return the batches."""
    done: list[list[int]] = []
    while engine.epoch < until[0] or engine.cursor < 10 * until[1]:
        for batch in batches(engine.sampler(), 10):
            observe(engine, batch)
            done.append(batch)
            if engine.epoch == until[0] and engine.cursor >= 10 * until[1]:
                return done
        engine.end_epoch()
    return done


def write(folder: Path) -> None:
    """Save every run where it stops; the folder must be there."""
    for name in POLICIES:
        engine = fresh(name)
        train(engine, (EPOCH, BATCHES))
        torch.save(engine.state_dict(), folder / f"{name}.pt")
