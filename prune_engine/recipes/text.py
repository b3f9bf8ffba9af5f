# SPDX-License-Identifier: Apache-2.0
"""Real text as rows of bytes, and a small GPT-2 that is trained on them from the start.

A row is one sample: a stretch of a book, or a question with its answer. Bytes are the tokens, so
there is no vocabulary to fetch; byte 0 is in no text and pads.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD = 0
TEXTS = {"tinyshakespeare": 128, "gsm8k": 256}  # name -> tokens of a row


@dataclass(frozen=True)
class TextData:
    """A text in memory.

    Attributes:
        name: one of ``TEXTS``.
        train_rows: uint8 [N, T + 1], padded with 0 at the end.
        test_rows: uint8 [M, T + 1], likewise.
    """

    name: str
    train_rows: Tensor
    test_rows: Tensor

    @property
    def num_samples(self) -> int:
        """Number of training rows."""
        return len(self.train_rows)

    @property
    def num_test(self) -> int:
        """Number of test rows."""
        return len(self.test_rows)

    @property
    def length(self) -> int:
        """T, the tokens that are predicted in a full row."""
        return self.train_rows.shape[1] - 1

    def limited(self, limit: int | None) -> TextData:
        """The first ``limit`` training rows only (the test rows stay)."""
        if limit is None:
            return self
        if limit < 1:
            raise ValueError(f"limit: expected at least 1 sample, got {limit}")
        return replace(self, train_rows=self.train_rows[:limit].clone())


def load_text(name: str, root: Path) -> TextData:
    """Load a text.

    Args:
        name: ``"tinyshakespeare"`` (``input.txt``; the last tenth is the test) or ``"gsm8k"``
            (``train.jsonl`` and ``test.jsonl`` with ``question`` and ``answer``; longer pairs are
            cut).
        root: the folder that holds ``<name>/``, or the files themselves.

    Returns:
        The rows, in the order of the files.

    Raises:
        FileNotFoundError: a file is missing; the message names it and the argument.
        ValueError: a file is not what its name says.
    """
    length = TEXTS[name]
    if name == "tinyshakespeare":
        text = _file(name, root, "input.txt").read_bytes()
        cut = len(text) * 9 // 10
        return TextData(name, _stretches(text[:cut], length), _stretches(text[cut:], length))
    train, test = (
        (f"{question}\n{answer}\n".encode() for question, answer in load_pairs(root, split))
        for split in ("train", "test")
    )
    return TextData(name, _padded(train, length), _padded(test, length))


def load_pairs(root: Path, split: str) -> list[tuple[str, str]]:
    """Load the questions and answers of gsm8k.

    Args:
        root: the folder that holds ``gsm8k/``, or the files themselves.
        split: ``"train"`` or ``"test"``.

    Returns:
        In the order of the file.

    Raises:
        FileNotFoundError: it is missing; the message names it and the argument.
        ValueError: it is not what its name says.
    """
    return list(_pairs(_file("gsm8k", root, f"{split}.jsonl")))


def _file(name: str, root: Path, file: str) -> Path:
    for folder in (root / name, root):
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(
        f"data_root (--data-root): {file} is neither in {root / name} nor in {root}"
    )


def _stretches(text: bytes, length: int) -> Tensor:
    """Cut a text into rows of ``length + 1`` bytes; the last byte of a row begins the next."""
    count = (len(text) - 1) // length
    if count < 1:
        raise ValueError(f"text: expected more than {length} bytes, got {len(text)}")
    stream = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return stream[: count * length + 1].unfold(0, length + 1, length).contiguous()


def _pairs(file: Path) -> Iterable[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not text in UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        try:
            pair = json.loads(line)
            yield f"{pair['question']}", f"{pair['answer']}"
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: not a question and its answer") from error


def _padded(texts: Iterable[bytes], length: int) -> Tensor:
    rows = [text[: length + 1].ljust(length + 1, bytes([PAD])) for text in texts]
    if not rows:
        raise ValueError("text: expected at least one question and answer, got none")
    flat = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
    return flat.view(len(rows), length + 1)


def make_gpt2(length: int, seed: int, vocab_size: int) -> Any:
    """Return a small GPT-2 of ``transformers`` with weights of its own.

    Args:
        length: tokens of a row.
        seed: of the initial weights; the global generator is left as it was.
        vocab_size: tokens that there are; the first ends and pads.

    Raises:
        ImportError: ``transformers`` is missing; the message names the extra.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            "model gpt2 needs transformers: pip install 'prune_engine[text]'; "
            "`prune-engine train --model bytes` needs nothing beside torch"
        ) from error
    # No dropout: it would draw from the global generator.
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=length,
        n_embd=64,
        n_layer=3,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=PAD,
        eos_token_id=PAD,
        pad_token_id=PAD,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        return transformers.GPT2LMHeadModel(config)


class ByteGPT2(nn.Module):
    """GPT-2 over bytes: ``transformers``' model, built from a config, with weights of its own.

    Args:
        length: tokens of a row.
        seed: of the initial weights; the global generator is left as it was.

    Raises:
        ImportError: ``transformers`` is missing; the message names the extra.
    """

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        self.gpt2: nn.Module = make_gpt2(length, seed, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T] to logits [B, T, 256]."""
        return self.gpt2(input_ids=tokens).logits


def token_losses(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's summed negative log-likelihood and its number of real tokens.

    Args:
        logits: [B, T, 256] floating.
        rows: int64 [B, T + 1]; padding is not counted.

    Returns:
        Sums float32 [B], differentiable, and counts int64 [B].

    Example:
        >>> sums, counts = token_losses(torch.zeros(1, 2, 256), torch.tensor([[65, 66, 0]]))
        >>> round(sums.item(), 3), counts.tolist()
        (5.545, [1])
    """
    losses, counted = each_token(logits, rows)
    return losses.sum(1), counted.sum(1)


def each_token(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's negative log-likelihood, and which are no padding.

    Args:
        logits: [B, T, 256] floating.
        rows: int64 [B, T + 1].

    Returns:
        Losses float32 [B, T], differentiable, 0 for padding, and a mask bool [B, T].

    Example:
        >>> losses, counted = each_token(torch.zeros(1, 2, 256), torch.tensor([[65, 66, 0]]))
        >>> losses.shape, counted.tolist()
        (torch.Size([1, 2]), [[True, False]])
    """
    targets = rows[:, 1:]
    # The stubs know F.cross_entropy with int arguments only in part.
    losses = F.cross_entropy(
        logits.transpose(1, 2).float(), targets, reduction="none", ignore_index=PAD
    )
    return losses, targets != PAD
