# SPDX-License-Identifier: Apache-2.0
"""Text as rows of bytes, its own model, and its perplexity in the table; GPT-2 is a stand-in."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise, num_threads
from torch import Tensor, nn

import prune_engine as pe
from prune_engine.recipes import data, text
from prune_engine.recipes.byte_model import ByteTransformer
from prune_engine.recipes.compare import RunOptions, run
from prune_engine.recipes.in_batch import InBatch
from prune_engine.recipes.results import Report, RunResult
from prune_engine.recipes.trainer import TextTrainer, TrainConfig, make_trainer

CONFIG = TrainConfig(
    model="gpt2", epochs=4, batch_size=8, lr=0.02, optimizer="adamw", layers="gpt2_blocks"
)


class Stub(nn.Module):
    """Has GPT-2's names and interface: embeds, passes two blocks, returns logits."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(config.vocab_size, 16)
        self.transformer.h = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(2)
        )
        self.head = nn.Linear(16, config.vocab_size)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        x = self.transformer.wte(input_ids)
        for block in self.transformer.h:
            x = x + block(x)
        return SimpleNamespace(logits=self.head(x))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both texts, small, and the stand-in for transformers."""
    module: Any = SimpleNamespace(
        GPT2Config=lambda **options: SimpleNamespace(**options), GPT2LMHeadModel=Stub
    )
    monkeypatch.setitem(sys.modules, "transformers", module)
    (tmp_path / "tinyshakespeare").mkdir()
    lines = "".join(f"Enter {name}, {k} times.\n" for k in range(300) for name in ("A", "Bo"))
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(lines, encoding="ascii")
    pairs = [
        {"question": f"{k} + {k}?", "answer": f"It is {2 * k}.\n#### {2 * k}"} for k in range(9)
    ]
    (tmp_path / "gsm8k").mkdir()
    for split, count in (("train", 9), ("test", 4)):
        rows = "".join(json.dumps(pair) + "\n" for pair in pairs[:count])
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    return tmp_path


def test_a_book_is_cut_into_rows_that_share_one_byte(folder):
    book = (folder / "tinyshakespeare" / "input.txt").read_bytes()
    loaded = data.load("tinyshakespeare", folder)
    assert isinstance(loaded, text.TextData)
    assert loaded.length == 128
    first = bytes(loaded.train_rows.flatten()[:129].tolist())
    assert first == book[:129]
    assert_bitwise(loaded.train_rows[1:, 0], loaded.train_rows[:-1, -1], "shared byte")
    cut = len(book) * 9 // 10
    assert bytes(loaded.test_rows[0].tolist()) == book[cut : cut + 129]
    assert len(loaded.train_rows) == (cut - 1) // 128
    assert data.load("tinyshakespeare", folder / "tinyshakespeare", limit=5).num_samples == 5


def test_a_pair_is_a_row_and_padding_is_not_counted(folder):
    loaded = data.load("gsm8k", folder)
    assert (loaded.num_samples, loaded.num_test) == (9, 4)
    row = bytes(loaded.train_rows[3].tolist())
    written = b"3 + 3?\nIt is 6.\n#### 6\n"
    assert row == written.ljust(257, b"\0")
    rows = loaded.train_rows[3:4].long()
    logits = torch.zeros(1, 256, 256)
    sums, counts = text.token_losses(logits, rows)
    assert counts.tolist() == [len(written) - 1]
    assert sums.tolist() == pytest.approx([(len(written) - 1) * math.log(256)])
    logits[:, len(written) :, 7] = 50.0  # what a model says about padding does not matter
    assert torch.equal(text.token_losses(logits, rows)[0], sums)


@pytest.mark.parametrize(
    ("name", "file", "content", "error", "message"),
    [
        ("tinyshakespeare", "input.txt", None, FileNotFoundError, "input.txt is neither in"),
        ("tinyshakespeare", "input.txt", "short", ValueError, "more than 128 bytes, got 4"),
        ("gsm8k", "test.jsonl", None, FileNotFoundError, "test.jsonl is neither in"),
        ("gsm8k", "train.jsonl", '{"question": 1}\n', ValueError, "train.jsonl:1: not a question"),
        ("gsm8k", "train.jsonl", "", ValueError, "at least one question"),
    ],
)
def test_a_file_that_does_not_fit_is_named(folder, name, file, content, error, message):
    path = folder / name / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        data.load(name, folder)


@pytest.mark.extra("sklearn")
def test_a_text_wants_a_model_of_text_and_no_augmentation(folder):
    loaded = data.load("gsm8k", folder)
    with pytest.raises(ValueError, match="expected bytes or gpt2 for text, got 'cnn'"):
        make_trainer(loaded, TrainConfig(model="cnn", epochs=1, batch_size=4, lr=0.1), 0)
    with pytest.raises(ValueError, match="augment: expected none for text"):
        make_trainer(loaded, TrainConfig("gpt2", 1, 4, 0.1, augment=True), 0)
    with pytest.raises(
        ValueError, match="model: expected one of mlp, small_cnn, cnn, resnet18, got 'gpt2'"
    ):
        make_trainer(data.load("digits", limit=50), CONFIG, 0)


def test_without_transformers_the_extra_and_the_other_model_are_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    loaded = data.load("gsm8k", folder)
    with pytest.raises(ImportError, match=r"prune_engine\[text\].*--model bytes"):
        make_trainer(loaded, CONFIG, 0)
    assert isinstance(make_trainer(loaded, replace(CONFIG, model="bytes"), 0), TextTrainer)


def test_the_byte_model_sees_no_later_byte_and_depends_on_its_seed_alone():
    model, again = ByteTransformer(8, seed=3), ByteTransformer(8, seed=3)
    tokens = torch.arange(65, 73).view(1, 8)
    logits = model(tokens)
    assert_bitwise(logits, again(tokens), "logits of one seed")
    assert not torch.equal(logits, ByteTransformer(8, seed=4)(tokens)), "control: another seed"
    for at in range(8):
        changed = tokens.clone()
        changed[0, at] = 10
        differs = (model(changed) != logits).any(-1)[0].tolist()
        assert differs == [False] * at + [True] * (8 - at)


def test_the_byte_model_learns_where_a_byte_stands():
    """Rows of one order: by places and what came before, the next byte is sure."""
    model = ByteTransformer(16, seed=0)
    rows = torch.arange(65, 82).repeat(4, 1) + torch.arange(4).view(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        sums, counts = text.token_losses(model(rows[:, :-1]), rows)
        loss = sums.sum() / counts.sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 5 and losses[-1] < 0.3


def test_perplexity_of_a_model_that_knows_nothing_is_the_number_of_bytes(folder):
    trainer = make_trainer(
        data.load("gsm8k", folder),
        CONFIG,
        0,
    )
    assert isinstance(trainer, TextTrainer)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert trainer.evaluate() == pytest.approx(256)


def test_a_model_that_diverged_has_an_infinite_perplexity_and_does_not_end_the_run(folder):
    trainer = make_trainer(data.load("gsm8k", folder), replace(CONFIG, model="bytes"), 0)
    assert 1 < trainer.evaluate() < 1e6, "control: a number"
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1e4)
    assert trainer.evaluate() == math.inf
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.fill_(math.nan)
    assert math.isnan(trainer.evaluate())


@pytest.mark.parametrize("model", [pytest.param("bytes", marks=pytest.mark.full("trains")), "gpt2"])
def test_a_comparison_of_batch_pruning_on_text_ends_in_perplexities(folder, tmp_path, model):
    options = RunOptions(
        data="tinyshakespeare",
        data_root=str(folder),
        out=tmp_path / "run",
        train=replace(CONFIG, model=model),
        policy="bpas",
        target_savings=0.2,
        compare=True,
    )
    said: list[str] = []
    with num_threads(1):
        found = run(options, said.append)
    assert found is not None
    report = found.report
    assert report.arms == ["full", "full_cut", "random", "bpas"]
    served = {arm: report.of(arm)[0].samples for arm in report.arms}
    assert served["bpas"] == served["random"] == served["full_cut"] < served["full"]
    assert report.of("bpas")[0].dsi == pytest.approx(0.2, abs=0.03)
    assert "test perplexity" in report.table(markdown=False)
    assert "perplexity" in said[0]
    assert 1 < report.of("full")[0].accuracy < 256


def test_tokens_are_chosen_within_the_batch(folder):
    loaded = data.load("gsm8k", folder)
    assert isinstance(loaded, text.TextData)
    gradients: dict[str, Tensor] = {}
    for rule in ("uniform_tokens", "top_tokens", "rho_tokens"):
        trainer = make_trainer(loaded, CONFIG, 0)
        chooser = InBatch(rule, keep=0.25).chooser(trainer)
        engine = pe.PruneEngine(loaded.num_samples, pe.KeepAll(), num_epochs=1)
        rows, targets = trainer.tensors()
        if rule == "rho_tokens":
            known = torch.arange(rows[:, 1:].numel()).view(rows[:, 1:].shape) % 7
            chooser.load_state_dict({"reference": known.to(torch.float16), "rule": {}})
        loss, means = chooser.observe(engine, rows, targets, torch.arange(len(rows)))
        each, counted = trainer.each_token(rows)
        torch.testing.assert_close(means, each.sum(1).detach() / counted.sum(1))
        torch.testing.assert_close(engine.scores(), means)
        if rule != "uniform_tokens":
            excess = each - known if rule == "rho_tokens" else each
            edge = np.quantile(excess[counted].detach().numpy(), 0.75, method="higher")
            want = each[counted & (excess >= float(edge))].mean()
            torch.testing.assert_close(loss, want)
            assert loss.item() != pytest.approx(means.mean().item()), "control: of all tokens"
        loss.backward()
        gradients[rule] = trainer.model.gpt2.head.weight.grad
        assert chooser.forwards(9, 9) == 9
    assert not torch.equal(gradients["uniform_tokens"], gradients["top_tokens"])


def test_arms_of_tokens_cost_as_many_passes_as_their_controls(folder, tmp_path):
    options = RunOptions(
        data="tinyshakespeare",
        data_root=str(folder),
        out=tmp_path / "run",
        train=replace(CONFIG, epochs=2),
        policy="rho_tokens(keep=0.6)",
        compare=True,
    )
    with num_threads(1):
        found = run(options, lambda line: None)
    assert found is not None
    cost = {
        arm: (found.report.of(arm)[0].samples, found.report.of(arm)[0].forwards)
        for arm in found.report.arms
    }
    count = data.load("tinyshakespeare", folder).num_samples
    whole, half = count // 8 * 8, count // 2 // 8 * 8 + (count - count // 2) // 8 * 8
    assert cost["full"] == cost["random"] == (2 * whole, 2 * whole)
    assert cost["rho_tokens_keep_0.6"] == (2 * whole + half, 2 * whole + half + count)
    passes = round((2 * whole + half + count) / 8) * 8
    assert cost["full_forwards"] == (passes, passes)


def test_divbs_is_for_images(folder):
    trainer = make_trainer(data.load("gsm8k", folder), CONFIG, 0)
    with pytest.raises(ValueError, match="expected images for divbs"):
        InBatch("divbs").chooser(trainer)
    InBatch("selective_backprop").chooser(trainer)  # control: rows are samples too


def result(arm: str, seed: int, value: float) -> RunResult:
    return RunResult(arm, seed, value, 10, 0.1, 1.0, 0.1, 0.1, 4, 4, 0.1, "perplexity")


def test_the_smaller_perplexity_wins():
    runs = [
        result(arm, seed, value + 0.01 * seed)
        for arm, value in (("full", 5.0), ("random", 7.0), ("bpas", 6.0))
        for seed in range(3)
    ]
    said = Report(tuple(runs), "bpas").sentences()
    assert said[0].startswith("bpas beat the random control at equal savings: -1.000 in perplexity")
    assert said[1].startswith("bpas lost to full training: +1.000 in perplexity")
