# SPDX-License-Identifier: Apache-2.0
"""A position is served once and trained once, whatever a loop does with its batches."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _ranks import Ranks
from _runs import N, Numbers, batches, figures, infobatch, losses_at, observe, serve, through_disk
from torch import Tensor

import prune_engine as pe

SIZE = 10
Step = Callable[[pe.PruneEngine, Tensor, Tensor], None]


# --- one batch, observed more than once ----------------------------------------------------------


def look(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    engine.observe(losses, indices)


def look_twice(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    """SAM: the second loss is that of moved weights."""
    engine.observe(losses, indices)
    engine.observe(losses, indices)


def search_a_line(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    """L-BFGS: a closure, called as often as it likes."""
    for _ in range(1 + int(indices[0]) % 5):
        engine.observe(losses, indices)


def try_again_in_halves(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    """The whole batch did not fit into memory, after it was observed."""
    engine.observe(losses, indices)
    for part in (slice(4, None), slice(0, 4)):
        engine.observe(losses[part], indices[part])


def try_again_interleaved(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    for first in (0, 1):
        engine.observe(losses[first::2], indices[first::2])
    engine.observe(losses, indices)


def accumulate(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    """Micro-batches."""
    for some, positions in zip(losses.split(3), indices.split(3), strict=True):
        engine.observe(some, positions)


def look_at_a_copy(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    """The closure moves the batch to its device each time; nothing is drawn ahead here."""
    for _ in range(2):
        engine.observe(losses, indices.clone())


def use_one_buffer(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    """The indices are copied into the same tensor for every batch, as for a CUDA graph."""
    buffer = vars(engine).setdefault("buffer_of_the_test", torch.empty(SIZE, dtype=torch.int64))
    buffer[: len(indices)].copy_(indices)
    engine.observe(losses, buffer[: len(indices)])
    engine.observe(losses, buffer[: len(indices)])


def take_another_function(engine: pe.PruneEngine, losses: Tensor, indices: Tensor) -> None:
    logits = torch.stack([losses, torch.zeros_like(losses)], 1)
    engine.observe(losses, indices)
    engine.cross_entropy_observe(logits, torch.zeros_like(indices), indices)
    engine.observe(losses, indices)


STEPS: list[Step] = [
    look_twice,
    search_a_line,
    try_again_in_halves,
    try_again_interleaved,
    accumulate,
    look_at_a_copy,
    use_one_buffer,
]


def run(engine: pe.PruneEngine, step: Step, stop: int = 10**9) -> Iterator[tuple[Any, ...]]:
    """Train; yield what the engine says after every batch."""
    for epoch in engine.epochs():
        for batch in batches(engine.sampler(), SIZE):
            step(engine, losses_at(batch, epoch), torch.tensor(batch))
            yield batch, engine.cursor, engine.progress
            stop -= 1
            if not stop:
                return


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_cursor_progress_and_decisions_are_those_of_one_look(step):
    engine, plain = infobatch(num_epochs=4), infobatch(num_epochs=4)
    assert list(run(engine, step)) == list(run(plain, look))
    assert_bitwise(engine.scores(), plain.scores(), "scores")
    assert [r.served for r in engine.history] == [r.served for r in plain.history]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("at", [3, 12, 19])
def test_a_resumed_run_goes_on_where_training_was(step, at):
    whole, stopped, resumed = (infobatch(num_epochs=4) for _ in range(3))
    want = [row[0] for row in run(whole, step)]
    got = [row[0] for row in run(stopped, step, at)]
    resumed.load_state_dict(through_disk(stopped.state_dict()))
    got += [row[0] for row in run(resumed, step)]
    assert got == want
    assert_bitwise(resumed.plan.indices, whole.plan.indices, "order")


def test_a_batch_of_the_same_samples_in_another_tensor_is_another_batch():
    # Control: it is told by the tensor, for to look into it would make the host wait.
    engine = pe.PruneEngine(N, pe.KeepAll(), num_epochs=1)  # whoever feeds it, it serves nothing
    for _ in range(2):
        engine.observe(torch.ones(SIZE), torch.arange(SIZE))
    assert engine.cursor == 2 * SIZE
    indices = torch.arange(SIZE)
    for _ in range(2):
        engine.observe(torch.ones(SIZE), indices)
    assert engine.cursor == 3 * SIZE


def test_one_tensor_for_all_epochs_is_a_batch_in_each():
    # Training on everything at once, or on batches that were made beforehand.
    everything = torch.arange(N)
    engine = pe.PruneEngine(N, pe.KeepAll(), num_epochs=3)
    for epoch in engine.epochs():
        for _ in range(2):
            engine.observe(losses_at(everything, epoch), everything)
            assert (engine.cursor, engine.steps) == (N, epoch + 1)
    assert engine.buffer.step.item() == 3


@pytest.mark.parametrize("looks", [1, 2])
def test_views_of_one_tensor_are_batches_each(looks):
    def slices(engine: pe.PruneEngine) -> Iterator[Tensor]:
        yield from torch.tensor(list(engine.sampler())).split(SIZE)

    def resident(engine: pe.PruneEngine) -> Iterator[Tensor]:
        for _, indices in engine.device_loader([torch.arange(N)], SIZE):
            yield indices

    for stream in (slices, resident):
        engine = infobatch(num_epochs=2)
        for number, indices in enumerate(stream(engine), 1):
            for _ in range(looks):
                engine.observe(losses_at(indices), indices)
            assert (engine.cursor, engine.steps) == (number * SIZE, number)
            assert engine.buffer.step.item() == number, "what a pick of the next step reads"
        assert engine.end_epoch().repeated == 0


def test_what_was_refused_is_not_counted():
    engine = infobatch()
    batch = torch.tensor(next(batches(engine.sampler(), SIZE)))
    with pytest.raises(IndexError):
        engine.observe(torch.ones(SIZE), batch + 10**6)
    with pytest.raises(ValueError, match="indices must be a vector of 11"):
        engine.observe(torch.ones(SIZE + 1), batch)
    assert (engine.cursor, engine.steps) == (0, 0)
    engine.observe(torch.ones(SIZE), batch)
    assert (engine.cursor, engine.steps) == (SIZE, 1)


def test_several_engines_follow_one_loader():
    # Two losses of one model: each engine has the scores of its own.
    first = infobatch(num_epochs=3)
    second = pe.PruneEngine(N, pe.KeepAll(), num_epochs=3)
    for epoch in first.epochs():
        for _, _, indices in first.loader(Numbers(), SIZE):
            first.observe(losses_at(indices, epoch), indices)
            second.observe(losses_at(indices, epoch + 7), indices)
            assert first.cursor == second.cursor
        report = second.end_epoch(partial=True)
        assert (report.observed, report.extra) == (first.cursor, 0)
    assert second.progress == 1.0


# --- steps that are skipped, epochs that are broken off ------------------------------------------


def test_a_skipped_step_is_noticed_and_the_cursor_stays_with_what_is_served():
    engine, resumed = infobatch(), infobatch()
    everything = list(engine.sampler())
    for number, batch in enumerate(batches(engine.sampler(), SIZE)):
        if number == 2:
            continue  # a guard: this batch cannot be trained
        observe(engine, batch)
        if number == 5:
            state = engine.state_dict()
            assert engine.cursor == 6 * SIZE, "what is saved is right"
            break
    resumed.load_state_dict(through_disk(state))
    rest = [index for batch in batches(resumed.sampler(), SIZE) for index in batch]
    assert rest == everything[60:], "none lost, none twice"
    serve(resumed)
    with pytest.raises(pe.CoverageError, match="10 of 100 served samples were never observed"):
        resumed.end_epoch()
    report = resumed.end_epoch(partial=True)
    assert (report.missing, report.partial) == (10, True)


def test_an_engine_saved_after_looks_at_copies_knows_where_it_was():
    # Three batches are drawn ahead: the count alone would run ahead by up to three batches.
    engine, resumed = infobatch(), infobatch()
    drawn = list(batches(engine.sampler(), SIZE))
    for batch in drawn[:4]:
        look_at_a_copy(engine, losses_at(batch), torch.tensor(batch))
    resumed.load_state_dict(through_disk(engine.state_dict()))
    assert (resumed.cursor, engine.cursor) == (40, 40)
    assert list(resumed.sampler()) == [index for batch in drawn[4:] for index in batch]


@pytest.mark.parametrize("last", [1, 7, 9])
def test_a_smaller_batch_at_the_stop_loses_nothing(last):
    whole, stopped = (pe.PruneEngine(200, pe.KeepAll(), num_epochs=1) for _ in range(2))
    want = list(whole.sampler())
    order = iter(list(stopped.sampler()))  # drawn ahead, as a loader does
    for size in (10,) * 6 + (last,):
        batch = [next(order) for _ in range(size)]
        stopped.observe(torch.ones(size), torch.tensor(batch))
    state = stopped.state_dict()
    assert state["cursor"] == 60 + last
    resumed = pe.PruneEngine(200, pe.KeepAll(), num_epochs=1)
    resumed.load_state_dict(state)
    assert list(resumed.sampler()) == want[60 + last :]


def test_nonfinite_losses_at_the_stop_are_not_taken_for_a_skipped_step():
    engine, resumed = infobatch(), infobatch()
    for number, batch in enumerate(batches(engine.sampler(), SIZE)):
        losses = losses_at(batch)
        if number in (3, 4):
            losses[:] = torch.inf
        engine.observe(losses, torch.tensor(batch))
        if number == 4:
            break
    resumed.load_state_dict(engine.state_dict())
    assert resumed.cursor == 50


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_an_epoch_that_is_broken_off_is_reported_as_far_as_it_came(stop):
    engine = infobatch(num_epochs=4)
    for epoch in engine.epochs():
        for number, batch in enumerate(batches(engine.sampler(), SIZE)):
            if number == stop:
                break  # limit_train_batches, an early stop, an interruption
            observe(engine, batch)
        report = engine.end_epoch(partial=True)
        assert report.served == report.observed
        assert report.planned - report.missing == report.served, epoch
        assert not report.extra
    assert len(engine.history) == 4
    nominal = engine.history.nominal_trained
    assert engine.history.samples_trained <= nominal < 4 * N


def test_control_the_same_without_a_word_is_an_error():
    engine = infobatch()
    observe(engine, next(batches(engine.sampler(), SIZE)))
    with pytest.raises(pe.CoverageError, match=r"90 of 100.*end it with end_epoch\(partial=True\)"):
        engine.end_epoch()


def test_a_broken_epoch_still_says_what_should_not_have_been_seen():
    engine = pe.PruneEngine(N, pe.RandomSubset(0.5, rescale=True), num_epochs=3)
    dropped = torch.nonzero(engine.plan.weight_class == 0)[:SIZE, 0]
    engine.observe(torch.ones(SIZE), dropped)
    with pytest.raises(pe.CoverageError, match="10 samples were observed that the plan"):
        engine.end_epoch(partial=True)


# --- passes --------------------------------------------------------------------------------------


def test_a_second_loader_disturbs_nothing_and_is_no_training():
    engine, plain = infobatch(num_epochs=3), infobatch(num_epochs=3)
    for epoch in engine.epochs():
        for number, batch in enumerate(batches(engine.sampler(align=SIZE), SIZE)):
            observe(engine, batch)
            if number == 3:
                served = engine.served
                other = engine.sampler(align=7)
                assert list(other) == engine.plan.indices[engine.cursor :].tolist()[: len(other)]
                next(iter(engine.loader(Numbers(), 4)))
                assert engine.served == served, "it is the training's"
        del epoch
    for _ in plain.epochs():
        serve(plain, SIZE, align=SIZE)
    assert figures(engine) == figures(plain)


def test_an_interrupted_cell_that_is_run_again_goes_on():
    engine = infobatch()
    everything = engine.plan.indices.tolist()
    trained: list[int] = []
    kept_alive = []  # as the last traceback of a notebook does

    def cell(stop: int) -> None:
        stream = batches(engine.sampler(align=SIZE), SIZE)
        kept_alive.append(stream)
        for number, batch in enumerate(stream):
            if number == stop:
                next(stream, None)  # what a loader has drawn ahead
                raise KeyboardInterrupt
            observe(engine, batch)
            trained.extend(batch)
        engine.end_epoch()

    for stop in (3, 2, 99):
        try:
            cell(stop)
        except KeyboardInterrupt:
            continue
    assert trained == everything
    assert engine.history[0].missing == 0


def test_an_engine_is_for_one_training_and_says_so():
    engine = infobatch(num_epochs=2)
    for _ in engine.epochs():
        serve(engine)
    with pytest.raises(pe.PruneEngineError, match="make a new one for another run, fold or model"):
        iter(engine.sampler())
    with pytest.raises(ValueError, match=r"dataset must have 100 items, got 50"):
        engine.loader(Numbers(50), SIZE)


def test_what_an_epoch_is_a_multiple_of_is_found_when_it_is_iterated():
    def work(rank: int) -> tuple[int, int]:
        return len(sampler), engine.served

    engine = infobatch(N + 3, coverage="ignore")
    sampler = engine.sampler(batch_size=SIZE)  # before there are ranks
    assert (sampler.align, len(sampler)) == (10, 100)
    found = Ranks(2).run(lambda rank: (sampler.align, len(sampler)))
    assert found == [(20, 50), (20, 50)]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_multiple_of_the_optimizers_steps(batch):
    engine = infobatch(N)
    assert len(engine.sampler(batch_size=batch, accumulate=4)) == N // (4 * batch) * (4 * batch)
    assert len(engine.loader(Numbers(), batch, accumulate=4)) == N // (4 * batch) * 4
    loader = engine.device_loader([torch.arange(N)], batch, accumulate=4)
    assert len(loader) == len(list(loader)) == N // (4 * batch) * 4


# --- ranks ---------------------------------------------------------------------------------------


def two_ranks(serve_rank: Callable[[pe.PruneEngine, int], None], **options: Any) -> list[Any]:
    def work(rank: int) -> Any:
        engine = infobatch(N, 4, **options)
        serve_rank(engine, rank)
        try:
            return engine.end_epoch()
        except pe.CoverageError as error:
            return str(error)

    return Ranks(2).run(work)


def feed(engine: pe.PruneEngine, indices: list[int], size: int = SIZE) -> None:
    for batch in batches(iter(indices), size):
        observe(engine, batch)


def test_every_rank_that_trains_everything_is_named():
    found = two_ranks(lambda engine, rank: feed(engine, list(engine.sampler(shard="none"))))
    assert all("every rank trains all samples" in error for error in found)
    assert all("200 observations of 100 served samples" in error for error in found)


def test_padding_is_named():
    def even(engine: pe.PruneEngine, rank: int) -> None:
        """Deal out every batch of one share, and begin anew where the last one is short."""
        everything = list(engine.sampler(shard="none"))[:92]
        dealt = [*everything, *everything[:8]]
        feed(engine, [index for at in range(rank * 10, 100, 20) for index in dealt[at : at + 10]])

    options = {"coverage": "raise"}
    found = two_ranks(even, **options)
    assert all("8 samples were observed more than once" in str(error) for error in found), found
    assert all("padding repeats 8 samples" in str(error) for error in found)


def test_ranks_whose_steps_look_twice_are_not_taken_for_padding():
    def twice(engine: pe.PruneEngine, rank: int) -> None:
        for batch in batches(engine.sampler(), 5):
            look_twice(engine, losses_at(batch), torch.tensor(batch))
            look_at_a_copy(engine, losses_at(batch), torch.tensor(batch))

    for report in two_ranks(twice):
        assert (report.observed, report.served, report.repeated) == (400, 100, 0)


def test_one_ranks_repetitions_are_in_the_report():
    engine = infobatch()
    everything = list(engine.sampler())
    feed(engine, [*everything, *everything[:4]])
    report = engine.end_epoch()
    assert (report.served, report.observed, report.repeated) == (100, 104, 4)
    assert engine.history.samples_trained == 100


# --- the places of a run that is resumed ---------------------------------------------------------


def stopped_at(count: int) -> Any:
    engine = infobatch()
    for batch in list(batches(engine.sampler(), SIZE))[:count]:
        observe(engine, batch)
    return engine.plan.indices.tolist(), through_disk(engine.state_dict())


def test_resume_rest_is_shorter():
    order, state = stopped_at(4)
    engine = infobatch()
    engine.load_state_dict(state)
    sampler = engine.sampler(resume="rest")
    assert (len(sampler), list(sampler)) == (60, order[40:])


def test_resume_replay_is_of_full_length_for_a_framework_that_skips():
    order, state = stopped_at(4)
    engine = infobatch()
    engine.load_state_dict(state)
    sampler = engine.sampler(resume="replay")
    for _ in range(2):  # until something is observed
        drawn = list(sampler)
        assert len(sampler) == len(drawn) == 100
        assert drawn[40:] == order[40:]
        assert set(drawn[:40]) <= set(order[:40]), "placeholders that can be loaded"
    stream = batches(sampler, SIZE)
    for _ in range(4):
        next(stream)
    for batch in stream:
        observe(engine, batch)
    report = engine.end_epoch()
    assert (report.missing, report.repeated) == (0, 0)
    assert len(engine.sampler(resume="replay")) == engine.plan.num_kept


def test_resume_length_counts_on_and_serves_the_rest():
    order, state = stopped_at(4)
    engine = infobatch()
    engine.load_state_dict(state)
    sampler = engine.sampler(resume="length")
    assert (len(sampler), list(sampler)) == (100, order[40:])
    serve(engine)
    assert engine.end_epoch().missing == 0
    assert len(engine.sampler(resume="length")) == engine.plan.num_kept


@pytest.mark.parametrize("resume", ["replay", "length"])
def test_a_state_of_a_trained_epoch_resumes_into_its_end(resume):
    # Saved at a validation, before the epoch was ended: a fit that finds no batch at all stops.
    _, state = stopped_at(10)
    engine, whole = infobatch(), infobatch()
    engine.load_state_dict(state)
    sampler = engine.sampler(resume=resume)
    assert len(sampler) == 100
    assert len(list(sampler)) == (100 if resume == "replay" else 0)
    engine.end_epoch()
    serve(whole)
    whole.end_epoch()
    assert serve(engine) == serve(whole)


def test_a_plain_loop_resumes_a_trained_epoch_into_its_end():
    _, state = stopped_at(10)
    engine, whole = infobatch(num_epochs=8), infobatch(num_epochs=8)
    engine.load_state_dict(state)
    got = [serve(engine) for _ in engine.epochs()]
    want = [serve(whole) for _ in whole.epochs()]
    assert [[], *want[1:]] == got


def test_a_loop_that_does_not_skip_what_is_replayed_is_refused():
    _, state = stopped_at(4)
    engine = infobatch()
    engine.load_state_dict(state)
    with pytest.raises(pe.PruneEngineError, match="resume='replay' is for a framework that skips"):
        for batch in batches(engine.sampler(resume="replay"), SIZE):
            observe(engine, batch)


# --- steps on a device alone ---------------------------------------------------------------------


def test_a_replayed_graph_is_the_eager_run():
    eager, replayed = infobatch(num_epochs=4), infobatch(num_epochs=4)
    for epoch in range(4):
        for batch in batches(eager.sampler(), SIZE):
            observe(eager, batch)
            assert next(iter(batches(replayed.sampler(), SIZE))) is not None
        for batch in batches(replayed.sampler(), SIZE):
            # What a captured engine.observe does when it is replayed: the operator, and no Python.
            replayed.buffer.observe(losses_at(batch, epoch), torch.tensor(batch))
            replayed.consume(len(batch))
        assert replayed.cursor == eager.cursor
        assert replayed.progress == eager.progress
        state = replayed.state_dict()
        resumed = infobatch(num_epochs=4)
        resumed.load_state_dict(through_disk(state))
        assert resumed.cursor == eager.cursor
        for engine in (replayed, eager):
            engine.end_epoch()
    assert figures(replayed) == figures(eager)


def test_control_a_replay_that_nobody_tells_moves_nothing_but_the_scores():
    engine = infobatch()
    for batch in batches(engine.sampler(), SIZE):
        engine.buffer.observe(losses_at(batch), torch.tensor(batch))
    assert engine.cursor == 0
    assert engine.end_epoch().missing == 0, "the epoch's end reads what the device counted"


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_size_that_is_none_is_refused(size, error):
    with pytest.raises(error, match="size must be a positive int"):
        infobatch().consume(size)


# --- data sets that change -----------------------------------------------------------------------


class Growing(Numbers):
    """A data set whose length is an attribute."""


@pytest.mark.parametrize("policy", [pe.InfoBatch(0.5, delta=1.0), pe.UCB(keep=0.7, period=1)])
@pytest.mark.parametrize("n", [130, 70, 100])
def test_a_data_set_that_changes_keeps_the_scores_it_has(policy, n):
    engine = pe.PruneEngine(N, policy, num_epochs=4)
    serve(engine)
    engine.end_epoch()
    before = engine.scores()
    engine.resize(n)
    both = min(N, n)
    assert engine.num_samples == engine.plan.num_samples == n
    assert_bitwise(engine.scores()[:both], before[:both], "scores")
    assert engine.scores()[both:].isnan().all()
    new = set(range(N, n))
    assert new <= set(engine.plan.kept.tolist()), "an unseen sample is kept"
    mean = float(before[:both].double().mean())
    assert engine.buffer.mean() == pytest.approx(mean, rel=1e-7)
    resumed = pe.PruneEngine(n, policy, num_epochs=4)
    resumed.load_state_dict(through_disk(engine.state_dict()))
    assert serve(resumed) == serve(engine)
    for each in (resumed, engine):
        each.end_epoch()
    assert_bitwise(resumed.plan.indices, engine.plan.indices, "order")
    assert engine.history[1].num_samples == n


def test_resizing_to_what_it_is_changes_nothing():
    engine, plain = infobatch(), infobatch()
    for each in (engine, plain):
        serve(each)
        each.end_epoch()
    engine.resize(N)
    assert_bitwise(engine.plan.indices, plain.plan.indices, "order")


def test_a_data_set_of_another_length_is_noticed_at_the_next_pass():
    engine, dataset = infobatch(), Growing()
    loader = engine.loader(dataset, SIZE)
    for _, _, indices in loader:
        observe(engine, indices.tolist())
    engine.end_epoch()
    dataset.n = 130
    with pytest.raises(pe.PruneEngineError, match=r"130 items, the engine 100: call engine.resize"):
        iter(loader).__next__()
    engine.resize(130)
    assert set(range(100, 130)) <= set(engine.plan.kept.tolist())
    assert max(int(i) for _, _, batch in loader for i in batch) > 100
    with pytest.raises(ValueError, match=r"call engine.resize\(90\)"):
        engine.loader(Growing(90), SIZE)


def test_tensors_of_another_length_are_noticed_too():
    engine = infobatch()
    loader = engine.device_loader([torch.arange(N)], SIZE)
    engine.resize(N + 1)
    with pytest.raises(pe.PruneEngineError, match="100 rows, the engine 101"):
        list(loader)


def test_a_resize_at_another_moment_or_of_another_policy_changes_nothing():
    engine = infobatch()
    observe(engine, next(batches(engine.sampler(), SIZE)))
    with pytest.raises(pe.PruneEngineError, match="at the end of an epoch"):
        engine.resize(N + 1)
    bpas = pe.PruneEngine(N, pe.RandomBatches(10, target_dsi=0.4), num_epochs=3)
    state = copy.deepcopy(bpas.state_dict())
    with pytest.raises(ValueError, match="cannot follow a data set that changes"):
        bpas.resize(N + 1)
    for name, value in bpas.state_dict()["buffer"].items():
        assert_bitwise(value, state["buffer"][name], name)
    with pytest.raises(TypeError, match="sized data set or an int"):
        infobatch().resize(2.5)


def test_ranks_resize_together():
    def work(rank: int) -> Any:
        engine = infobatch(N, 4)
        serve(engine)
        engine.end_epoch()
        engine.resize(N + 20)
        served = serve(engine)
        engine.end_epoch()
        return served, engine.plan.indices

    def apart(rank: int) -> None:
        infobatch(N, 4).resize(N + rank)

    (first, plan), (second, other) = Ranks(2).run(work)
    assert set(range(N, N + 20)) <= {*first, *second}
    assert_bitwise(plan, other, "the next order")
    with pytest.raises(pe.PruneEngineError, match="num_samples is 100 on rank 0, 101 on rank 1"):
        Ranks(2).run(apart)


def test_no_warning_comes_of_any_of_this():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = infobatch(num_epochs=2, coverage="warn")
        list(run(engine, try_again_in_halves))
    assert caught == []
