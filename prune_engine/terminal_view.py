# SPDX-License-Identifier: Apache-2.0
"""A small view of a run in a terminal, refreshed while it trains."""

from __future__ import annotations

import importlib
import math
import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from prune_engine.bands import decimal_fraction
from prune_engine.engine import PruneEngine
from prune_engine.errors import PruneEngineError

PER_SECOND = 4  # drawings


def require() -> None:
    """Say what to install where Rich is missing, before any time is spent.

    Raises:
        ImportError: it is missing; the message names the extra.
    """
    drawn = random.getstate()
    try:
        importlib.import_module("rich.live")
    except ImportError as error:
        raise ImportError("live needs rich: pip install 'prune_engine[live]'") from error
    finally:
        random.setstate(drawn)  # Rich draws from the global generator when it is imported


@contextmanager
def live(engine: PruneEngine, *, console: Any = None) -> Generator[None, None, None]:
    """Show kept share, threshold, time left and time saved while the body trains.

    A thread of Rich's draws four times a second from numbers that the host has: a step waits for
    nothing. The time left counts the samples that will be trained: those of the current plan until
    a policy with ``delta`` anneals, then all. Times are estimates, at this process's mean seconds
    per sample, with everything that the loop does between two batches.

    Args:
        engine: made, and restored if it is to be.
        console: a ``rich.console.Console``; default standard error.

    Yields:
        Nothing.

    Raises:
        ImportError: Rich is missing; the message names the extra.

    Example:
        >>> import prune_engine as pe
        >>> pe.live(pe.PruneEngine(8, pe.KeepAll(), num_epochs=1)).__class__.__name__
        '_GeneratorContextManager'
    """
    require()
    rich: Any = importlib.import_module("rich.live")
    consoles: Any = importlib.import_module("rich.console")
    view = View(engine)
    shown = console if console is not None else consoles.Console(stderr=True)
    with rich.Live(
        get_renderable=lambda: _table(view), console=shown, refresh_per_second=PER_SECOND
    ):
        yield


class View:
    """The figures of a running engine, read at any moment from any thread.

    Args:
        engine: its clock begins here.

    Example:
        >>> from prune_engine import KeepAll
        >>> [name for name, _ in View(PruneEngine(8, KeepAll(), num_epochs=2)).figures()]
        ['epoch', 'kept', 'threshold', 'trained', 'left', 'saved']
    """

    def __init__(self, engine: PruneEngine) -> None:
        self.engine = engine
        self._before = self._trained()
        self._saved_before = self._saved()
        self._began = time.perf_counter()
        self._shown: list[tuple[str, str]] = []

    def figures(self) -> list[tuple[str, str]]:
        """Return names and words, in order; while an epoch is being planned, those of before."""
        try:
            self._shown = self._figures()
        except PruneEngineError:
            pass  # the old plan goes before the new one comes, or planning has failed
        return self._shown

    def _figures(self) -> list[tuple[str, str]]:
        engine = self.engine
        total = "" if engine.num_epochs is None else f"/{engine.num_epochs}"
        kept = engine.plan.num_kept
        threshold = engine.history[-1].next_threshold if engine.history else math.nan
        known = abs(threshold) < 1e38
        return [
            ("epoch", f"{engine.epoch + 1}{total}"),
            ("kept", f"{kept:,} of {engine.num_samples:,}, {_percent(kept, engine.num_samples)}"),
            ("threshold", f"{threshold:.4g}" if known else "none"),
            ("trained", f"{engine.cursor:,} of {engine.served:,}"),
            ("left", _words(self.seconds_left())),
            ("saved", f"{_words(self.seconds_saved())}, {self._saved():,} samples"),
        ]

    def seconds_per_sample(self) -> float:
        """Return the mean since this view was made, nan before the first sample."""
        trained = self._trained() - self._before
        return (time.perf_counter() - self._began) / trained if trained > 0 else math.nan

    def seconds_left(self) -> float:
        """Return an estimate of the time to the end, nan where the run has no length."""
        return self.samples_left() * self.seconds_per_sample()

    def samples_left(self) -> float:
        """Return an estimate of the samples still to be trained, nan without a length."""
        engine = self.engine
        if engine.num_epochs is None:
            return math.nan
        if engine.done:
            return 0.0
        share = decimal_fraction(getattr(engine.policy, "delta", 1.0))
        annealing = math.ceil(share * engine.num_epochs)
        later = range(engine.epoch + 1, engine.num_epochs)
        pruned = sum(epoch < annealing for epoch in later)
        full = (len(later) - pruned) * engine.num_samples
        now = max(0, engine.served - engine.cursor)
        return float(now + pruned * engine.plan.num_kept + full)

    def seconds_saved(self) -> float:
        """Return an estimate of the time that pruning has saved since this view was made."""
        saved = self._saved() - self._saved_before
        return saved * self.seconds_per_sample() if saved else 0.0

    def _trained(self) -> int:
        return self.engine.history.samples_trained + self.engine.cursor

    def _saved(self) -> int:
        history = self.engine.history
        return history.nominal_trained - history.samples_trained


def _table(view: View) -> Any:
    tables: Any = importlib.import_module("rich.table")
    table = tables.Table.grid(padding=(0, 2))
    for name, words in view.figures():
        table.add_row(name, words)
    return table


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "100%"


def _words(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "not known yet"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
