# SPDX-License-Identifier: Apache-2.0
"""The Trainer itself, unmodified: attribution, accumulation, resume, ranks, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from _gpt2 import Watched, gpt2
from _ranks_of import on_ranks
from _real import Order, credited, english, figures, flat, padded, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

import prune_engine as pe
from prune_engine.integrations.huggingface import FILE, PruneMixin

N, SIZE, EPOCHS = 203, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)


class Pruned(PruneMixin, Trainer):
    """As the page has it."""


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": SIZE,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 5,
    }
    return TrainingArguments(**{**given, **options})


def rows(n: int = N) -> datasets.Dataset:
    return datasets.Dataset.from_list(english(n))


def pruned(
    folder: Path, policy: Any = INFOBATCH, *, n: int = N, kind: Any = Pruned, **options: Any
):
    callbacks = options.pop("callbacks", None)
    dropout = options.pop("dropout", 0.1)
    held_out = options.pop("eval_dataset", None)
    return kind(
        model=gpt2(dropout=dropout),
        args=arguments(folder, **options),
        train_dataset=rows(n),
        eval_dataset=held_out,
        data_collator=padded,
        callbacks=callbacks,
        prune=policy,
    )


def logged(trainer: Trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_losses_are_credited_to_their_samples_and_fewer_are_trained(tmp_path, workers, accumulate):
    # H1: the position survives the Trainer's defaults. H8, H9: three epochs save what they should,
    # with accumulation as without. H10: workers change nothing.
    trainer = pruned(
        tmp_path, dataloader_num_workers=workers, gradient_accumulation_steps=accumulate
    )
    with credited() as seen:
        trainer.train()
    engine, model = trainer.engine, trainer.model
    assert model.trained == seen, "which row it was, by its content"
    trained = len(flat(model.trained))
    assert trained == engine.history.samples_trained < EPOCHS * N * 0.95
    assert engine.history.dsi == pytest.approx(1 - trained / engine.history.nominal_trained)
    assert (engine.done, len(engine.history), engine.progress) == (True, EPOCHS, 1.0)
    assert {report.served % (SIZE * accumulate) for report in engine.history} == {0}
    steps = trained // SIZE // accumulate
    assert trainer.state.global_step == steps == trainer.state.max_steps
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}, "H4: the schedule ends where it should"
    if workers:
        again = pruned(tmp_path, gradient_accumulation_steps=accumulate)
        again.train()
        assert again.model.trained == model.trained


def stock(folder: Path, trained: list[list[int]], cut: int, **options: Any) -> Trainer:
    """Train the Trainer without pruning on the rows of another training, in their order."""
    order = flat(trained)
    orders = [order[at : at + cut] for at in range(0, len(order), cut)]

    class Stock(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return Order(orders)

    trainer = Stock(
        model=gpt2(),
        args=arguments(folder, **options),
        train_dataset=rows(),
        data_collator=padded,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulate", [1, 4])
def test_keeping_everything_is_the_stock_trainer(tmp_path, accumulate):
    # H2, H3: the same gradient with accumulation, by the Trainer's own count of tokens.
    options = {"gradient_accumulation_steps": accumulate}
    ours = pruned(tmp_path, pe.KeepAll(), **options)
    ours.train()
    cut = N // (SIZE * accumulate) * SIZE * accumulate
    theirs = stock(tmp_path, ours.model.trained, cut, **options)
    assert ours.model.trained == theirs.model.trained
    for name in ("loss", "grad_norm", "learning_rate"):
        assert logged(ours, name) == pytest.approx(logged(theirs, name), abs=5e-5), name
    assert len(logged(ours, "loss")) == EPOCHS * cut // SIZE // accumulate


def test_control_a_gradient_that_is_not_divided_is_seen(tmp_path):
    class Undivided(Pruned):
        def _weighted(self, losses: Any, mask: Any, indices: Any, items: Any) -> Any:
            return super()._weighted(losses, mask, indices, None)

    options = {"gradient_accumulation_steps": 4, "max_steps": 2}
    ours = pruned(tmp_path, pe.KeepAll(), kind=Undivided, **options)
    right = pruned(tmp_path, pe.KeepAll(), **options)
    for trainer in (ours, right):
        trainer.train()
    ratio = logged(ours, "grad_norm")[0] / logged(right, "grad_norm")[0]
    assert 3.5 < ratio < 4.5


class Micro(TrainerCallback):
    """Count micro-batches between optimizer steps, and evaluations."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.evaluated: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun.append(1)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun[-1] += 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated.append(state.global_step)


def test_no_optimizer_step_crosses_an_epoch(tmp_path):
    # H3: 203 rows are 25 batches, which 4 does not divide.
    count = Micro()
    trainer = pruned(tmp_path, gradient_accumulation_steps=4, callbacks=[count])
    trainer.train()
    assert set(count.begun) == {4}


def test_an_evaluation_observes_nothing_and_changes_nothing(tmp_path):
    held_out = datasets.Dataset.from_list(english(40))
    # Without dropout, for the loader of an evaluation draws from the global generator.
    alone, beside, count = pruned(tmp_path, dropout=0.0), None, Micro()
    alone.train()
    with credited() as seen:
        beside = pruned(
            tmp_path,
            dropout=0.0,
            eval_dataset=held_out,
            eval_strategy="steps",
            eval_steps=7,
            callbacks=[count],
        )
        beside.train()
        trained = len(seen)
        beside.evaluate()
        assert len(seen) == trained == beside.engine.steps
    assert len(count.evaluated) > 5
    assert beside.model.trained == alone.model.trained
    assert torch.equal(weights(beside.model), weights(alone.model))
    assert all(math.isfinite(loss) for loss in logged(beside, "eval_loss"))


# With ignore_data_skip the Trainer does not restore what dropout draws from.
@pytest.fixture(scope="module", params=[(1, False), (4, False), (1, True)], ids=str)
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that was never stopped, with a checkpoint at each step and an evaluation at some."""
    accumulate, ignore = request.param
    options = {
        "gradient_accumulation_steps": accumulate,
        "ignore_data_skip": ignore,
        "dropout": 0.0 if ignore else 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "eval_dataset": datasets.Dataset.from_list(english(16)),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
    }
    trainer = pruned(tmp_path_factory.mktemp("whole"), **options)
    trainer.train()
    return trainer, options, accumulate


@pytest.mark.parametrize("at", ["inside", "epoch's end", "pruning epoch's end", "evaluation"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, at, tmp_path):
    # H5: from every kind of checkpoint, whether the Trainer skips batches or not.
    trainer, options, accumulate = whole
    per_step = SIZE * accumulate
    step = {
        "inside": N // per_step + 2,
        "epoch's end": N // per_step,
        "pruning epoch's end": sum(r.served for r in trainer.engine.history[:2]) // per_step,
        "evaluation": 10,
    }[at]
    if accumulate == 4 and at == "evaluation":
        step = 5
    resumed = pruned(tmp_path, **options)
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{step}")
    assert resumed.model.trained == trainer.model.trained[step * accumulate :]
    assert figures(resumed.engine) == figures(trainer.engine)
    assert torch.equal(resumed.engine.scores(), trainer.engine.scores())
    assert torch.equal(weights(resumed.model), weights(trainer.model))
    assert resumed.lr_scheduler.state_dict() == trainer.lr_scheduler.state_dict()
    assert resumed.state.global_step == trainer.state.global_step


def test_a_checkpoint_without_the_engines_file_is_refused(whole, tmp_path):
    trainer, options, _ = whole
    folder = tmp_path / "checkpoint-1"
    source = Path(trainer.args.output_dir) / "checkpoint-1"
    folder.mkdir()
    for file in source.iterdir():
        if file.name != FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=f"has no {FILE}"):
        pruned(tmp_path, **options).train(resume_from_checkpoint=str(folder))


def test_a_limit_of_steps_is_a_limit_of_unpruned_work(tmp_path):
    short = pruned(tmp_path, max_steps=5)
    short.train()
    assert short.state.global_step == 5
    assert set(short.lr_scheduler.get_last_lr()) == {0.0}
    (report,) = short.engine.history
    assert (report.partial, report.served, report.extra) == (True, 40, 0)
    long = pruned(tmp_path, max_steps=60)
    long.train()
    assert long.state.global_step < 60, "fewer steps for the same work"
    assert set(long.lr_scheduler.get_last_lr()) == {0.0}


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= 30


def test_an_early_stop_is_reported_and_no_error(tmp_path):
    # H7: any early stop raised CoverageError.
    trainer = pruned(tmp_path, callbacks=[Stop()])
    trainer.train()
    assert trainer.state.global_step == 30
    assert trainer.engine.history[-1].partial
    assert sum(report.served for report in trainer.engine.history) == 30 * SIZE


def test_metrics_reach_the_trainers_log_and_the_bar_is_honest(tmp_path, capsys):
    trainer = pruned(tmp_path, disable_tqdm=False)
    bounds: list[int] = []

    class Bounds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bounds.append(state.max_steps)

    trainer.add_callback(Bounds())
    trainer.train()
    epochs = logged(trainer, "prune/epoch")
    assert epochs == [0.0, 1.0, 2.0], "each epoch once"
    assert logged(trainer, "prune/dsi")[-1] == trainer.engine.history.dsi
    assert bounds == sorted(bounds, reverse=True)
    assert (bounds[0], bounds[-1]) == (EPOCHS * (N // SIZE), trainer.state.global_step)
    assert f"{bounds[-1]}/{bounds[-1]}" in capsys.readouterr().err, "the bar ends full"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "decides the order"),
        ({"train_sampling_strategy": "batch_rebalance"}, "decides the order"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"num_train_epochs": 2.5}, "whole number"),
        ({"policy": pe.BPAS(SIZE, target_dsi=0.3)}, "keeps batches together"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        pruned(tmp_path, **options)


def test_a_trial_of_a_search_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a Trainer for each trial"):
        pruned(tmp_path).train(trial={"learning_rate": 1.0})


def test_a_policy_is_asked_for(tmp_path):
    with pytest.raises(TypeError, match="prune must be a policy"):
        pruned(tmp_path, pe.PruneEngine(3, pe.KeepAll()))


def ranks_work(rank: int, size: int, folder: str) -> None:
    trainer = pruned(
        Path(folder),
        n=N,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=10,
        ddp_find_unused_parameters=False,
    )
    with credited() as seen:
        trainer.train()
    engine, model = trainer.engine, trainer.model
    assert model.trained == seen
    assert engine.done
    assert len(engine.history) == EPOCHS
    # H6: all that is planned, but for the tail of less than one step, and nothing twice.
    for report in engine.history:
        assert report.observed == report.served
        assert (report.missing, report.extra, report.repeated) == (report.dropped_tail, 0, 0)
        assert report.served % 16 == 0
    resumed = pruned(
        Path(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        ddp_find_unused_parameters=False,
    )
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-20")
    assert resumed.model.trained == model.trained[40:]
    assert figures(resumed.engine) == figures(engine)
    assert torch.equal(weights(resumed.model), weights(model))
    torch.save(
        {"trained": model.trained, "lr": trainer.lr_scheduler.get_last_lr()}, f"{folder}/{rank}"
    )


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    assert [set(each["lr"]) for each in ranks] == [{0.0}, {0.0}]
    first = sorted(flat([flat(each["trained"][: N // 16 * 2]) for each in ranks]))
    assert first == sorted(set(first)), "no sample twice in the first epoch"
    assert len(first) == N // 16 * 16


def test_a_classifier_is_divided_by_accumulation_too(tmp_path):
    # H2: stock sequence classifiers are not; here four micro-batches are one batch.
    from _classifier import Classifier, records  # its own module: a model of transformers

    norms = []
    for size, accumulate in ((8, 4), (32, 1)):
        trainer = Pruned(
            model=Classifier.made(),
            args=arguments(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulate,
                max_steps=3,
                optim="sgd",
            ),
            train_dataset=records(N),
            prune=pe.KeepAll(),
        )
        trainer.train()
        norms.append(logged(trainer, "grad_norm"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_watched_model_is_watched():
    model = gpt2()
    batch = padded(english(4))
    model.train()
    model(input_ids=batch["input_ids"])
    assert isinstance(model, Watched)
    assert model.trained == [[0, 1, 2, 3]]


def test_a_model_with_another_loss_is_refused_and_not_scored_wrong(tmp_path):
    class Doubled(Watched):
        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            labels: Any = None,
            **kwargs: Any,
        ) -> Any:
            outputs = super().forward(input_ids, attention_mask, labels, **kwargs)
            if outputs.loss is not None:
                outputs.loss = outputs.loss * 2
            return outputs

    trainer = Pruned(
        model=gpt2(Doubled),
        args=arguments(tmp_path),
        train_dataset=rows(),
        data_collator=padded,
        prune=pe.KeepAll(),
    )
    with pytest.raises(pe.PruneEngineError, match="override sample_losses"):
        trainer.train()
