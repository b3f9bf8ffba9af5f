# SPDX-License-Identifier: Apache-2.0
"""A prompt sampler against verl's interface alone: verl itself is not run here."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

import prune_engine as pe
from prune_engine.integrations.verl import PromptSampler, reward_spread

N, SIZE, EPOCHS = 103, 10, 4
CONFIG = {"train_batch_size": SIZE, "seed": 3, "prune": {"num_epochs": EPOCHS, "delta": 1.0}}


class AbstractCurriculumSampler(Sampler[int], ABC):
    """The interface as verl has it."""

    @abstractmethod
    def __init__(self, data_source: Any, data_config: Any) -> None: ...

    @abstractmethod
    def update(self, batch: Any) -> None: ...


class Curriculum(PromptSampler, AbstractCurriculumSampler):
    """As the page has it."""


def rollouts(prompts: list[int], *, each: int = 4) -> Any:
    """Return a step's batch: rollouts of its prompts, easy ones of equal rewards."""
    index = np.repeat(np.asarray(prompts), each)
    turn = np.tile(np.arange(each), len(prompts))
    rewards = np.where(index % 3 == 0, 1.0, (turn + index) % 2).astype(np.float64)
    tokens = np.zeros((len(index), 5))
    tokens[:, -1] = rewards
    return SimpleNamespace(
        batch={"token_level_scores": torch.tensor(tokens)}, non_tensor_batch={"index": index}
    )


def trainer(sampler: Any, epochs: int, stop: int | None = None) -> tuple[list[Any], Any]:
    """Train as verl does: a stateful loader, an update after each step, a rest that is dropped."""
    loader = StatefulDataLoader(range(N), SIZE, sampler=sampler, drop_last=True, num_workers=0)
    seen: list[list[int]] = []
    while sampler.epoch < epochs:
        assert len(loader) == len(sampler) // SIZE
        for batch in loader:
            assert isinstance(sampler, AbstractCurriculumSampler)
            sampler.update(rollouts(batch.tolist()))
            seen.append(batch.tolist())
            if len(seen) == stop:
                return seen, loader.state_dict()
    return seen, None


def test_prompts_with_nothing_to_learn_are_dropped_and_come_back():
    sampler = Curriculum(range(N), CONFIG)
    seen, _ = trainer(sampler, EPOCHS)
    assert len(seen[0]) == SIZE
    first = [prompt for batch in seen[:10] for prompt in batch]
    assert len(set(first)) == 100, "the first epoch is whole, but for the rest that verl drops"
    later = [prompt for batch in seen[10:] for prompt in batch]
    easy = sum(prompt % 3 == 0 for prompt in later)
    assert easy < 0.7 * sum(prompt % 3 == 1 for prompt in later)
    assert len({prompt for prompt in later if prompt % 3 == 0}) > 20, "another half each epoch"
    assert sampler.epoch == EPOCHS


def test_its_decisions_are_those_of_the_engine():
    sampler = Curriculum(range(N), CONFIG)
    trainer(sampler, 1)
    assert sampler.epoch == 1
    engine = pe.PruneEngine(N, pe.InfoBatch(0.5, delta=1.0), num_epochs=EPOCHS, seed=3)
    seen = np.nonzero(~np.isnan(sampler.scores))[0]
    engine.observe(torch.tensor(sampler.scores[seen]), torch.tensor(seen))
    engine.end_epoch(partial=True)
    count = len(engine.plan) // SIZE * SIZE
    assert engine.plan.indices[:count].tolist() == list(sampler)


@pytest.mark.parametrize("stop", [3, 10, 14])
def test_a_resumed_run_is_the_run_that_was_never_stopped(stop):
    whole, _ = trainer(Curriculum(range(N), CONFIG), EPOCHS)
    sampler = Curriculum(range(N), CONFIG)
    got, _ = trainer(sampler, EPOCHS, stop)
    saved = json.loads(json.dumps(sampler.state_dict()))  # plain data
    resumed = Curriculum(range(N), CONFIG)
    resumed.load_state_dict(saved)
    rest, _ = trainer(resumed, EPOCHS)
    assert got + rest == whole


def test_annealing_is_full():
    sampler = Curriculum(range(N), {**CONFIG, "prune": {"num_epochs": 2, "delta": 0.5}})
    seen, _ = trainer(sampler, 2)
    assert len(seen) == 2 * (N // SIZE)


def test_an_epoch_of_less_than_a_batch_is_refused():
    config = {"train_batch_size": 100, "prune": {"num_epochs": 4, "prune_ratio": 0.9}}
    sampler = Curriculum(range(N), config)
    with pytest.raises(pe.PruneEngineError, match="fewer than a batch of 100"):
        sampler.update(rollouts(list(sampler)))


def test_a_state_of_another_run_is_refused():
    saved = Curriculum(range(N), CONFIG).state_dict()
    other = Curriculum(range(N), {**CONFIG, "seed": 4})
    with pytest.raises(pe.StateMismatchError, match="seed is 3 there and 4 here"):
        other.load_state_dict(saved)
    mine = Curriculum(range(N), CONFIG)
    with pytest.raises(pe.StateMismatchError, match="edited"):
        mine.load_state_dict({**saved, "cursor": 10**6})
    del saved["order"]
    with pytest.raises(pe.StateMismatchError, match="order is missing"):
        mine.load_state_dict(saved)


def test_a_batch_of_other_prompts_is_refused():
    sampler = Curriculum(range(N), CONFIG)
    order = list(sampler)
    with pytest.raises(pe.PruneEngineError, match="not the next 10"):
        sampler.update(rollouts(order[10:20]))
    sampler.update(rollouts(order[:10]))
    sampler.update(rollouts(order[10:20]))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"train_batch_size": SIZE}, "num_epochs"),
        ({**CONFIG, "train_batch_size": 0}, "train_batch_size"),
        ({**CONFIG, "prune": {"num_epochs": 3, "prune_ratio": 1.0}}, "prune_ratio"),
    ],
)
def test_bad_numbers_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        Curriculum(range(N), config)


def test_a_score_is_the_spread_of_a_prompts_rewards():
    prompts, scores = reward_spread(rollouts([3, 1, 2]))
    assert prompts.tolist() == [1, 2, 3]
    assert scores.tolist() == [0.5, 0.5, 0.0]


def test_it_imports_no_torch():
    code = "import sys, prune_engine.integrations.verl; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
