# SPDX-License-Identifier: Apache-2.0
"""A state that a hand has changed is refused whole, by name, in the middle of an epoch as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prune_engine as pe

N, B = 22, 4
ROWS = torch.arange(N)
RUNS: dict[str, Callable[[], pe.PruneEngine]] = {
    "keep all": lambda: pe.PruneEngine(N, pe.KeepAll(), num_epochs=6),
    "info batch": lambda: pe.PruneEngine(N, pe.InfoBatch(0.5), num_epochs=6),
    "quantile": lambda: pe.PruneEngine(N, pe.InfoBatchQuantile(), num_epochs=6),
    "bandit": lambda: pe.PruneEngine(N, pe.EpsilonGreedy(0.7, period=1), num_epochs=6),
    "random batches": lambda: pe.PruneEngine(N, pe.RandomBatches(B, kept=(5, 4, 3)), num_epochs=6),
    "bpas": lambda: pe.PruneEngine(N, pe.BPAS(B, 1e-3, 1.0, min_batches=2), num_epochs=6),
    "flow": lambda: pe.PruneEngine(N, pe.InfoBatch(0.5), mode="flow", num_epochs=9),
    "divided": lambda: pe.PruneEngine(N, pe.InfoBatch(0.5), num_epochs=6, shard_scores=True),
}
runs = pytest.mark.parametrize("name", list(RUNS))


class Constant:
    """A monitor whose layer does the same in every batch."""

    def take(self) -> Tensor:
        return torch.tensor([[4.0, 0.0, 1.0]], dtype=torch.float64)


def trained(name: str, epochs: int, batches: int) -> pe.PruneEngine:
    """Return an engine in the middle of an epoch."""
    engine = RUNS[name]()
    if isinstance(engine.policy, pe.BPAS):
        engine.attach(Constant())
    for _ in range(epochs):
        go_on(engine)
    for _, (_, indices) in zip(range(batches), engine.device_loader([ROWS], B), strict=False):
        observe(engine, indices)
    return engine


def observe(engine: pe.PruneEngine, indices: Tensor) -> None:
    engine.observe((indices * 7 % 5 + engine.epoch).float(), indices)


def go_on(engine: pe.PruneEngine) -> list[list[int]]:
    """Train to the end of the epoch; return its batches."""
    batches: list[list[int]] = []
    for _, indices in engine.device_loader([ROWS], B):
        observe(engine, indices)
        batches.append(indices.tolist())
    if engine.mode == "epoch":
        engine.end_epoch()
    return batches


def places(state: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a state, through dictionaries and the rows of tuples."""
    inner: Any = state.items() if isinstance(state, dict) else ()
    if isinstance(state, list | tuple):
        inner = enumerate(state)
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


def changed(state: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a copy of a state with one value changed; REMOVED takes it out."""
    key, *rest = place
    copy = dict(state) if isinstance(state, dict) else list(state)
    new = changed(copy[key], tuple(rest), change) if rest else change(copy[key])
    if new is REMOVED:
        del copy[key]
    else:
        copy[key] = new
    return copy if isinstance(state, dict) else type(state)(copy)


REMOVED = object()


def of_tensors(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda value: change(value) if isinstance(value, Tensor) else value


CHANGES: dict[str, Callable[[Any], Any]] = {
    "removed": lambda value: REMOVED,
    "None": lambda value: None,
    "a string": lambda value: "x",
    "a list": lambda value: [],
    "a huge int": lambda value: 2**70,
    "negative": of_tensors(lambda value: -torch.ones_like(value, dtype=torch.int64)),
    "of another shape": of_tensors(lambda value: value[None]),
    "of another dtype": of_tensors(lambda value: value.to(torch.complex64)),
    "without data": of_tensors(lambda value: value.to("meta")),
    "sparse": of_tensors(lambda value: value.to_sparse()),
}
# A plan may have any number of thresholds, of any size: one less is another plan's. How many
# counts there must be, a memory knows when an epoch ends.
ALLOWED = (("threshold", "removed"), ("threshold", "a huge int"), ("counts", "removed"))


def allowed(place: tuple[Any, ...], change: str, old: Any, new: Any) -> bool:
    """Say whether a changed state still is one: the value is equal, or any number will do."""
    same = new is old or (not isinstance(new, Tensor) and type(old) is type(new) and old == new)
    any_number = change == "a huge int" and place[0] == "history" and place[-1] != "epoch"
    later = (
        "horizon",
        "served",
        "nominal",
        "ended_early",
        "repeated",
        "num_saturated",
        "partial",
    )  # states of before have none
    same = same or (change == "removed" and place[-1] in later)
    return same or any_number or (len(place) > 1 and (place[-2], change) in ALLOWED)


@runs
@pytest.mark.parametrize("change", list(CHANGES))
def test_every_value_of_a_state_is_checked_before_anything_is_loaded(
    name: str, change: str
) -> None:
    good = trained(name, 2, 1).state_dict()
    target, twin = trained(name, 1, 1), trained(name, 1, 1)
    before = target.state_dict()
    tried = 0
    for place in places(good):
        old = good
        for key in place:
            old = old[key]
        new = CHANGES[change](old)
        if allowed(place, change, old, new):
            continue
        with pytest.raises(pe.StateMismatchError) as caught:
            target.load_state_dict(changed(good, place, CHANGES[change]))
        key = [key for key in place if isinstance(key, str)][-1]
        assert key in str(caught.value), place
        assert same(target.state_dict(), before), place
        tried += 1
    assert tried >= 4
    assert go_on(target) == go_on(twin)
    target.load_state_dict(good)  # control: unchanged it fits
    assert target.epoch == good["epoch"]


def same(one: Any, two: Any) -> bool:
    """Compare bit for bit, nan with nan."""
    if isinstance(one, Tensor):
        return str(one.tolist()) == str(two.tolist()) and one.dtype == two.dtype
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


def put(path: str, value: Any) -> Callable[[Any], Any]:
    """Return what changes one value of a state."""
    place = tuple(int(key) if key.isdigit() else key for key in path.split("."))
    return lambda state: changed(state, place, lambda old: value(old) if callable(value) else value)


WRONG: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a class that no table has": (
        "info batch",
        put("buffer.weight_class", lambda old: old + 200),
        r"buffer\.weight_class: expected classes in 0\.\.2, got 20",
    ),
    "a weight of the dropped": (
        "info batch",
        put("buffer.weight_table", lambda old: old + 1),
        r"buffer\.weight_table",
    ),
    "a record of an epoch to come": (
        "info batch",
        put("buffer.records", lambda old: old + (9 << 32)),
        r"buffer\.records: expected finite scores of epochs 0\.\.2",
    ),
    "a record of a score that is inf": (
        "info batch",
        put("buffer.records", lambda old: (1 << 32 | 0xFF800000) + 0 * old),
        r"buffer\.records",
    ),
    "batches that the classes drop": (
        "random batches",
        put("memory.alive", lambda old: old.flip(0)),
        "not the same ones",
    ),
    "other batches than were kept": (
        "bpas",
        put("memory.alive", lambda old: ~old),
        r"memory\.counts|not the same ones",
    ),
    "a choice without a class": (
        "bandit",
        put("memory.chosen", lambda old: old + 8),
        r"memory\.chosen: expected classes in 0\.\.1",
    ),
    "a plan ahead of another epoch": (
        "flow",
        put("ahead", lambda old: (*old, plan_ahead(7))),
        r"ahead\[\d\]\.epoch",
    ),
    "a plan ahead in a run of epochs": (
        "info batch",
        put("ahead", lambda old: (plan_ahead(3),)),
        "ahead: expected no plan",
    ),
    "a threshold that is a tensor": (
        "info batch",
        put("threshold", lambda old: (torch.ones(2),)),
        r"threshold\[0\]: expected float",
    ),
    "a report too few": ("info batch", put("history", lambda old: old[1:]), r"history\[0\]\.epoch"),
    "a tensor for a number": ("info batch", put("seed", lambda old: torch.zeros(2)), "seed"),
    "a buffer of another epoch": ("info batch", put("buffer.epoch", 1), r"buffer\.epoch"),
    "nothing": ("info batch", lambda state: None, "one dictionary, got NoneType"),
    "a path": ("info batch", lambda state: "run.pt", "got str: load_state reads files"),
    "parts that are none": ("divided", lambda state: [3], "must be dictionaries, got int"),
    "no parts": ("divided", lambda state: None, "a list of parts, got NoneType"),
    "parts without a buffer": ("divided", lambda state: [{}], "part 0 of the state: buffer"),
}


def test_a_count_too_few_is_found_when_the_epoch_ends() -> None:
    engine = trained("random batches", 2, 1)
    state = engine.state_dict()
    engine.load_state_dict(changed(state, ("memory", "counts", 0), CHANGES["removed"]))
    with pytest.raises(pe.StateMismatchError, match=r"memory\.counts: expected 3 numbers.*got 2"):
        go_on(engine)
    engine.load_state_dict(state)  # control
    go_on(engine)


def plan_ahead(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "weight_class": torch.ones(N, dtype=torch.uint8),
        "weight_table": torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0]),
        "threshold": torch.empty(0),
    }


@pytest.mark.parametrize("what", list(WRONG))
def test_values_that_would_be_silent_and_wrong_are_refused(what: str) -> None:
    name, edit, message = WRONG[what]
    good = trained(name, 2, 1).state_dict()
    target, twin = trained(name, 1, 1), trained(name, 1, 1)
    before = target.state_dict()
    with pytest.raises(pe.StateMismatchError, match=message):
        target.load_state_dict(edit(good))
    assert same(target.state_dict(), before)
    assert go_on(target) == go_on(twin)


@pytest.mark.parametrize("edit", [{"extra": None}, {"extra": [1]}, {"engine": 3}])
def test_a_file_that_a_hand_has_changed_is_refused(edit: dict[str, Any], tmp_path: Path) -> None:
    engine, file = trained("info batch", 1, 2), tmp_path / "run.pt"
    pe.save_state(engine, file)
    content = torch.load(file, weights_only=True)
    torch.save({**content, **edit}, file)
    before = engine.state_dict()
    with pytest.raises(pe.StateMismatchError, match=r"run\.pt"):
        pe.load_state(engine, file)
    assert same(engine.state_dict(), before)
    torch.save(content, file)
    assert pe.load_state(engine, file) == {}  # control


@pytest.mark.parametrize("state", [{}, {"taken": 3}, {"taken": "3", "scheduler": {}}, None])
def test_a_scheduler_is_not_half_loaded(state: Any) -> None:
    class Inner:
        loaded: Any = None

        def step(self) -> None: ...

        def load_state_dict(self, state: Any) -> None:
            self.loaded = state

    inner = Inner()
    scheduler = trained("keep all", 0, 0).wrap_scheduler(inner, 10)
    with pytest.raises(ValueError, match="state"):
        scheduler.load_state_dict(state)
    assert inner.loaded is None
    scheduler.load_state_dict({"taken": 3, "scheduler": {"a": 1}})
    assert (inner.loaded, scheduler.taken) == ({"a": 1}, 3)
