# SPDX-License-Identifier: Apache-2.0
"""A state that an earlier version saved in the middle of an epoch goes on bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import figures, plain
from _stopped import BATCHES, EPOCH, EPOCHS, POLICIES, VERSIONS, fresh, train

import prune_engine as pe
from prune_engine.epoch.state import upgraded

names = pytest.mark.parametrize("name", POLICIES)
versions = pytest.mark.parametrize("version", VERSIONS)


def saved(name: str, version: int = 2) -> Any:
    return torch.load(VERSIONS[version] / f"{name}.pt", weights_only=True)


def rest(engine: pe.PruneEngine, state: Any) -> list[list[int]]:
    engine.load_state_dict(state)
    return train(engine, (EPOCHS, 0))


@versions
@names
def test_an_old_state_goes_on_as_the_run_that_never_stopped(name, version):
    whole, resumed = fresh(name), fresh(name)
    train(whole, (EPOCH, BATCHES))
    want = train(whole, (EPOCHS, 0))
    assert rest(resumed, saved(name, version)) == want
    assert figures(resumed) == figures(whole)
    assert_bitwise(resumed.buffer.records, whole.buffer.records, "records")
    assert plain(resumed.state_dict()) == plain(whole.state_dict())
    assert len({report.planned for report in whole.history}) > 1, "there were decisions to take"


@versions
@names
def test_a_state_saved_now_is_what_it_was(name, version):
    engine = fresh(name)
    train(engine, (EPOCH, BATCHES))
    now, then = plain(engine.state_dict()), plain(upgraded(saved(name, version)))
    for part, old in [(now, then), *zip(now["history"], then["history"], strict=True)]:
        assert {key: part[key] for key in old if key in part and key != "history"} == {
            key: value for key, value in old.items() if key not in ("history", "total_steps")
        }


@names
def test_a_version_without_a_device_step_goes_on_from_its_count_of_steps(name):
    engine, old = fresh(name), saved(name)
    assert old["version"] == 2
    assert "step" not in old["buffer"]
    engine.load_state_dict(old)
    assert engine.buffer.step.item() == engine.steps == old["steps"] > 0
    assert "step" not in old["buffer"], "the caller's state is left alone"


@names
def test_control_one_changed_byte_of_the_records_is_seen(name):
    whole, resumed = fresh(name), fresh(name)
    train(whole, (EPOCHS, 0))
    state = saved(name)
    # Of a score that no later epoch replaces, or else the run would heal.
    served = {sample for batch in rest(fresh(name), saved(name)) for sample in batch}
    gone = next((i for i in range(100) if i not in served), 0)
    state["buffer"]["records"].view(torch.uint8)[8 * gone + 2] ^= 0x40
    rest(resumed, state)
    assert plain(resumed.state_dict()) != plain(whole.state_dict())
