# SPDX-License-Identifier: Apache-2.0
"""Keras itself, on torch, unmodified: attribution, epochs and bars of their own length, resume."""

from __future__ import annotations

import re
from typing import Any

import keras
import pytest
import torch
import torch.nn.functional as F
from _real import PIXELS, Digits, credited, figures, flat

import prune_engine as pe
from prune_engine.integrations.keras import PruneMixin, Schedule, fit, loader, nominal_steps

N, SIZE, EPOCHS = 203, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)


class Rows(keras.layers.Layer):
    """Takes the row's number off and notes it, while training."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[list[int]] = []

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.trained.append(x[:, PIXELS].long().tolist())
        return x[:, :PIXELS]

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], PIXELS)


class Pruned(PruneMixin, keras.Sequential):
    """As the page has it."""


class Run:
    """A model, an engine and what Keras made of them."""

    def __init__(
        self,
        policy: Any = INFOBATCH,
        *,
        kind: Any = Pruned,
        accumulate: int = 1,
        rate: Any = 0.1,
        schedule: bool = False,
        **options: Any,
    ) -> None:
        keras.utils.set_random_seed(1)
        self.dataset = Digits(N)
        self.engine = pe.PruneEngine(self.dataset, policy, num_epochs=EPOCHS)
        self.rows = Rows()
        dense = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
        self.model = kind([self.rows, *dense])
        self.accumulate = accumulate
        if schedule:
            steps = nominal_steps(self.engine, SIZE, accumulate)
            cosine = keras.optimizers.schedules.CosineDecay(0.1, steps)
            rate = Schedule(cosine, self.engine, steps)
        optimizer = keras.optimizers.SGD(
            rate, gradient_accumulation_steps=accumulate if accumulate > 1 else None
        )
        self.model.compile(
            **{
                "optimizer": optimizer,
                "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                "metrics": ["accuracy"],
                **options,
            }
        )

    def fit(self, **options: Any) -> Any:
        given = {"verbose": 0, "batch_size": SIZE, "accumulate": self.accumulate}
        return fit(self.model, self.engine, self.dataset, **{**given, **options})

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([each.value.detach().flatten() for each in self.model.weights])


def held_out() -> Any:
    data = Digits(40, first=500)
    return data.x.numpy(), data.y.numpy()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_plain_loop(workers, accumulate):
    run = Run(accumulate=accumulate)
    with credited() as seen:
        history = run.fit(num_workers=workers, validation_data=held_out())
    assert run.rows.trained == seen
    plain = Run(accumulate=accumulate)
    plain.model.test_on_batch(*[each[:2] for each in (plain.dataset.x, plain.dataset.y)])
    trained = []
    variables = plain.model.trainable_weights
    for _ in plain.engine.epochs():
        for x, y, indices in plain.engine.loader(plain.dataset, SIZE, accumulate=accumulate):
            plain.model.zero_grad()
            losses = F.cross_entropy(plain.model(x), y, reduction="none")
            plain.engine.observe(losses, indices).backward()
            with torch.no_grad():
                plain.model.optimizer.apply([each.value.grad for each in variables], variables)
            trained.append(indices.tolist())
    assert seen == trained
    assert figures(run.engine) == figures(plain.engine)
    torch.testing.assert_close(run.weights, plain.weights)
    assert len(flat(seen)) < 0.9 * EPOCHS * N
    if not workers:
        assert len(run.dataset.fetched) == len(flat(seen)) + 2, "and two, to build the model"
    assert history.history["prune/epoch"] == [0.0, 1.0, 2.0]
    assert len(history.history["val_loss"]) == EPOCHS


def test_keeping_everything_is_the_stock_fit():
    ours = Run(pe.KeepAll(), kind=Pruned)
    ours.fit()
    order = flat(ours.rows.trained)
    stock = Run(pe.KeepAll(), kind=keras.Sequential)
    cut = N // SIZE * SIZE
    losses = []
    for epoch in range(EPOCHS):
        chosen = order[epoch * cut : (epoch + 1) * cut]
        x, y = stock.dataset.x[chosen], stock.dataset.y[chosen]
        losses += stock.model.fit(
            x.numpy(), y.numpy(), batch_size=SIZE, shuffle=False, verbose=0
        ).history["loss"]
    assert ours.model.history.history["loss"] == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(ours.weights, stock.weights)


def test_stock_fit_does_not_take_the_index_for_a_weight():
    # K1.
    run = Run(kind=keras.Sequential)
    made = loader(run.engine, run.dataset, SIZE)
    assert [len(batch) for batch in made] == [2] * (N // SIZE), "there is no third entry"
    with pytest.raises(Exception, match=r"sample_index|inputs|dict|shape"):
        run.model.fit(made, verbose=0)
    assert run.engine.steps == 0
    with pytest.raises(pe.PruneEngineError, match=r"integrations\.keras\.fit"):
        pruned = Run()
        x, y = pruned.dataset.x[:8], pruned.dataset.y[:8]
        pruned.model.fit(x, y, batch_size=8, verbose=0)


def test_the_bar_is_as_long_as_the_epoch(capsys):
    run = Run()
    run.fit(verbose=1)
    bars = re.findall(r"(\d+)/(\d+)\x1b", capsys.readouterr().out)
    served = [report.served // SIZE for report in run.engine.history]
    full = [int(done) for done, total in bars if done == total]
    assert list(dict.fromkeys(full)) == list(dict.fromkeys(served))
    assert {int(total) for _, total in bars} == set(served)


class Noted(keras.callbacks.Callback):
    """Notes when it is called, saves, and stops."""

    def __init__(self, run: Run, save_at: Any = (), stop_at: int | None = None) -> None:
        super().__init__()
        self.run, self.save_at, self.stop_at = run, save_at, stop_at
        self.steps = 0
        self.calls: list[str] = []
        self.states: dict[Any, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append("begin")

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append("end")

    def on_train_batch_end(self, batch: Any, logs: Any = None) -> None:
        self.steps += 1
        if self.steps in self.save_at:
            self.states[self.steps] = self.state()
        if self.steps == self.stop_at:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.states[f"epoch {epoch}"] = self.state()
        self.calls.append(f"epoch {epoch}")

    def state(self) -> Any:
        kept = [each.numpy().copy() for each in self.model.weights]
        return kept, self.run.engine.state_dict()


def test_callbacks_see_one_training():
    run = Run()
    noted = Noted(run)
    run.fit(callbacks=[noted])
    assert noted.calls == ["begin", "epoch 0", "epoch 1", "epoch 2", "end"]


def test_a_resumed_run_is_the_run_that_was_never_stopped():
    run = Run(schedule=True)
    first = N // SIZE
    noted = Noted(run, save_at=(30, first))
    run.fit(callbacks=[noted], validation_data=held_out())
    # Inside; when all of an epoch is trained; at its end, which is after its validation.
    for at, skipped in ((30, 30), (first, first), ("epoch 0", first)):
        resumed = Run(schedule=True)
        kept, state = noted.states[at]
        resumed.model.test_on_batch(resumed.dataset.x[:2], resumed.dataset.y[:2])
        resumed.model.set_weights(kept)
        resumed.engine.load_state_dict(state)
        resumed.fit(validation_data=held_out())
        assert resumed.rows.trained == run.rows.trained[skipped:], at
        assert figures(resumed.engine) == figures(run.engine)
        assert torch.equal(resumed.weights, run.weights)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_schedule_ends_where_it_should(accumulate):
    run = Run(schedule=True, accumulate=accumulate)
    run.fit()
    assert run.engine.history.dsi > 0.05
    assert float(run.model.optimizer.learning_rate) < 1e-6


def test_a_stop_is_reported_and_no_error():
    run = Run()
    noted = Noted(run, stop_at=30)
    run.fit(callbacks=[noted])
    assert run.engine.history[1].partial
    assert sum(report.served for report in run.engine.history) == 30 * SIZE
    assert noted.calls == ["begin", "epoch 0", "epoch 1", "end"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": ["mse"]}, "one loss of one output"),
        ({"jit_compile": True}, "jit_compile"),
        ({"optimizer": keras.optimizers.SGD(0.1, use_ema=True)}, "use_ema"),
        ({"optimizer": keras.optimizers.SGD(gradient_accumulation_steps=4)}, "accumulate must be"),
    ],
    ids=["losses", "jit", "ema", "accumulate"],
)
def test_what_cannot_be_served_is_refused_at_the_start(options, match):
    with pytest.raises(ValueError, match=match):
        Run(**options).fit()


def test_a_model_without_the_mixin_is_refused():
    with pytest.raises(TypeError, match="PruneMixin"):
        Run(kind=keras.Sequential).fit()


def test_a_functional_model():
    class Functional(PruneMixin, keras.Model):
        pass

    keras.utils.set_random_seed(1)
    inputs = keras.Input((PIXELS + 1,))
    outputs = keras.layers.Dense(10, kernel_regularizer="l2")(inputs[:, :PIXELS])
    model = Functional(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    dataset = Digits(N)
    engine = pe.PruneEngine(dataset, INFOBATCH, num_epochs=EPOCHS)
    history = fit(model, engine, dataset, batch_size=SIZE, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert engine.done
