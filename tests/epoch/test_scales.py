# SPDX-License-Identifier: Apache-2.0
"""Losses of any scale: every rule of the mean keeps the same sets, on one rank or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _ranks import Ranks
from _runs import batches, losses_at
from _sums import SCALES
from torch import Tensor

import prune_engine as pe

Change = Callable[[Tensor], Tensor]
N, BATCH, EPOCHS = 9_000, 300, 3
RULES: dict[str, pe.policies.Policy] = {
    "infobatch": pe.InfoBatch(0.5, delta=1.0),
    "proportional": pe.policies.Proportional(0.5, floor=0.1, delta=1.0),
    "infobatch_fixed": pe.InfoBatch(0.3, delta=1.0, sampling="fixed"),
}


def scaled(exponent: int, shift: float = 0.0) -> Change:
    return lambda losses: (losses - shift) * 2.0**exponent


def kept(policy: str, change: Change, size: int = 1, **options: Any) -> list[Any]:
    """Train on a rank of several; return each epoch's sorted samples and what they weighed."""
    engine = pe.PruneEngine(N, RULES[policy], num_epochs=EPOCHS, seed=4, **options)
    epochs = []
    for epoch in engine.epochs():
        seen: list[tuple[int, float]] = []
        for batch in batches(engine.sampler(align=BATCH), BATCH // size):
            score = change(losses_at(batch, epoch))
            weights = engine.observe(
                torch.ones(len(batch)), torch.tensor(batch), score=score, reduction="none"
            )
            seen += zip(batch, weights.tolist(), strict=True)
        epochs.append(sorted(seen))
    return epochs


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["positive", "mixed"])
@pytest.mark.parametrize("policy", RULES)
def test_scaled_losses_keep_the_same_sets(policy, backend, shift):
    want = kept(policy, scaled(0, shift), backend=backend)
    assert len(want[1]) < 0.9 * N, "something is pruned"
    for exponent in SCALES:
        got = kept(policy, scaled(exponent, shift), backend=backend)
        assert got == want, f"losses times 2^{exponent}"


@pytest.mark.parametrize("divided", [False, True], ids=["undivided", "divided"])
@pytest.mark.parametrize("exponent", SCALES)
def test_two_ranks_keep_them_too(exponent, divided):
    def work(_: int) -> list[Any]:
        return kept("infobatch", scaled(exponent), 2, shard_scores=divided)

    found = Ranks(2).run(work)
    together = [sorted(pair for rank in found for pair in rank[at]) for at in range(EPOCHS)]
    assert together == kept("infobatch", scaled(0))


def test_control_losses_on_a_curve_keep_other_sets():
    assert kept("infobatch", lambda losses: losses**3) != kept("infobatch", scaled(0))
