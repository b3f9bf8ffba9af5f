# SPDX-License-Identifier: Apache-2.0
"""Ignite: epochs of an ``Engine`` that are as long as the pruning engine's."""

from __future__ import annotations

from typing import Any

import prune_engine as pe
from prune_engine.data.sampler import PruneSampler
from prune_engine.integrations.packages import need

_ignite: Any = need("ignite.engine", "ignite")
__all__ = ["attach"]


def attach(trainer: Any, engine: pe.PruneEngine, loader: Any) -> None:
    """Let an Ignite trainer run the epochs of a pruning engine.

    Then ``trainer.run(loader, max_epochs=engine.num_epochs)``, with an update function that trains
    ``engine.observe(losses, indices)``. Each epoch gets its own length; the engine's metrics are in
    ``trainer.state.metrics``, where Ignite's loggers look. To resume, load the engine's state
    before ``run``: epoch and iteration are the engine's, and a state of the trainer need not be
    loaded. An epoch that ``terminate_epoch`` or ``terminate`` ends is reported as partial.

    Args:
        trainer: an ``ignite.engine.Engine``.
        engine: of ``mode="epoch"``, with ``num_epochs``.
        loader: ``engine.loader(dataset, batch_size, resume="length")``.

    Raises:
        TypeError: the trainer is no engine of Ignite's, or the engine none of this library.
        ValueError: the loader is another; in ``run``, ``max_epochs`` or ``epoch_length`` is not the
            engine's.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> from torch.utils.data import TensorDataset
        >>> engine = pe.PruneEngine(20, pe.KeepAll(), num_epochs=2)
        >>> loader = engine.loader(TensorDataset(torch.arange(20.0)), 8, resume="length")
        >>> trainer = Engine(lambda trainer, batch: engine.observe(*batch).item())
        >>> attach(trainer, engine, loader)
        >>> trainer.run(loader, max_epochs=2).metrics["prune/epoch"]
        1.0
    """
    if not isinstance(trainer, _ignite.Engine):
        raise TypeError(f"trainer must be an ignite Engine, got {type(trainer).__name__}")
    if not isinstance(engine, pe.PruneEngine):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"engine must be a PruneEngine, got {type(engine).__name__}")
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, PruneSampler) or sampler.resume != "length":
        raise ValueError(
            "loader must be engine.loader(dataset, batch_size, resume='length'): Ignite runs none "
            "that has nothing left, as after a checkpoint of an epoch's last batch"
        )
    run = _Run(engine, loader)
    events = _ignite.Events
    for event, handler in (
        (events.STARTED, run.started),
        (events.EPOCH_STARTED, run.epoch_started),
        (events.EPOCH_COMPLETED, run.epoch_completed),
        (events.COMPLETED, run.completed),
    ):
        trainer.add_event_handler(event, handler)


class _Run:
    """The handlers of one trainer."""

    def __init__(self, engine: pe.PruneEngine, loader: Any) -> None:
        self.engine, self.loader = engine, loader
        self.whole = 0  # batches of the longest epoch

    def started(self, trainer: Any) -> None:
        """Put the trainer where the engine is."""
        engine, state = self.engine, trainer.state
        if state.max_iters is None and state.max_epochs != engine.num_epochs:
            raise ValueError(
                f"max_epochs must be the engine's num_epochs={engine.num_epochs}, got "
                f"{state.max_epochs}"
            )
        if not engine.steps and state.epoch_length not in (None, len(self.loader)):
            raise ValueError(
                f"epoch_length must not be given: an epoch is what the engine keeps, got "
                f"{state.epoch_length} for {len(self.loader)} batches"
            )
        if 0 < engine.cursor == engine.served:  # saved when all of the epoch was trained
            engine.end_epoch()
        state.epoch, state.iteration = engine.epoch, engine.steps
        self.whole = max(1, engine.num_samples)
        state.epoch_length = self.whole  # a run counts as done by it as well

    def epoch_started(self, trainer: Any) -> None:
        """Give the epoch its own length and a pass of its own."""
        sampler: PruneSampler = self.loader.sampler
        trained = self.engine.cursor // (self.loader.batch_size * sampler.num_replicas)
        trainer.state.epoch_length = len(self.loader) - trained
        trainer.set_data(self.loader)

    def epoch_completed(self, trainer: Any) -> None:
        """End the engine's epoch."""
        engine, state = self.engine, trainer.state
        early = bool(trainer.should_terminate_single_epoch or trainer.should_terminate)
        engine.end_epoch(partial=early and engine.cursor < engine.served)
        state.metrics.update(engine.metrics())
        # Ignite is done, too, where iterations reach max_epochs times this length.
        state.epoch_length = self.whole
        if engine.done and state.epoch < (state.max_epochs or 0):
            trainer.terminate()  # everything is dropped for ever

    def completed(self, trainer: Any) -> None:
        """Report an epoch that was broken off."""
        if self.engine.cursor and not self.engine.done:
            self.engine.end_epoch(partial=True)
