# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer itself, unmodified: packing, completion-only loss, its own shuffling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from _gpt2 import gpt2
from _ranks_of import on_ranks
from _real import Order, credited, english, figures, flat, weights
from transformers import GPT2LMHeadModel
from trl import SFTConfig, SFTTrainer

import prune_engine as pe
from prune_engine.integrations.huggingface import PruneMixin
from prune_engine.recipes.language import byte_tokenizer

N, SIZE, EPOCHS = 120, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)
TOKENIZER = byte_tokenizer()


class Pruned(PruneMixin, SFTTrainer):
    """As the page has it."""


def rows(kind: str) -> datasets.Dataset:
    """Return numbered text: whole, or as prompts with completions."""
    texts = [f"{at:03d} {row['text']}" for at, row in enumerate(english(N, longest=40))]
    if kind == "completion":
        pairs = [{"prompt": text[:9], "completion": text[9:]} for text in texts]
        return datasets.Dataset.from_list(pairs)
    return datasets.Dataset.from_list([{"text": text} for text in texts])


def made(folder: Path, policy: Any, *, kind: Any = Pruned, text: str = "text", **options: Any):
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": SIZE,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "max_length": 48,
        "gradient_checkpointing": False,
        "seed": 5,
    }
    model = gpt2(GPT2LMHeadModel, dropout=0.0)
    model.config.vocab_size = 257
    model.resize_token_embeddings(257)
    extra = {} if policy is None else {"prune": policy}
    if "eval_strategy" in options:
        extra["eval_dataset"] = rows(text).select(range(16))
    return kind(
        model=model,
        args=SFTConfig(**{**given, **options}),
        train_dataset=rows(text),
        processing_class=TOKENIZER,
        **extra,
    )


class Watch:
    """Notes the rows that the model is called with in training, by their content."""

    def __init__(self, trainer: Any) -> None:
        self.rows: list[list[tuple[int, ...]]] = []
        trainer.model.transformer.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        if module.training and torch.is_grad_enabled():
            ids, mask = kwargs["input_ids"], kwargs["attention_mask"].bool()
            self.rows.append(
                [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]
            )


def content(trainer: Any) -> list[tuple[int, ...]]:
    """Return each row of the prepared data set, which is what an index means."""
    return [tuple(item["input_ids"]) for item in trainer.train_dataset]


VARIANTS = {
    "plain": {},
    "completion": {"text": "completion"},
    "packed": {"packing": True, "packing_strategy": "wrapped"},
    "shuffled": {"shuffle_dataset": True},
    "accumulated": {"gradient_accumulation_steps": 4},
    "workers": {"dataloader_num_workers": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_credited_to_their_rows_and_fewer_are_trained(tmp_path, variant):
    # T1: with its own shuffling and packing, 608 of 608 were wrong.
    trainer = made(tmp_path, INFOBATCH, **VARIANTS[variant])
    watch, rows_of = Watch(trainer), content(trainer)
    with credited() as seen:
        trainer.train()
    assert len(set(rows_of)) == len(rows_of) == trainer.engine.num_samples
    assert watch.rows == [[rows_of[index] for index in batch] for batch in seen]
    assert len(flat(seen)) == trainer.engine.history.samples_trained
    assert len(flat(seen)) < 0.95 * EPOCHS * len(rows_of)
    assert trainer.engine.done
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}
    if variant == "packed":
        assert len(rows_of) != N, "N is known when the rows are packed"


@pytest.mark.parametrize("variant", ["plain", "completion", "packed", "accumulated"])
def test_keeping_everything_is_the_stock_trainer(tmp_path, variant):
    options = VARIANTS[variant]
    ours = made(tmp_path, pe.KeepAll(), **options)
    with credited() as seen:
        ours.train()
    order = flat(seen)
    step = ours.samples_per_step
    cut = len(ours.train_dataset) // step * step
    orders = [order[at : at + cut] for at in range(0, len(order), cut)]

    class Stock(SFTTrainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return Order(orders)

    theirs = made(tmp_path, None, kind=Stock, **options)
    theirs.train()
    for name in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "num_tokens"):
        found = [
            [row[name] for row in trainer.state.log_history if name in row]
            for trainer in (ours, theirs)
        ]
        assert found[0] == pytest.approx(found[1], abs=5e-5), name
        assert len(found[0]) == EPOCHS * cut // step


@pytest.mark.parametrize("at", ["inside", "epoch's end", "evaluation"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, at):
    options = {"save_strategy": "steps", "save_steps": 1, "text": "completion"}
    options |= {"eval_strategy": "steps", "eval_steps": 4}
    whole = made(tmp_path / "whole", INFOBATCH, **options)
    whole.train()
    step = {"inside": 20, "epoch's end": N // SIZE, "evaluation": 8}[at]
    resumed = made(tmp_path / "resumed", INFOBATCH, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert figures(resumed.engine) == figures(whole.engine)
    assert torch.equal(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"packing": True}, "packing_strategy='wrapped'"),
        ({"padding_free": True, "max_length": None}, "padding_free"),
        ({"loss_type": "dft"}, "loss_type must be 'nll'"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        made(tmp_path, INFOBATCH, **options)


def test_a_limit_is_reported_and_metrics_are_logged(tmp_path):
    trainer = made(tmp_path, INFOBATCH, max_steps=20)
    trainer.train()
    names = {name for row in trainer.state.log_history for name in row}
    assert {"prune/epoch", "entropy", "mean_token_accuracy"} <= names
    assert trainer.engine.history[-1].partial or trainer.engine.done


def ranks_work(rank: int, size: int, folder: str) -> None:
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    options |= {"text": "completion", "ddp_find_unused_parameters": False}
    trainer = made(Path(folder), INFOBATCH, **options)
    watch, rows_of = Watch(trainer), content(trainer)
    with credited() as seen:
        trainer.train()
    assert watch.rows == [[rows_of[index] for index in batch] for batch in seen]
    assert trainer.engine.done
    for report in trainer.engine.history:
        assert (report.observed, report.missing) == (report.served, report.dropped_tail)
        assert (report.extra, report.repeated, report.served % 32) == (0, 0, 0)
    torch.save(seen, f"{folder}/{rank}")


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    first = [flat(torch.load(tmp_path / str(rank))[: N // 32 * 4]) for rank in range(2)]
    assert len({*first[0], *first[1]}) == N // 32 * 32, "no row twice in the first epoch"
