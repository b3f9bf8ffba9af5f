# SPDX-License-Identifier: Apache-2.0
"""Arguments are looked at before they are used: a sentence with a name, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import prune_engine as pe

FOUR, ONES = torch.arange(4), torch.ones(4)
GRID, PIXELS = torch.ones(4, 3), torch.ones(4, 3, 3)
MIXED = (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4, 3))


def engine(**options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(4, pe.KeepAll(), num_epochs=2, **options)


OBSERVED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"losses": GRID, "indices": [0, 1, 2, 3], "reducer": pe.losses.Tokens()},
        TypeError,
        "indices must be a tensor, got list",
    ),
    (
        {
            "losses": torch.tensor(1.0),
            "indices": torch.tensor(1),
            "reducer": pe.losses.BatchScalar(),
        },
        ValueError,
        r"indices must be a vector, got shape \(\)",
    ),
    (
        {"losses": torch.tensor(1.0), "indices": ONES, "reducer": pe.losses.BatchScalar()},
        TypeError,
        "indices must be int64 or int32",
    ),
    (
        {"losses": [1.0] * 4, "reducer": pe.losses.Tokens()},
        TypeError,
        "losses must be a tensor, got list",
    ),
    (
        {"losses": 1.0, "reducer": pe.losses.BatchScalar()},
        TypeError,
        "losses must be a tensor, got float",
    ),
    ({"losses": GRID.long(), "reducer": pe.losses.Tokens()}, TypeError, "losses must be floating"),
    ({"losses": GRID, "reducer": pe.losses.Tokens}, TypeError, "reducer must be a Reducer"),
    ({"losses": GRID, "reducer": lambda x: x}, TypeError, "reducer must be a Reducer"),
    (
        {"losses": GRID, "reducer": pe.losses.Tokens(np.ones((4, 3), bool))},
        TypeError,
        "mask must be a bool tensor, got ndarray",
    ),
    (
        {"losses": GRID, "reducer": pe.losses.Tokens([[True] * 3] * 4)},
        TypeError,
        "mask must be a bool tensor, got list",
    ),
    (
        {"losses": ONES, "reducer": pe.losses.MixedPairs([[1.0]], *MIXED[1:])},
        TypeError,
        "logits must be a tensor, got list",
    ),
    (
        {"losses": ONES, "reducer": pe.losses.MixedPairs(MIXED[0], ONES, MIXED[2])},
        TypeError,
        "targets must be integers, got torch.float32",
    ),
    (
        {"losses": ONES, "reducer": pe.losses.MixedPairs(MIXED[0], FOUR + 4, MIXED[2])},
        IndexError,
        r"targets must be in 0\.\.2, got 7",
    ),
    ({"losses": ONES, "denom": "4"}, TypeError, "denom must be a number or a tensor, got '4'"),
    ({"losses": ONES, "denom": 0}, ValueError, "denom must be above 0 and finite, got 0"),
    ({"losses": ONES, "denom": float("nan")}, ValueError, "denom must be above 0 and finite"),
    ({"losses": ONES, "denom": ONES}, ValueError, r"denom must be one number, got shape \(4,\)"),
    ({"losses": ONES, "indices": np.arange(4)}, TypeError, "indices must be a tensor, got ndarray"),
    ({"losses": ONES, "score": [1.0] * 4}, TypeError, "score must be a tensor, got list"),
]


@pytest.mark.parametrize(("given", "kind", "message"), OBSERVED)
def test_a_batch_that_does_not_fit_changes_nothing(given, kind, message):
    tried = engine()
    before = tried.state_dict()
    with pytest.raises(kind, match=message):
        tried.observe(**{"indices": FOUR, **given})
    after = tried.state_dict()
    assert torch.equal(after["buffer"]["records"], before["buffer"]["records"])
    assert (after["cursor"], after["steps"]) == (0, 0)


def test_control_what_fits_is_taken():
    for given in (
        {"losses": GRID, "reducer": pe.losses.Tokens(torch.ones(4, 3, dtype=torch.bool))},
        {"losses": PIXELS, "reducer": pe.losses.Pixels(auxiliary=[[0.4, PIXELS]])},
        {"losses": ONES, "reducer": pe.losses.MixedPairs(*MIXED)},
        {"losses": ONES, "denom": torch.tensor([4])},
        {"losses": ONES, "denom": np.float64(4)},
        {"losses": ONES, "indices": FOUR.int()},
    ):
        loss = engine().observe(**{"indices": FOUR, **given})
        assert loss.shape == () and loss.isfinite()


CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: engine().loader(list(range(4)), None),
        TypeError,
        "batch_size must be a positive int, got None",
    ),
    (
        lambda: engine().device_loader([ONES], None),
        TypeError,
        "batch_size must be a positive int, got None",
    ),
    (
        lambda: engine().loader(list(range(4)), 2, align="2"),
        TypeError,
        "align must be a positive",
    ),
    (
        lambda: engine().device_loader([ONES], 2, align=2.5),
        TypeError,
        "align must be a positive",
    ),
    (lambda: engine().sampler(align=2.5), TypeError, "align must be a positive"),
    (lambda: engine().sampler(shard=3), TypeError, "shard must be 'auto', 'none' or"),
    (lambda: engine().sampler(shard="all"), TypeError, "shard must be 'auto', 'none' or"),
    (lambda: engine().sampler(shard=(0.0, 1.0)), TypeError, "shard must be 'auto', 'none' or"),
    (lambda: engine().device_loader([ONES], 2, shard=3), TypeError, "shard must be 'auto'"),
    (lambda: engine().device_loader([ONES], 2, augment=3), TypeError, "augment must be callable"),
    (
        lambda: list(engine().device_loader([ONES], 2, augment=lambda t, g: t[0])),
        TypeError,
        "augment must return a sequence of tensors, got Tensor",
    ),
    (lambda: engine().wrap_scheduler(object(), None), TypeError, "total_steps must be an int"),
    (lambda: engine().plan.batches(None), TypeError, "batch_size must be an int"),
    (lambda: pe.PruneEngine(4, pe.KeepAll), TypeError, "policy must be a Policy, such as"),
    (lambda: pe.epoch.ScoreBuffer(2.5), TypeError, "num_samples must be an int, got 2.5"),
    (lambda: pe.epoch.ScoreBuffer("2"), TypeError, "num_samples must be an int, got '2'"),
    (lambda: pe.losses.Pixels(auxiliary=[PIXELS]), TypeError, "auxiliary must be pairs"),
    (lambda: pe.losses.Pixels(auxiliary=[(0.4, np.ones(3))]), TypeError, "auxiliary must be pairs"),
    (lambda: pe.losses.mix_targets(FOUR, 4, "a"), TypeError, "lam must be a number"),
    (lambda: pe.losses.mix_targets(FOUR, 4, 1.5), ValueError, "lam must be in 0..1, got 1.5"),
    (lambda: pe.losses.mix_targets(FOUR, 2, 0.5), IndexError, r"targets must be in 0\.\.1, got 3"),
    (
        lambda: pe.data.IndexedDataset(list),
        TypeError,
        "dataset must be a data set, got the class list",
    ),
    (lambda: pe.data.select_subset([1.0], 1), TypeError, "scores must be a tensor, got list"),
    (lambda: pe.data.select_subset(ONES, 1.5), TypeError, "k must be an int, got 1.5"),
    (lambda: pe.data.save_subset("a.npy", [0], 4), TypeError, "indices must be a tensor, got list"),
    (
        lambda: pe.data.save_subset("a.npy", torch.tensor([0.5]), 4),
        TypeError,
        "indices must be integers, got torch.float32",
    ),
    (lambda: engine().sampler().load_state_dict({}), ValueError, "state: epoch: expected an int"),
    (
        lambda: iter(engine().sampler()).load_state_dict({"epoch": 0}),
        ValueError,
        "state: position: expected an int",
    ),
    (
        lambda: engine().cross_entropy_observe(GRID, FOUR * 0, FOUR, label_smoothing="a"),
        TypeError,
        "label_smoothing must be a number",
    ),
    (
        lambda: engine().cross_entropy_observe(GRID, FOUR * 0, FOUR, ignore_index="a"),
        TypeError,
        "ignore_index must be an int",
    ),
    (
        lambda: engine().cross_entropy_observe(GRID, FOUR * 0, [0, 1, 2, 3]),
        TypeError,
        "indices must be a tensor, got list",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), CALLS)
def test_an_argument_that_does_not_fit_is_named(call, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        call()
    assert list(tmp_path.iterdir()) == []
