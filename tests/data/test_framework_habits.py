# SPDX-License-Identifier: Apache-2.0
"""What frameworks do with a loader, without the framework: exact, or refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from _ranks import Ranks
from _runs import N, Numbers, batches, infobatch, losses_at, through_disk
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import prune_engine as pe

SIZE, EPOCHS = 10, 4


def train(engine: pe.PruneEngine, stream: Any) -> list[list[int]]:
    """Observe what a framework yields."""
    trained = []
    for *_, indices in stream:
        engine.observe(losses_at(indices, engine.epoch), indices)
        trained.append(indices.tolist())
    return trained


def plain_run(engine: pe.PruneEngine) -> list[list[list[int]]]:
    loader = engine.loader(Numbers(), SIZE)
    return [train(engine, loader) for _ in engine.epochs()]


def one_ahead(stream: Any) -> Iterator[Any]:
    """Fetch a batch before the last one is given out, to know which is the last."""
    iterator = iter(stream)
    held = next(iterator, None)
    while held is not None:
        following = next(iterator, None)
        yield held
        held = following


def several_ahead(stream: Any, count: int = 4) -> Iterator[Any]:
    """Fetch all micro-batches of an optimizer step at once."""
    iterator = iter(stream)
    while some := list(islice(iterator, count)):
        yield from some


@pytest.mark.parametrize("habit", [one_ahead, several_ahead])
@pytest.mark.parametrize("workers", [0, 2])
def test_looking_ahead_is_exact(habit, workers):
    engine, marks = infobatch(num_epochs=EPOCHS), []
    loader = engine.loader(Numbers(), SIZE, num_workers=workers)
    trained = []
    for epoch in engine.epochs():
        trained.append([])
        for *_, indices in habit(loader):
            engine.observe(losses_at(indices, epoch), indices)
            trained[-1].append(indices.tolist())
            marks.append((engine.cursor, len(trained[-1]) * SIZE))
    assert trained == plain_run(infobatch(num_epochs=EPOCHS))
    assert all(cursor == count for cursor, count in marks), "what was trained, not what was fetched"


@pytest.mark.parametrize("at", [3, 6])
@pytest.mark.parametrize("habit", [one_ahead, several_ahead])
def test_a_stop_while_looking_ahead_loses_nothing(habit, at):
    whole, stopped, resumed = (infobatch(num_epochs=EPOCHS) for _ in range(3))
    want = plain_run(whole)
    got = train(stopped, islice(habit(stopped.loader(Numbers(), SIZE)), at))
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    got += train(resumed, habit(resumed.loader(Numbers(), SIZE)))
    assert got == want[0]


@pytest.mark.parametrize("at", [3, 6])
def test_a_framework_that_skips_the_first_batches(at):
    whole, stopped, resumed = (infobatch(num_epochs=EPOCHS) for _ in range(3))
    want = plain_run(whole)
    got = train(stopped, islice(stopped.loader(Numbers(), SIZE), at))
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    loader = resumed.loader(Numbers(), SIZE, resume="replay")
    assert len(loader) == N // SIZE
    got += train(resumed, islice(loader, at, None))
    assert got == want[0]
    resumed.end_epoch()
    assert train(resumed, loader) == want[1], "only the restored epoch has places to skip"


def test_a_framework_that_goes_on_counting():
    whole, stopped, resumed = (infobatch(num_epochs=EPOCHS) for _ in range(3))
    want = plain_run(whole)
    got = train(stopped, islice(stopped.loader(Numbers(), SIZE), 4))
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    loader = resumed.loader(Numbers(), SIZE, resume="length")
    count, total = 4, len(loader)
    for *_, indices in loader:
        resumed.observe(losses_at(indices, 0), indices)
        got.append(indices.tolist())
        count += 1
    assert (count, total) == (10, 10)
    assert got == want[0]


@pytest.mark.parametrize("resume", ["rest", "length", "replay"])
def test_a_framework_that_iterates_once_for_every_epoch_that_is_past(resume):
    # So that a random sampler's generator comes to where it was.
    whole, stopped, resumed = (infobatch(num_epochs=EPOCHS) for _ in range(3))
    want = plain_run(whole)
    loader = stopped.loader(Numbers(), SIZE)
    for _ in range(2):
        train(stopped, loader)
        stopped.end_epoch()
    train(stopped, islice(loader, 3))
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    loader = resumed.loader(Numbers(), SIZE, resume=resume)
    for _ in range(2):
        next(iter(loader))
    skipped = 3 if resume == "replay" else 0
    assert train(resumed, islice(loader, skipped, None)) == want[2][3:]
    resumed.end_epoch()
    assert train(resumed, loader) == want[3]


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_framework_that_keeps_the_first_length(ahead):
    engine = pe.PruneEngine(N, pe.InfoBatch(0.5, delta=1.0), mode="flow", num_epochs=EPOCHS)
    loader = engine.loader(Numbers(), SIZE)
    length, counts = len(loader), []
    while not engine.done:
        stream = one_ahead(loader) if ahead else loader
        counts.append(len(train(engine, stream)))
        assert len(loader) == length
    assert set(counts[:-1]) == {length}
    assert counts[-1] <= length
    assert sum(counts) * SIZE == engine.history.samples_trained < EPOCHS * N


def test_a_flow_that_is_skipped_into_goes_on():
    def make() -> pe.PruneEngine:
        return pe.PruneEngine(N, pe.InfoBatch(0.5, delta=1.0), mode="flow", num_epochs=EPOCHS)

    def framework(engine: pe.PruneEngine, skipped: int, stop: int, resume: Any) -> list[Any]:
        loader = engine.loader(Numbers(), SIZE, resume=resume)
        first = islice(loader, skipped if resume == "replay" else 0, None)
        trained = train(engine, islice(first, stop))
        while len(trained) < stop and not engine.done:
            trained += train(engine, islice(loader, stop - len(trained)))
        return trained

    want = framework(make(), 0, 99, "rest")
    for resume in ("replay", "length"):
        for at in (3, 13, 17):
            stopped, resumed = make(), make()
            got = framework(stopped, 0, at, "rest")
            resumed.load_state_dict(through_disk(stopped.state_dict()))
            got += framework(resumed, at % (N // SIZE), 99, resume)
            assert got == want, (resume, at)


@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
def test_a_sampler_that_was_replaced_is_named(kind):
    engine = infobatch(num_epochs=EPOCHS)
    dataset = engine.dataset(Numbers())
    chance = torch.Generator().manual_seed(1)
    sampler = kind(dataset, generator=chance) if kind is RandomSampler else kind(dataset)
    loader = DataLoader(dataset, SIZE, sampler=sampler, generator=chance)
    train(engine, loader)
    engine.end_epoch()  # everything is kept in the first
    train(engine, loader)
    with pytest.raises(pe.CoverageError, match=r"the loader does not use engine\.sampler"):
        engine.end_epoch()


def test_a_sampler_in_another_batch_sampler_is_exact():
    engine = infobatch(num_epochs=EPOCHS)
    inner = BatchSampler(engine.sampler(batch_size=SIZE), SIZE, drop_last=False)
    loader = DataLoader(engine.dataset(Numbers()), batch_sampler=inner, generator=torch.Generator())
    got = [train(engine, loader) for _ in engine.epochs()]
    assert got == plain_run(infobatch(num_epochs=EPOCHS))


class Even:
    """Deal out the batches of one share among ranks, begin anew where the last round is short."""

    def __init__(self, stream: Any, rank: int, size: int) -> None:
        self.stream, self.rank, self.size = stream, rank, size

    def __iter__(self) -> Iterator[list[int]]:
        dealt = list(self.stream)
        while len(dealt) % self.size:
            dealt.append(dealt[len(dealt) % self.size])
        yield from dealt[self.rank :: self.size]


@pytest.mark.parametrize("batch_size", [SIZE, None], ids=["aligned", "padded"])
def test_batches_that_are_padded_until_they_are_even(batch_size):
    def work(rank: int) -> Any:
        engine = infobatch(9 * SIZE, EPOCHS)
        sampler = engine.sampler(shard="none", batch_size=batch_size)
        for batch in Even(batches(sampler, SIZE), rank, 2):
            engine.observe(losses_at(batch), torch.tensor(batch))
        try:
            return engine.end_epoch().repeated
        except pe.CoverageError as error:
            return str(error)

    found = Ranks(2).run(work)
    if batch_size is None:
        assert all("padding repeats 10 samples" in str(each) for each in found), found
    else:
        assert found == [0, 0], "eight full batches, four for each rank"


def test_what_a_framework_assigns_reaches_the_data_set():
    engine, dataset = infobatch(), Numbers()
    dataset.transform = None
    wrapped: Any = engine.dataset(dataset)
    wrapped.transform = str.upper
    assert dataset.transform is str.upper, "where its __getitem__ looks for it"
    wrapped.n = 90
    assert len(dataset) == len(wrapped) == 90
    wrapped.mine = 1
    assert not hasattr(dataset, "mine"), "what it does not have stays outside"


class Table(Numbers):
    """Has what data sets of tables have."""

    def map(self, function: Any) -> Any:
        return [function(self[i]) for i in range(len(self))]

    filter = select = shuffle = train_test_split = map


@pytest.mark.parametrize("name", ["map", "filter", "select", "shuffle", "train_test_split"])
def test_what_returns_another_data_set_is_refused(name):
    wrapped = infobatch().dataset(Table())
    with pytest.raises(AttributeError, match=rf"{name} of an indexed data set.*wrap last"):
        getattr(wrapped, name)
    assert not hasattr(wrapped, name)
    assert wrapped.classes == Table.classes, "control: other attributes are read"
