# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: whole or not at all, refused with a reason, read by other libraries."""

from __future__ import annotations

import os
import random
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from _assertions import assert_bitwise
from _processes import start_ranks
from _runs import Numbers, batches, figures, infobatch, losses_at, observe, serve

import prune_engine as pe

SIZE = 10


def trained(count: int = 3, **options: Any) -> pe.PruneEngine:
    """Return an engine some batches into its second epoch."""
    engine = infobatch(**options)
    serve(engine)
    engine.end_epoch()
    order = list(engine.sampler())
    for at in range(count):
        observe(engine, order[at * SIZE : (at + 1) * SIZE])
    return engine


def assert_goes_on_alike(got: pe.PruneEngine, want: pe.PruneEngine) -> None:
    """Fail unless two engines serve the same to the end and plan the same epochs after it."""
    assert got.cursor == want.cursor > 0
    for _ in range(3):
        assert serve(got) == serve(want)
        got.end_epoch()
        want.end_epoch()
        assert_bitwise(got.plan.indices, want.plan.indices, "order")
        assert_bitwise(got.buffer.records, want.buffer.records, "records")
    assert figures(got) == figures(want)


# --- files --------------------------------------------------------------------------------------


def test_a_file_brings_back_the_engine_and_what_was_saved_with_it(tmp_path):
    engine, file = trained(), tmp_path / "run.pt"
    model = {"weight": torch.tensor([0.5, -1.0])}
    pe.save_state(engine, file, extra={"model": model, "step": 13})
    resumed = infobatch()
    extra = pe.load_state(resumed, str(file))
    assert extra["step"] == 13
    assert_bitwise(extra["model"]["weight"], model["weight"], "weight")
    assert_goes_on_alike(resumed, engine)
    assert os.listdir(tmp_path) == ["run.pt"], "nothing else is left"


def test_a_file_of_torch_save_is_read_too(tmp_path):
    engine, file = trained(), tmp_path / "run.pt"
    torch.save(engine.state_dict(), file)
    resumed = infobatch()
    assert pe.load_state(resumed, file) == {}
    assert_goes_on_alike(resumed, engine)


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["torch.save", "os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_previous_file(tmp_path, monkeypatch, name):
    file = tmp_path / "run.pt"
    pe.save_state(trained(2), file, extra={"step": 2})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(name, fail)
        pe.save_state(trained(5), file, extra={"step": 5})
    resumed = infobatch()
    assert pe.load_state(resumed, file) == {"step": 2}
    assert_goes_on_alike(resumed, trained(2))
    assert os.listdir(tmp_path) == ["run.pt"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    file = tmp_path / "run.pt"
    pe.save_state(trained(2), file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"(?s)extra must be tensors and plain data.*PosixPath"):
        pe.save_state(trained(3), file, extra={"where": Path("x")})
    assert file.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        pe.save_state(trained(3), tmp_path / "missing" / "run.pt")


def refusal(file: Path) -> str:
    """Return why a file is refused; the engine that refused it must be as before."""
    engine, twin = trained(2), trained(2)
    with pytest.raises(pe.StateMismatchError) as caught:
        pe.load_state(engine, file)
    assert_goes_on_alike(engine, twin)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_file_is_refused(tmp_path, share):
    file = tmp_path / "run.pt"
    pe.save_state(trained(), file)
    os.truncate(file, int(file.stat().st_size * share))
    assert "is torn" in refusal(file)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    file = tmp_path / "run.pt"
    engine = trained()
    pe.save_state(engine, file)
    data, draws = file.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        at = draws.randrange(len(data))
        damaged = bytearray(data)
        damaged[at] ^= 1 << draws.randrange(8)
        file.write_bytes(damaged)
        resumed = infobatch()
        try:
            pe.load_state(resumed, file)
        except pe.StateMismatchError:
            refused += 1
        else:  # the bit was in the padding
            assert_bitwise(resumed.buffer.records, engine.buffer.records, "records")
            assert resumed.cursor == engine.cursor
    assert refused > 30
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:  # another program's, undamaged
        archive.writestr("a", b"b")
    assert "no file of torch.save" in refusal(tmp_path / "run.zip")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight": torch.zeros(2)}, "holds no state of an engine"),
        ([1, 2], "holds no state of an engine"),
        ({"format": "prune_engine checkpoint 1"}, "holds no state of an engine"),
        ({"buffer": {}, "version": 1}, "num_samples: expected 100, got None"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "run.pt")
    assert reason in refusal(tmp_path / "run.pt")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: infobatch(120), "num_samples: expected 100, got 120"),
        (lambda: infobatch(seed=4), "seed: expected 0, got 4"),
        (lambda: pe.PruneEngine(100, pe.KeepAll(), num_epochs=8), "policy: expected"),
        (lambda: infobatch(num_epochs=9), "num_epochs: expected 8, got 9"),
    ],
)
def test_edge_case_09_a_file_of_another_run_is_refused(tmp_path, other, difference):
    pe.save_state(other(), tmp_path / "run.pt")
    assert difference in refusal(tmp_path / "run.pt")


def test_a_missing_file_is_not_a_fresh_start(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: no file"):
        pe.load_state(infobatch(), tmp_path / "run.pt")


# --- torchdata's StatefulDataLoader --------------------------------------------------------------


class Counted(Numbers):
    """Items that know how often they were read, in this process."""

    def __init__(self, n: int = 100) -> None:
        super().__init__(n)
        self.read = 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.read += 1
        return super().__getitem__(index)


def stateful(engine: pe.PruneEngine, dataset: Any, **options: Any) -> Any:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    return torchdata.StatefulDataLoader(
        engine.dataset(dataset),
        batch_size=SIZE,
        sampler=engine.sampler(align=SIZE),
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def take(engine: pe.PruneEngine, loader: Any, count: int | None) -> list[list[int]]:
    """Train some batches of a loader, or all; return their samples."""
    taken = []
    for *_, indices in islice(loader, count):
        engine.observe(losses_at(indices, engine.epoch), indices)
        taken.append(indices.tolist())
    return taken


# torchdata 0.11 calls what torch 2.13 has deprecated.
torchdatas_own = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def flat(taken: list[list[int]]) -> list[int]:
    return [index for batch in taken for index in batch]


@torchdatas_own
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("mode", "workers"), [("epoch", 0), ("epoch", 2), ("flow", 0)], ids=lambda word: f"{word}"
)
def test_a_stateful_loader_goes_on_without_replay(mode, workers, every):
    options = {"num_workers": workers, "snapshot_every_n_steps": every}

    def fresh() -> pe.PruneEngine:
        if mode == "epoch":
            return infobatch()
        policy = pe.InfoBatch(0.5, delta=1.0)
        return pe.PruneEngine(100, policy, mode="flow", num_epochs=9)

    engine, dataset = fresh(), Counted()
    loader = stateful(engine, dataset, **options)
    first = take(engine, loader, 7)
    saved, position = engine.state_dict(), loader.state_dict()
    rest = take(engine, loader, None)  # goes on where it was broken off
    assert sorted(flat(first + rest)) == list(range(100)) or mode == "flow"

    resumed, again = fresh(), Counted()
    resumed.load_state_dict(saved)
    loader = stateful(resumed, again, **options)
    loader.load_state_dict(position)
    want = rest if mode == "epoch" else rest[:3]
    assert take(resumed, loader, None) == want
    if workers == 0:
        assert again.read == len(want) * SIZE, "no replay"
    if mode == "epoch":
        engine.end_epoch()
        resumed.end_epoch()
        assert_bitwise(resumed.plan.indices, engine.plan.indices, "the next order")
        loader.load_state_dict(loader.state_dict())  # of a pass that is over
        assert set(flat(take(resumed, loader, None))) <= set(resumed.plan.kept.tolist())
        assert resumed.cursor == resumed.served > 0


@torchdatas_own
def test_another_number_of_workers_needs_the_engines_state_only():
    engine = infobatch()
    loader = stateful(engine, Numbers(), num_workers=2)
    first = take(engine, loader, 4)
    resumed = infobatch()
    resumed.load_state_dict(engine.state_dict())
    rest = take(resumed, stateful(resumed, Numbers()), None)
    assert flat(first + rest) == infobatch().plan.indices.tolist()


def test_a_pass_is_moved_before_it_begins_or_not_at_all():
    engine = infobatch()
    begun = iter(engine.sampler())
    drawn = [next(begun) for _ in range(3)]
    state = begun.state_dict()
    assert state == {"epoch": 0, "position": 3, "left": 97}
    with pytest.raises(pe.PruneEngineError, match="has begun"):
        begun.load_state_dict(state)
    later = trained()
    with pytest.raises(ValueError, match=r"epoch 0, got 1.*restore the engine first"):
        iter(engine.sampler()).load_state_dict(iter(later.sampler()).state_dict())
    fresh = iter(engine.sampler())
    fresh.load_state_dict(state)
    assert drawn + list(fresh) == list(engine.sampler())


# --- torch.distributed.checkpoint ----------------------------------------------------------------


def train_share(engine: pe.PruneEngine, size: int, count: int) -> None:
    for batch in islice(batches(engine.sampler(align=SIZE * size), SIZE), count):
        observe(engine, batch)


def save_sharded(rank: int, size: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    engine = infobatch(480)
    train_share(engine, size, 100)
    engine.end_epoch()
    train_share(engine, size, 5)
    dcp.save({"engine": engine}, checkpoint_id=f"{folder}/sharded")
    pe.save_state(engine, f"{folder}/whole.pt")


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # as it is here
def test_a_sharded_checkpoint_of_two_ranks_is_read_by_one(tmp_path):
    assert start_ranks(save_sharded, 2, str(tmp_path)).join() == [0, 0]
    resumed, whole = infobatch(480), infobatch(480)
    dcp.load({"engine": resumed}, checkpoint_id=tmp_path / "sharded", no_dist=True)
    pe.load_state(whole, tmp_path / "whole.pt")
    assert resumed.cursor == whole.cursor == 100
    assert len(resumed.history) == 1
    assert_goes_on_alike(resumed, whole)
    files = {file.name[:4]: file.stat().st_size for file in (tmp_path / "sharded").glob("*.distcp")}
    assert sorted(files) == ["__0_", "__1_"], "both ranks wrote"
