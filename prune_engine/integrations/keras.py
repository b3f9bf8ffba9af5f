# SPDX-License-Identifier: Apache-2.0
"""Keras on the torch backend: a ``train_step`` that prunes, and a ``fit`` with honest epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import prune_engine as pe
from prune_engine.data.dataset import INDEX_KEY
from prune_engine.data.sampler import own_order
from prune_engine.integrations.packages import need

_keras: Any = need("keras", "keras")
_CallbackList: Any = _keras.callbacks.CallbackList
_LearningRateSchedule: Any = _keras.optimizers.schedules.LearningRateSchedule
_default_collate: Any = need("torch.utils.data", "").default_collate
INPUTS_KEY = "inputs"
__all__ = ["PruneMixin", "Schedule", "fit", "loader"]

if _keras.backend.backend() != "torch":
    raise ImportError(
        f"prune_engine.integrations.keras needs KERAS_BACKEND=torch, got "
        f"{_keras.backend.backend()!r}"
    )


class _Pairs:
    """Collates (x, y, index) to ({"inputs": x, "sample_index": index}, y).

    Keras takes a third entry of a batch for weights of its samples.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        for item in items:
            if not isinstance(item, tuple) or len(cast("tuple[Any, ...]", item)) != 3:
                raise TypeError("items must be (x, y): Keras has no other place for a label")
        *pair, indices = self.collate(items)
        return {INPUTS_KEY: pair[0], INDEX_KEY: indices}, pair[1]


class _Lazy(DataLoader[Any]):
    """Reads nothing before it is asked: Keras makes the next pass before an epoch has ended."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield from super().__iter__()


def loader(
    engine: pe.PruneEngine, dataset: Any, batch_size: int, *, accumulate: int = 1, **options: Any
) -> Any:
    """Return a loader whose batches no stock ``fit`` takes for inputs, labels and weights.

    Args:
        engine: of the run.
        dataset: map-style, of (x, y).
        batch_size: of a batch.
        accumulate: batches of an optimizer step (the optimizer's ``gradient_accumulation_steps``).
        options: for ``DataLoader``.

    Returns:
        A loader of ``({"inputs": x, "sample_index": indices}, y)``.

    Raises:
        TypeError: an option decides the order.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.arange(4.0), torch.arange(4))
        >>> inputs, y = next(iter(loader(pe.PruneEngine(4, pe.KeepAll()), data, 4)))
        >>> sorted(inputs), torch.equal(inputs["sample_index"], y)
        (['inputs', 'sample_index'], True)
    """
    own_order(options, engine.seed)
    options["collate_fn"] = _Pairs(options.get("collate_fn", _default_collate))
    sampler = engine.sampler(batch_size=batch_size, accumulate=accumulate)
    return _Lazy(engine.dataset(dataset), batch_size, sampler=sampler, **options)


class PruneMixin:
    """A Keras model whose training step goes through an engine: ``class M(PruneMixin, Model)``.

    ``fit`` of this module trains it; its own ``evaluate`` and ``predict`` are Keras's. The loss is
    the compiled one, per sample, plus the model's own (regularisation).

    Example:
        >>> class M(PruneMixin, _keras.Sequential): ...
        >>> M([_keras.layers.Dense(3)]).prune_engine is None  # outside of fit
        True
    """

    prune_engine: pe.PruneEngine | None = None

    def train_step(self, data: Any) -> Any:
        """Train one batch.

        Args:
            data: what ``loader`` serves.

        Returns:
            Keras's metrics.

        Raises:
            PruneEngineError: the batch is another loader's, or ``fit`` of this module is not used.
        """
        model: Any = self
        inputs, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if self.prune_engine is None or not isinstance(inputs, dict) or INDEX_KEY not in inputs:
            raise pe.PruneEngineError(
                "train this model by prune_engine.integrations.keras.fit(model, engine, dataset)"
            )
        x, indices = cast(Any, inputs)[INPUTS_KEY], cast(Any, inputs)[INDEX_KEY]
        predicted = model(x, training=True) if model._call_has_training_arg else model(x)
        model.zero_grad()
        losses = _losses(model, y, predicted)
        loss = self.prune_engine.observe(losses, indices.to(losses.device))
        loss = loss + sum(model.losses) if model.losses else loss
        model._loss_tracker.update_state(loss.detach(), sample_weight=len(indices))
        model.optimizer.scale_loss(loss).backward()
        trained = model.trainable_weights[:]
        with torch.no_grad():
            model.optimizer.apply([weight.value.grad for weight in trained], trained)
        return model.compute_metrics(x, y, predicted, sample_weight=None)


def _losses(model: Any, y: Any, predicted: Any) -> Tensor:
    """Return the compiled loss of each sample."""
    loss = _keras.losses.get(model.loss)
    each = loss.call(y, predicted) if isinstance(loss, _keras.losses.Loss) else loss(y, predicted)
    return each.flatten(1).mean(1) if each.dim() > 1 else each


class Schedule(_LearningRateSchedule):
    """A learning-rate schedule of Keras's that follows the data and not the count of steps.

    Args:
        schedule: made for ``total_steps`` steps.
        engine: with ``num_epochs``.
        total_steps: nominal: full epochs times full steps.

    Example:
        >>> import keras
        >>> engine = pe.PruneEngine(8, pe.KeepAll(), num_epochs=1)
        >>> cosine = keras.optimizers.schedules.CosineDecay(0.5, 10)
        >>> float(Schedule(cosine, engine, 10)(3))
        0.5
    """

    def __init__(self, schedule: Any, engine: pe.PruneEngine, total_steps: int) -> None:
        self.schedule, self.engine, self.total_steps = schedule, engine, total_steps

    def __call__(self, step: Any) -> Any:
        """Return the rate at the nominal step that the data has reached."""
        return self.schedule(round(self.engine.progress * self.total_steps))

    def get_config(self) -> dict[str, Any]:
        """Refuse: a schedule that follows an engine is made with it."""
        raise NotImplementedError("save the weights, and the engine by save_state")


class _OneTraining(_CallbackList):
    """Callbacks of one training that Keras is asked for an epoch at a time.

    Each call of ``fit`` fixes the length of its epochs, for the bar too; the callbacks see one
    training, and in it epochs that end the engine's.
    """

    def __init__(self, engine: pe.PruneEngine, *args: Any, **kwargs: Any) -> None:
        self._all: Any = super()
        self._all.__init__(*args, **kwargs)
        self.engine, self.begun = engine, False

    def set_length(self, batches: int) -> None:
        for callback in self.callbacks:
            if isinstance(callback, _keras.callbacks.ProgbarLogger):
                callback.target = batches

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.begun:
            self._all.on_train_begin(logs)
        self.begun = True

    def on_train_end(self, logs: Any = None) -> None:
        """Wait for ``end``."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        engine = self.engine
        engine.end_epoch(partial=engine.cursor < engine.served)
        logs = {} if logs is None else logs
        logs.update(engine.metrics())
        self._all.on_epoch_end(epoch, logs)

    def end(self, logs: Any = None) -> None:
        self._all.on_train_end(logs)


def fit(
    model: Any,
    engine: pe.PruneEngine,
    dataset: Any,
    *,
    batch_size: int,
    accumulate: int = 1,
    callbacks: Sequence[Any] = (),
    validation_data: Any = None,
    verbose: Any = "auto",
    **options: Any,
) -> Any:
    """Train a model for the rest of an engine's run, as ``model.fit`` does.

    Every epoch is as long as what the engine keeps, so is the bar; ``engine.metrics()`` is in the
    logs of each epoch. To resume, load weights and engine first: an epoch goes on where it was.

    Args:
        model: compiled, of a class with ``PruneMixin``, with one output and one loss.
        engine: of ``mode="epoch"``, with ``num_epochs``.
        dataset: map-style, of (x, y).
        batch_size: of a batch.
        accumulate: batches of an optimizer step: what ``gradient_accumulation_steps`` says.
        callbacks: of Keras's kind; they see one training.
        validation_data: as for ``model.fit``.
        verbose: as for ``model.fit``.
        options: for ``DataLoader``.

    Returns:
        Keras's history.

    Raises:
        TypeError: the model lacks the mixin.
        ValueError: it was compiled for what pruning cannot serve; the message says what instead.

    Example:
        >>> class M(PruneMixin, _keras.Sequential): ...
        >>> model = M([_keras.layers.Dense(3)])
        >>> model.compile("sgd", _keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> data = torch.utils.data.TensorDataset(torch.randn(20, 5), torch.arange(20) % 3)
        >>> engine = pe.PruneEngine(data, pe.KeepAll(), num_epochs=2)
        >>> fit(model, engine, data, batch_size=8, verbose=0).history["prune/served"]
        [16.0, 16.0]
    """
    if not isinstance(model, PruneMixin):
        raise TypeError(
            f"model must be of a class with PruneMixin, got {type(model).__name__}: "
            "class M(PruneMixin, keras.Model)"
        )
    _refuse(model, engine, accumulate)
    epochs = cast(int, engine.num_epochs)
    made = loader(engine, dataset, batch_size, accumulate=accumulate, **options)
    x, y = _default_collate([dataset[0], dataset[1 % len(dataset)]])
    cast(Any, model).test_on_batch(x, y)  # builds it: Keras would take the mapping for its inputs
    cast(Any, model).reset_metrics()
    model.prune_engine = engine
    listed = _OneTraining(
        engine,
        list(callbacks),
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=epochs,
        steps=None,
        model=model,
    )
    try:
        while not engine.done:
            if 0 < engine.cursor == engine.served:  # restored where all of the epoch was trained
                engine.end_epoch()
                continue
            listed.set_length(len(made))
            trained: Any = cast(Any, model).fit(
                made,
                initial_epoch=engine.epoch,
                epochs=engine.epoch + 1,
                callbacks=listed,
                validation_data=validation_data,
                verbose=verbose,
                shuffle=False,  # the loader has an order
            )
            if cast(Any, model).stop_training:
                break
        else:
            trained = cast(Any, model).history
    finally:
        model.prune_engine = None
    listed.end()
    return trained


def _refuse(model: Any, engine: pe.PruneEngine, accumulate: int) -> None:
    """Refuse at the start what cannot be scored per sample, or would count epochs otherwise."""
    optimizer: Any = model.optimizer
    steps = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    reasons = {
        "engine must be of mode='epoch', with num_epochs": (
            engine.mode != "epoch" or engine.num_epochs is None
        ),
        "loss must be one loss of one output: write a train_step for several": (
            isinstance(model.loss, dict | list | tuple) or model.loss is None
        ),
        "jit_compile must be False: a compiled step would not tell the engine": model.jit_compile,
        "use_ema averages over a whole training, and this one is made of epochs: leave it False": (
            getattr(optimizer, "use_ema", False)
        ),
        f"accumulate must be the optimizer's gradient_accumulation_steps={steps}, got "
        f"{accumulate}": steps != accumulate,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(reason)


def nominal_steps(engine: pe.PruneEngine, batch_size: int, accumulate: int = 1) -> int:
    """Return the optimizer steps of a run of which nothing is pruned.

    Args:
        engine: with ``num_epochs``.
        batch_size: of a batch.
        accumulate: batches of a step.

    Returns:
        What to make a schedule for.

    Example:
        >>> nominal_steps(pe.PruneEngine(100, pe.KeepAll(), num_epochs=3), 8)
        36
    """
    epochs = cast(int, engine.num_epochs)
    return epochs * max(1, math.floor(engine.num_samples / (batch_size * accumulate)))
