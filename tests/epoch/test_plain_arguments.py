# SPDX-License-Identifier: Apache-2.0
"""What only behaves like a number, a flag or a word is stored as one: states stay readable."""

from __future__ import annotations

import enum
import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prune_engine as pe
from prune_engine.recipes.compare import RunOptions
from prune_engine.recipes.trainer import TrainConfig

PLAIN = {bool, int, float, str, tuple, type(None)}


class Word(str, enum.Enum):
    """Words as a user's enumeration has them."""

    EPOCH = "epoch"
    SKIP = "skip"
    FIXED = "fixed"
    SAMPLES = "samples"
    BERNOULLI = "bernoulli"
    FULL = "full"
    LOW = "low"


class Number(enum.IntEnum):
    """Numbers as a user's enumeration has them."""

    TWO = 2
    SEVEN = 7


def costume(value: Any) -> Any:
    """Return NumPy's or an enumeration's form of a value."""
    if isinstance(value, tuple):
        return tuple(costume(entry) for entry in value)
    if isinstance(value, str):
        return Word(value)
    kind = {bool: np.bool_, int: np.int64, float: np.float64}.get(type(value))
    return value if kind is None else kind(value)


def kinds(value: Any) -> set[type]:
    inner = set[type]().union(*map(kinds, value)) if isinstance(value, tuple) else set[type]()
    return {type(value)} | inner


POLICIES = [
    pe.InfoBatch(0.25, 0.75, "fixed"),
    pe.InfoBatchQuantile((20.0, 85.0), (0.25, 0.5), 0.75, "fixed"),
    pe.Budget(0.25, 0.5, 0.75),
    pe.UCB(0.5, 2, 0.5),
    pe.EpsilonGreedy(0.5, 2, 0.5, 0.25),
    pe.RandomSubset(0.25, True, 0.75, "bernoulli", True),
    pe.RandomBatches(2, 0.25, kept=(4, 3), drop_last=True, min_batches=1),
    pe.BPAS(2, 1e-3, 1e-2, strict=True, target_dsi=0.25, noise_floor=2.0, min_batches=1),
]


def dressed(policy: pe.policies.Policy) -> dict[str, Any]:
    names = [field.name for field in fields(policy)]
    return {name: costume(getattr(policy, name)) for name in names}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_policy_of_numpys_numbers_is_the_plain_one_and_its_state_is_read_back(policy, tmp_path):
    came = dressed(policy)
    assert set().union(*map(kinds, came.values())) - PLAIN, "control: they were not plain"
    made = type(policy)(**came)
    for field in fields(made):
        assert kinds(getattr(made, field.name)) <= PLAIN, field.name
    assert made == policy
    engine = pe.PruneEngine(
        np.int64(8),
        made,
        num_epochs=Number.SEVEN,
        seed=np.int64(3),
        mode=Word.EPOCH,
        on_nonfinite=Word.SKIP,
        backend=np.str_("cpu"),
    )
    path = tmp_path / "run.pt"
    pe.save_state(engine, path, extra={"at": 1})
    other = pe.PruneEngine(8, policy, num_epochs=7, seed=3)
    assert pe.load_state(other, path) == {"at": 1}
    torch.save(engine.state_dict(), path)
    assert torch.load(path, weights_only=True)["seed"] == 3


def test_a_policy_of_the_users_own_is_described_in_plain_values():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Own(pe.policies.Policy):
        share: float = 0.5

        def rule(self, buffer, progress, memory=None):
            return pe.policies.Rule.keep_all(buffer.device)

    described = Own(np.float64(0.25)).describe()
    assert [type(value) for value in described.values()] == [str, float]


def test_the_horizon_is_plain_too():
    engine = pe.PruneEngine(
        8, pe.KeepAll(), mode="flow", horizon=np.float64(0.25), num_epochs=np.int64(2)
    )
    state = engine.state_dict()
    kinds = [type(state[name]) for name in ("num_samples", "horizon", "num_epochs")]
    assert kinds == [int, float, int]


def test_reducers_store_plain_values():
    scalar = pe.losses.BatchScalar(np.float64(0.5))
    pixels = pe.losses.Pixels(
        auxiliary=[(np.float64(0.5), torch.ones(1, 2, 2))], average=Word.SAMPLES
    )
    assert [type(scalar.decay), type(pixels.average)] == [float, str]
    assert type(pixels.auxiliary[0][0]) is float
    with pytest.raises(TypeError, match="decay must be a number"):
        pe.losses.BatchScalar("0.5")  # pyright: ignore[reportArgumentType]


def test_monitors_and_loaders_store_plain_values():
    with pe.ActivationMonitor(nn.Sequential(nn.ReLU()), sample=np.int64(2)) as monitor:
        assert type(monitor.sample) is int
    engine = pe.PruneEngine(8, pe.KeepAll(), num_epochs=2)
    loader = engine.device_loader([torch.zeros(8)], np.int64(2), align=np.int64(4))
    assert [type(loader.batch_size), type(loader.sampler.align)] == [int, int]
    host = engine.loader(list(range(8)), Number.TWO, align=np.int64(4))
    assert [type(host.batch_size), type(host.sampler.align)] == [int, int]
    assert type(engine.sampler(shard=(np.int64(0), np.int64(2))).shard[0]) is int
    scheduler = engine.wrap_scheduler(object(), np.int64(5))
    assert type(scheduler.total_steps) is int
    assert type(pe.epoch.ScoreBuffer(np.int64(3)).num_samples) is int


def test_a_subset_of_numpys_numbers_is_written(tmp_path):
    about = {"k": np.int64(2), "share": [np.float64(0.5)]}
    path = pe.data.save_subset(tmp_path / "a.npy", torch.tensor([0, 1]), np.int64(4), about=about)
    note = json.loads((tmp_path / "a.npy.json").read_text())
    assert (note["num_samples"], note["about"]) == (4, {"k": 2, "share": [0.5]})
    assert len(pe.data.load_subset(path, num_samples=np.int64(4))) == 2


def test_the_command_lines_options_are_plain(tmp_path):
    train = TrainConfig("mlp", np.int64(2), np.int64(16), np.float64(0.1), amp=np.bool_(False))
    options = RunOptions(
        "digits", tmp_path, train, prune_ratio=np.float64(0.5), seeds=(Number.TWO,)
    )
    assert [type(train.lr), type(train.epochs), type(train.amp)] == [float, int, bool]
    assert [type(options.prune_ratio), type(options.seeds[0])] == [float, int]


@pytest.mark.parametrize("value", [np.bool_(True), True, np.float64(2.0), "2"], ids=repr)
def test_what_is_no_count_is_refused_in_any_costume(value):
    with pytest.raises(TypeError, match="num_epochs must be a positive int"):
        pe.PruneEngine(8, pe.KeepAll(), num_epochs=value)
    with pytest.raises(TypeError, match="rescale must be a bool"):
        pe.RandomSubset(0.5, rescale="yes")  # pyright: ignore[reportArgumentType]


def test_a_float32_is_read_as_the_decimal_it_prints_as():
    assert pe.InfoBatch(np.float32(0.1)) == pe.InfoBatch(0.1)  # pyright: ignore[reportArgumentType]
