# SPDX-License-Identifier: Apache-2.0
"""The order on its way to the host: asked for a chunk early, read only when it has arrived.

No GPU: the lane here is a device that does nothing before it has to. On one, tests/ops/test_cuda.py
shows that the host does not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import epochs, infobatch, losses_at
from torch import Tensor

import prune_engine as pe
from prune_engine.data.prefetch import DirectReader, PinnedReader
from prune_engine.epoch.plan import CHUNK

KEPT = 4 * CHUNK + 77


class Mark:
    """An event: what was queued before it is done when the host waits for it."""

    def __init__(self, lane: SlowLane) -> None:
        self._lane = lane
        self._behind = lane.queued

    def query(self) -> bool:
        return self._lane.done >= self._behind

    def synchronize(self) -> None:
        self._lane.work(self._behind)


class SlowLane:
    """A device that works when it is waited for, or when ``work`` is called."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], Tensor], Tensor]] = deque()
        self.queued = self.done = self.most = 0
        self.begun: list[Any] = []

    def begin(self, source: Tensor) -> None:
        self.begun.append(source)

    def fetch(self, make: Callable[[], Tensor]) -> tuple[Tensor, Mark]:
        room = torch.full_like(make(), -1)  # pinned memory holds anything until the copy is done
        self.queue.append((make, room))
        self.queued += 1
        self.most = max(self.most, self.queued - self.done)
        return room, Mark(self)

    def work(self, until: int) -> None:
        while self.done < until:
            make, room = self.queue.popleft()
            room.copy_(make())
            self.done += 1


class EagerLane(SlowLane):
    """A device that is always done by the time the host asks."""

    def fetch(self, make: Callable[[], Tensor]) -> tuple[Tensor, Mark]:
        found = super().fetch(make)
        self.work(self.queued)
        return found


def sampler_on(lane: SlowLane, n: int = KEPT, **options: Any) -> pe.data.PruneSampler:
    sampler = pe.PruneEngine(n, pe.KeepAll(), num_epochs=2).sampler(**options)
    sampler.reader = PinnedReader(lane)
    return sampler


def test_a_chunk_is_read_only_when_it_has_arrived():
    lane = SlowLane()
    sampler = sampler_on(lane)
    assert_bitwise(list(sampler), sampler.engine.plan.indices, "order")
    assert lane.queued == lane.done == 5
    assert sampler.reader.waits == 5, "this lane does nothing by itself"


def test_control_without_the_wait_it_reads_what_is_not_there(monkeypatch):
    monkeypatch.setattr(Mark, "query", lambda self: True)
    sampler = sampler_on(SlowLane())
    assert set(sampler) == {-1}


def test_a_lane_that_keeps_up_is_never_waited_for():
    lane = EagerLane()
    sampler = sampler_on(lane)
    assert_bitwise(list(sampler), sampler.engine.plan.indices, "order")
    assert sampler.reader.waits == 0


def test_each_chunk_is_asked_for_while_the_one_before_is_served():
    lane = SlowLane()
    stream = iter(sampler_on(lane))
    next(stream)
    assert (lane.queued, lane.done) == (2, 1), "the second is under way, the first was waited for"
    lane.work(lane.queued)  # meanwhile, the device
    for _ in range(CHUNK - 1):
        next(stream)
    assert lane.queued == 2
    next(stream)
    assert lane.queued == 3
    assert lane.most == 2, "the host holds two chunks, whatever is kept"


def test_the_lane_comes_after_the_plan_and_keeps_its_list():
    lane = SlowLane()
    sampler = sampler_on(lane, 10)
    for _ in range(2):
        list(sampler)
    assert [source is sampler.engine.plan.kept for source in lane.begun] == [True, True]


@pytest.mark.parametrize("rank", [0, 1])
def test_shares_and_resumes_are_the_same_by_either_road(rank):
    engine = infobatch(3 * CHUNK, num_epochs=4)
    order = torch.arange(3 * CHUNK)
    engine.observe(losses_at(order), order)
    engine.end_epoch()
    plain, pinned = (engine.sampler(shard=(rank, 2), align=64) for _ in range(2))
    pinned.reader = PinnedReader(SlowLane())
    assert list(pinned) == list(plain)
    engine._run.seek(640)
    assert list(pinned) == list(plain)
    assert len(list(plain)) == len(plain)


def test_epochs_flow_through_plans_by_either_road():
    def run(reader: Any) -> list[int]:
        engine = pe.PruneEngine(100, pe.InfoBatch(delta=1.0), num_epochs=9, mode="flow")
        sampler = engine.sampler(align=10)
        sampler.reader = reader
        served: list[int] = []
        for _ in range(4):
            for at, index in enumerate(sampler):
                served.append(index)
                if at % 10 == 9:
                    batch = torch.tensor(served[-10:])
                    engine.observe(losses_at(batch, engine.epoch), batch)
        assert engine.epoch > 2
        return served

    assert run(PinnedReader(SlowLane())) == run(DirectReader())


def test_a_cpu_engine_reads_directly():
    engine = infobatch()
    epochs(engine, 1)
    sampler = engine.sampler()
    assert next(iter(sampler)) == engine.plan.indices[0]
    assert isinstance(sampler.reader, DirectReader)
