# SPDX-License-Identifier: Apache-2.0
"""A small GPT-2 on gsm8k, by Trainer and SFTTrainer, with and without pruning.

Each way is trained in four arms: everything (``full``), InfoBatch, a random half with rescaled
losses that trains as many samples as InfoBatch did (``random_rescale``: the control that every
claim needs), and everything for as many samples as that (``full_cut``, on a schedule of its own).
The weights are random, the tokens are bytes: nothing is fetched.
"""

from __future__ import annotations

import importlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from prune_engine.epoch.state import check_seed
from prune_engine.plain import store_plain
from prune_engine.policies import InfoBatch, KeepAll, Policy, RandomSubset
from prune_engine.recipes import environment
from prune_engine.recipes.compare import control_ratio
from prune_engine.recipes.files import write_json
from prune_engine.recipes.text import load_pairs, make_gpt2

WAYS = {
    "trainer": "Trainer",
    "packed": "SFTTrainer, packed rows",
    "completion": "SFTTrainer, loss on answers",
}
ARMS = ("full", "infobatch", "random_rescale", "full_cut")
Row = dict[str, Any]


@dataclass(frozen=True)
class LanguageOptions:
    """One call of ``prune-engine language``.

    Args:
        data_root: the folder that holds ``gsm8k/``; pairs longer than a row are left out.
        out: where ``language.json`` and ``language.md`` go.
        ways: names of ``WAYS``.
        seeds: one training per way, arm and seed.
        limit: first training pairs only; None: all.
        test_limit: first test pairs only.
        epochs: of a run of which nothing is pruned.
        batch_size: rows of a batch.
        length: tokens of a row, at most.
        lr: peak of the cosine schedule.
        prune_ratio: r of InfoBatch.
        delta: share of the epochs before annealing.
        progress: whether the trainers draw bars.

    Raises:
        ValueError: a number or a name does not fit.
    """

    data_root: str
    out: Path
    ways: tuple[str, ...] = tuple(WAYS)
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = None
    test_limit: int | None = None
    epochs: int = 8
    batch_size: int = 8
    length: int = 256
    lr: float = 3e-3
    prune_ratio: float = 0.5
    delta: float = 0.875
    progress: bool = False

    def __post_init__(self) -> None:
        store_plain(self)
        for way in self.ways:
            if way not in WAYS:
                raise ValueError(f"ways: expected some of {', '.join(WAYS)}, got {way!r}")
        for seed in self.seeds:
            check_seed(seed)
        for name in ("limit", "test_limit", "epochs", "batch_size", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


DEFAULTS = LanguageOptions("", Path())


def byte_tokenizer() -> Any:
    """Return a tokenizer with a token for each byte and one, the first, that ends and pads."""
    tokenizers: Any = importlib.import_module("tokenizers")
    transformers: Any = importlib.import_module("transformers")
    level: Any = tokenizers.pre_tokenizers.ByteLevel
    letters = ["<end>", *sorted(level.alphabet())]
    vocabulary = {letter: at for at, letter in enumerate(letters)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = level(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<end>", bos_token="<end>"
    )


def encode(
    pairs: Sequence[tuple[str, str]], tokenizer: Any, length: int, *, answers: bool
) -> list[dict[str, list[int]]]:
    """Return rows of tokens with labels.

    Args:
        pairs: questions and answers.
        tokenizer: of ``byte_tokenizer``.
        length: tokens of a row, at most.
        answers: whether the answers alone are trained.

    Returns:
        ``input_ids`` and ``labels``, -100 where none is.
    """
    rows: list[dict[str, list[int]]] = []
    for question, answer in pairs:
        asked = tokenizer(f"{question}\n")["input_ids"]
        told = [*tokenizer(f"{answer}\n")["input_ids"], tokenizer.eos_token_id]
        labels = [-100] * len(asked) + told if answers else asked + told
        rows.append({"input_ids": (asked + told)[:length], "labels": labels[:length]})
    return rows


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows at their ends.

    Args:
        rows: of ``encode``; other entries are left out.

    Returns:
        A batch for a causal language model.

    Example:
        >>> collate([{"input_ids": [5], "labels": [5]}, {"input_ids": [6, 7], "labels": [-100, 7]}])
        {'input_ids': tensor([[5, 0],
                [6, 7]]), 'labels': tensor([[   5, -100],
                [-100,    7]]), 'attention_mask': tensor([[1, 0],
                [1, 1]])}
    """
    size = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (size - len(row[name])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(size) < lengths[:, None]).long()
    batch = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
    return {**batch, "attention_mask": mask}


@torch.no_grad()
def held_out_loss(model: Any, rows: Sequence[dict[str, list[int]]], batch_size: int = 32) -> float:
    """Return the mean negative log-likelihood of a token that has a label, in nats.

    Args:
        model: a causal language model.
        rows: of ``encode``.
        batch_size: rows at a time.
    """
    model.eval()
    total, count = 0.0, 0
    for at in range(0, len(rows), batch_size):
        batch = collate(rows[at : at + batch_size])
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
        total, count = total + float(losses), count + int((labels != -100).sum())
    return total / count


def run(options: LanguageOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Train every way, seed and arm, and write the rows as they come.

    Args:
        options: what to train.
        say: receives one line per training.

    Returns:
        What is written to ``language.json``.

    Raises:
        FileNotFoundError: gsm8k is not in ``data_root``.
        ImportError: a trainer's package is missing.
    """
    root = Path(options.data_root)
    train, test = (
        [pair for pair in load_pairs(root, split) if _size(pair) <= options.length][:limit]
        for split, limit in (("train", options.limit), ("test", options.test_limit))
    )
    if not train or not test:
        raise ValueError(f"length: expected pairs of at most {options.length} bytes, found none")
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "options": {**asdict(options), "out": str(options.out), "data_root": "gsm8k's folder"},
        "pairs": len(train),
        "test_pairs": len(test),
        "environment": _environment(),
        "rows": [],
    }
    for way in options.ways:
        for seed in options.seeds:
            trained: Row = {}
            # Full training and the policy take turns to be first, as their controls do.
            first = ["full", "infobatch"] if seed % 2 == 0 else ["infobatch", "full"]
            for arm in [*first, *ARMS[2:]]:
                row = _train(options, way, arm, seed, train, test, trained)
                if arm == "infobatch":
                    trained = row
                found["rows"].append(row)
                write_json(options.out / "language.json", found)
                say(
                    f"{way:<10} seed {seed}  {arm:<14} held-out loss {row['held_out_loss']:.4f}  "
                    f"{row['samples']} of {row['nominal']} samples  {row['seconds']:.1f} s"
                )
    (options.out / "language.md").write_text(table(found) + "\n", encoding="utf-8")
    return found


def _size(pair: tuple[str, str]) -> int:
    """Return the tokens of a pair: its bytes, two line ends and the end."""
    return sum(len(part.encode()) + 1 for part in pair) + 1


def _environment() -> dict[str, Any]:
    versions = {
        name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "trl")
    }
    cores, threads = environment.cores(), torch.get_num_threads()
    return {"python": platform.python_version(), **versions, "cores": cores, "threads": threads}


def _train(
    options: LanguageOptions,
    way: str,
    arm: str,
    seed: int,
    train: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    trained: Row,
) -> Row:
    """Train one arm and evaluate it; the clock is around ``trainer.train()`` alone."""
    tokenizer = byte_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(options, way, seed, train, tokenizer, folder)
        rows, size = len(trainer.train_dataset), options.batch_size
        full = rows // size * options.epochs
        if arm == "full_cut":
            trainer.args.max_steps = trained["samples"] // size
        trainer.remove_callback(importlib.import_module("transformers").PrinterCallback)
        trainer.prune = _policy(options, arm, rows, trained)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        loss = held_out_loss(
            trainer.model, encode(test, tokenizer, options.length, answers=way == "completion")
        )
    return {
        "way": way,
        "arm": arm,
        "seed": seed,
        "rows": rows,
        "steps": trainer.state.global_step,
        "samples": trainer.state.global_step * size,
        "nominal": full * size,
        "held_out_loss": loss,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "engine_seconds": trainer.engine.engine_seconds,
    }


def _policy(options: LanguageOptions, arm: str, rows: int, trained: Row) -> Policy:
    if arm == "infobatch":
        return InfoBatch(options.prune_ratio, delta=options.delta)
    if arm == "random_rescale":
        ratio = control_ratio(
            rows, options.batch_size, options.epochs, options.delta, trained["samples"]
        )
        return RandomSubset(ratio, rescale=True, delta=options.delta)
    return KeepAll()


def _trainer(
    options: LanguageOptions,
    way: str,
    seed: int,
    train: Sequence[tuple[str, str]],
    tokenizer: Any,
    folder: str,
) -> Any:
    """Make a trainer that keeps everything until it is told a policy."""
    mixin: Any = importlib.import_module("prune_engine.integrations.huggingface").PruneMixin
    library: Any = importlib.import_module("transformers" if way == "trainer" else "trl")
    shared: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": not options.progress,
        "seed": seed,
    }
    model = make_gpt2(options.length, seed, len(tokenizer))
    if way == "trainer":
        kind: Any = type("Pruned", (mixin, library.Trainer), {})
        return kind(
            model=model,
            args=library.TrainingArguments(**shared),
            train_dataset=encode(train, tokenizer, options.length, answers=False),
            data_collator=collate,
            prune=KeepAll(),
        )
    packs = way == "packed"
    kind = type("Pruned", (mixin, library.SFTTrainer), {})
    texts: list[dict[str, str]] = [
        {"text": f"{question}\n{answer}\n"}
        if packs
        else {"prompt": f"{question}\n", "completion": f"{answer}\n"}
        for question, answer in train
    ]
    datasets: Any = importlib.import_module("datasets")
    if not options.progress:
        datasets.disable_progress_bars()
    return kind(
        model=model,
        args=library.SFTConfig(
            **shared, max_length=options.length, packing=packs, packing_strategy="wrapped"
        ),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer,
        prune=KeepAll(),
    )


def table(found: dict[str, Any]) -> str:
    """Return the rows as a table: means over the seeds with standard deviations, median times.

    Args:
        found: what ``run`` returned.

    Returns:
        Markdown.
    """
    lines = [
        "| trained by | arm | samples | held-out loss | wall s | cpu s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    rows: list[Row] = found["rows"]
    for way in dict.fromkeys(row["way"] for row in rows):
        for arm in ARMS:
            chosen = [row for row in rows if (row["way"], row["arm"]) == (way, arm)]
            if not chosen:
                continue
            share = statistics.mean(row["samples"] / row["nominal"] for row in chosen)
            losses = [row["held_out_loss"] for row in chosen]
            spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
            times = [
                statistics.median(row[name] for row in chosen)
                for name in ("seconds", "cpu_seconds")
            ]
            lines.append(
                f"| {WAYS[way]} | {arm} | {share:.1%} | {statistics.mean(losses):.4f} "
                f"\N{PLUS-MINUS SIGN} {spread:.4f} | {times[0]:.1f} | {times[1]:.1f} |"
            )
    return "\n".join(lines)


def load(path: Path) -> dict[str, Any]:
    """Read what ``run`` has written.

    Args:
        path: ``language.json``.
    """
    return json.loads(path.read_text(encoding="utf-8"))
