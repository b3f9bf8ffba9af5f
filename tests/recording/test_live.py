# SPDX-License-Identifier: Apache-2.0
"""The live view: what it estimates, and that Rich shows it."""

from __future__ import annotations

import io
import math
import sys
import time

import pytest
import torch
from _runs import N, batches, epochs, infobatch, observe, serve

import prune_engine as pe
from prune_engine.policies.batches.fixed import KeptBatches
from prune_engine.terminal_view import View, require


def test_the_samples_left_are_those_that_will_be_trained() -> None:
    engine = pe.PruneEngine(N, pe.InfoBatch(0.5, delta=0.5), num_epochs=8)
    view = View(engine)
    assert view.samples_left() == 8 * N
    epochs(engine, 2)
    kept = engine.plan.num_kept
    assert kept < N, "control: it pruned"
    assert view.samples_left() == 2 * kept + 4 * N
    first = next(batches(engine.sampler(), 10))
    observe(engine, first)
    assert view.samples_left() == 2 * kept - 10 + 4 * N
    words = dict(view.figures())
    assert words["epoch"] == "3/8"
    assert words["kept"].startswith(f"{kept} of {N}, ")
    assert words["trained"] == f"10 of {kept}"


def test_at_the_end_nothing_is_left_and_what_was_saved_is_told() -> None:
    engine = infobatch(num_epochs=3)
    view = View(engine)
    assert math.isnan(view.seconds_left()), "control: no sample has been trained"
    epochs(engine, 3)
    assert view.samples_left() == view.seconds_left() == 0
    history = engine.history
    saved = history.nominal_trained - history.samples_trained
    assert dict(view.figures())["saved"].endswith(f"{saved} samples")
    assert view.seconds_saved() == pytest.approx(saved * view.seconds_per_sample(), rel=0.2)


def test_a_run_without_length_knows_no_end() -> None:
    engine = pe.PruneEngine(N, pe.KeepAll())
    view = View(engine)
    serve(engine)
    engine.end_epoch()
    words = dict(view.figures())
    assert (words["epoch"], words["left"], words["threshold"]) == ("2", "not known yet", "none")


@pytest.mark.extra("rich")
def test_rich_shows_the_run_and_leaves_the_last_view() -> None:
    require()  # the first import of Rich draws from the global generator, and this does not
    from rich.console import Console

    engine, text = infobatch(num_epochs=3), io.StringIO()
    with pe.live(engine, console=Console(file=text, force_terminal=True, width=100)):
        epochs(engine, 2)
        time.sleep(0.4)  # longer than from one drawing to the next
        during = text.getvalue()
        epochs(engine, 1)
    assert "3/3" in during and "kept" in during
    assert "0:00" in text.getvalue().rpartition("left")[2]


def test_without_rich_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with pytest.raises(ImportError, match=r"prune_engine\[live\]"), pe.live(infobatch()):
        pass


def test_while_an_epoch_is_planned_the_view_shows_what_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = pe.PruneEngine(N, pe.RandomBatches(10, kept=(9, 8, 7)), num_epochs=3)
    view, seen = View(engine), []
    shown = view.figures()
    samples = KeptBatches.samples

    def look(kept: KeptBatches) -> torch.Tensor:
        with pytest.raises(pe.PruneEngineError, match="while planning"):
            _ = engine.plan  # control: there is none at this moment
        seen.append(view.figures())
        return samples(kept)

    monkeypatch.setattr(KeptBatches, "samples", look)
    epochs(engine, 1)
    assert seen == [shown]
    assert dict(view.figures())["kept"].startswith("80 of 100")
