# SPDX-License-Identifier: Apache-2.0
"""Lightning: a callback that ends the engine's epochs and saves it, and a set-up for Fabric."""

from __future__ import annotations

import math
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

import prune_engine as pe
from prune_engine.data.sampler import PruneSampler
from prune_engine.epoch.state import check_count, sample_count
from prune_engine.integrations.packages import need
from prune_engine.policies import Policy

_lightning: Any = need("lightning", "lightning")
_Callback: Any = _lightning.pytorch.Callback
__all__ = ["Prune", "prepare"]


class Prune(_Callback):
    """Let a ``Trainer`` train an engine's epochs, each as long as it is.

    ``Trainer(callbacks=[Prune(engine)], max_epochs=engine.num_epochs)`` with the loader
    ``engine.loader(dataset, batch_size, resume="length")``; ``training_step`` returns
    ``engine.observe(losses, indices)``. The loader is asked for in each epoch, so that its length,
    the bar and the validation are right; schedules that step with the optimizer follow the data
    from ``trainer.estimated_stepping_batches`` nominal steps to their end; ``engine.metrics()`` is
    logged at each epoch's end; each checkpoint has the engine, whenever it was saved.

    Args:
        engine: new, in ``mode="epoch"``; a checkpoint restores it (``fit(ckpt_path=...)``).

    Raises:
        TypeError: it is no engine.
        ValueError: it is of ``mode="flow"``, or, in ``fit``, the Trainer is to do what pruning
            cannot serve; the message says what instead.

    Example:
        >>> callback = Prune(pe.PruneEngine(8, pe.KeepAll(), num_epochs=2))
        >>> callback.state_dict()["epoch"]
        0
    """

    def __init__(self, engine: pe.PruneEngine) -> None:
        if not isinstance(engine, pe.PruneEngine):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"engine must be a PruneEngine, got {type(engine).__name__}")
        if engine.mode != "epoch":
            raise ValueError(f"engine must be of mode='epoch', got {engine.mode!r}")
        parent: Any = super()
        parent.__init__()
        self.engine = engine
        self._saved: dict[str, Any] | None = None  # of a checkpoint, until the loader is there
        self._ready = False

    @property
    def state_key(self) -> str:
        """The name of the engine's state in a checkpoint."""
        return "prune_engine"

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state; with several ranks a collective, as saving is."""
        return self.engine.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until the nominal steps are known.

        Args:
            state_dict: the engine's.
        """
        self._saved = state_dict
        if self._ready:  # a strategy that restores late
            self._restore()

    def _restore(self) -> None:
        if self._saved is not None:
            self.engine.load_state_dict(self._saved)
        self._saved = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have the loader asked for in each epoch, and refuse what cannot be served.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            stage: ``"fit"``, or one in which nothing is trained.
        """
        if stage != "fit":
            return
        self._ready = False
        _refuse(trainer, self.engine)
        trainer.reload_dataloaders_every_n_epochs = 1

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the loader, wrap the schedules, then restore.

        Args:
            trainer: the Trainer.
            pl_module: the module.
        """
        engine = self.engine
        if engine.epoch or engine.cursor:
            raise pe.PruneEngineError(
                f"the engine must be new, got one in epoch {engine.epoch} with {engine.cursor} "
                "samples trained: give a checkpoint to fit(ckpt_path=...) and a new engine to Prune"
            )
        trainer.fit_loop.setup_data()
        _check_loader(trainer.train_dataloader, engine)
        # What a module has made its schedules for, if nothing cuts the run short: those end by
        # themselves.
        steps = trainer.estimated_stepping_batches
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        whole = engine.num_epochs is not None and steps == per_epoch * engine.num_epochs
        for config in trainer.lr_scheduler_configs if whole else ():
            if config.interval == "step" and not isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler = engine.wrap_scheduler(config.scheduler, int(steps))
        self._ready = True
        if self._saved is not None:
            self._restore()
        # That loader served the first epoch of a new run: the next look at it makes another.
        trainer.fit_loop._last_train_dl_reload_epoch = float("-inf")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the engine's epoch before any checkpoint of this epoch's end is saved.

        Args:
            trainer: the Trainer.
            pl_module: the module.
        """
        engine = self.engine
        early = trainer.fast_dev_run or trainer.should_stop or trainer.limit_train_batches != 1.0
        early = early or 0 <= trainer.max_steps <= trainer.global_step
        engine.end_epoch(partial=bool(early) and engine.cursor < engine.served)
        self.log_dict(engine.metrics())
        if engine.done:
            trainer.should_stop = True


def _check_loader(loader: Any, engine: pe.PruneEngine) -> None:
    """Refuse a loader that would not serve this engine's epochs, or not go on after a restart."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, PruneSampler):
        raise ValueError(
            "the training loader must be engine.loader(dataset, batch_size, resume='length'), got "
            f"one with {type(sampler).__name__}"
        )
    if sampler.resume != "length":
        raise ValueError(
            "the training loader must be made with resume='length', for Lightning goes on counting "
            f"batches after a restart, got resume={sampler.resume!r}"
        )
    if sampler.engine is not engine._run:  # pyright: ignore[reportPrivateUsage]
        raise ValueError("the training loader must be of the engine that Prune was given")


def _refuse(trainer: Any, engine: pe.PruneEngine) -> None:
    """Refuse at the start what would go wrong later, most of it without a word."""
    limit, epochs = trainer.limit_train_batches, trainer.max_epochs
    bounded = trainer.max_steps != -1 or trainer.fast_dev_run
    reasons = {
        "overfit_batches takes the order from the engine: train on a torch.utils.data.Subset "
        "instead": trainer.overfit_batches > 0,
        f"reload_dataloaders_every_n_epochs must be 1, got "
        f"{trainer.reload_dataloaders_every_n_epochs}": (
            trainer.reload_dataloaders_every_n_epochs not in (0, 1)
        ),
        f"limit_train_batches={limit} makes an epoch of a part of the data set, of which scores "
        "are of different epochs: train on a torch.utils.data.Subset instead": (
            limit != 1.0 and not trainer.fast_dev_run and engine.num_epochs != 1
        ),
        f"max_epochs must be the engine's num_epochs={engine.num_epochs}, got {epochs}": (
            not bounded and epochs != engine.num_epochs
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(reason)


def prepare(
    fabric: Any,
    dataset: Any,
    policy: Policy,
    *,
    num_epochs: int,
    batch_size: int,
    accumulate: int = 1,
    scheduler: Any = None,
    total_steps: int | None = None,
    seed: int = 0,
    engine_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[pe.PruneEngine, Any, Any]:
    """Make an engine, its loader and its schedule for a loop with Fabric.

    ``fabric.save(path, {"engine": engine, ...})`` and ``fabric.load`` take it along.

    Args:
        fabric: launched.
        dataset: map-style.
        policy: such as ``InfoBatch()``.
        num_epochs: length of the run.
        batch_size: of each process.
        accumulate: batches of an optimizer step.
        scheduler: made for ``total_steps`` steps; None: there is none.
        total_steps: default: full epochs times full optimizer steps.
        seed: of the engine.
        engine_options: further arguments of ``PruneEngine``.
        options: for ``DataLoader``.

    Returns:
        The engine, the loader and the schedule.

    Raises:
        TypeError: an option decides the order.

    Example:
        >>> import torch
        >>> from lightning.fabric import Fabric
        >>> from torch.utils.data import TensorDataset
        >>> data, fabric = TensorDataset(torch.arange(20.0)), Fabric(accelerator="cpu", devices=1)
        >>> engine, loader, _ = prepare(fabric, data, pe.KeepAll(), num_epochs=1, batch_size=8)
        >>> for _ in engine.epochs():
        ...     for x, indices in loader:
        ...         loss = engine.observe(x, indices)
        >>> engine.history[0].served
        16
    """
    check_count("batch_size", batch_size, needed=True)
    check_count("accumulate", accumulate, needed=True)
    engine = pe.PruneEngine(
        dataset,
        policy,
        num_epochs=num_epochs,
        seed=seed,
        device=fabric.device,
        **(engine_options or {}),
    )
    loader = fabric.setup_dataloaders(
        engine.loader(dataset, batch_size, accumulate=accumulate, **options)
    )
    if scheduler is None:
        return engine, loader, None
    if total_steps is None:
        per_step = batch_size * fabric.world_size * accumulate
        total_steps = num_epochs * max(1, sample_count(dataset) // per_step)
    return engine, loader, engine.wrap_scheduler(scheduler, total_steps)
