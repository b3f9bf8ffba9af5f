# SPDX-License-Identifier: Apache-2.0
"""Samples in a terminal, in plain letters: for people who look over ssh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune_engine.recipes.data import ImageData
from prune_engine.recipes.text import PAD, TextData

SHADES = " .:-=+*#%@"
MOST_LETTERS = 300


def top_samples(
    scores: Tensor, count: int, data: ImageData | TextData | None
) -> list[dict[str, Any]]:
    """Return the samples with the highest scores, and what they are.

    Args:
        scores: float32 [N], nan where never seen.
        count: how many, at least 1; fewer where fewer were seen.
        data: of N training samples, or None.

    Returns:
        Index, score, and with data label and image or text, ready for JSON; the highest first, of
        equals the lower index.

    Raises:
        ValueError: count is below 1, or the data has another number of samples.

    Example:
        >>> top_samples(torch.tensor([0.5, float("nan"), 2.0]), 1, None)
        [{'index': 2, 'score': 2.0}]
    """
    if count < 1:
        raise ValueError(f"top: expected at least 1, got {count}")
    if data is not None and data.num_samples != len(scores):
        raise ValueError(
            f"data: expected {len(scores)} training samples as in the state, got {data.num_samples}"
        )
    known = torch.nonzero(torch.isfinite(scores)).squeeze(1)
    order = torch.sort(scores[known], descending=True, stable=True).indices[:count]
    places: Any = known[order].tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return [
        {"index": index, "score": float(scores[index]), **_what(index, data)} for index in places
    ]


def _what(index: int, data: ImageData | TextData | None) -> dict[str, Any]:
    if data is None:
        return {}
    if isinstance(data, TextData):
        row = data.train_rows[index].numpy().tobytes().rstrip(bytes([PAD]))
        return {"text": row.decode("utf-8", "replace")[:MOST_LETTERS]}
    image = drawn(data.train_images[index])
    return {"label": int(data.train_labels[index]), "image": image}


def drawn(image: Tensor) -> list[str]:
    """Draw an image in letters, two rows of it to a line: a letter is twice as high as wide.

    Args:
        image: uint8 [C, H, W].

    Returns:
        Lines of W letters.

    Example:
        >>> drawn(torch.tensor([[[0, 128, 255], [0, 128, 255]]], dtype=torch.uint8))
        [' +@']
    """
    grey = image.to(torch.float32).mean(0)
    rows = torch.nn.functional.pad(grey, (0, 0, 0, grey.shape[0] % 2))
    pairs = rows.view(-1, 2, rows.shape[1]).mean(1)
    bright = max(1.0, float(grey.max()))
    shades = (pairs * ((len(SHADES) - 1) / bright)).round().to(torch.int64)
    letters: Any = shades.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return ["".join(SHADES[shade] for shade in line) for line in letters]


def laid_out(samples: list[dict[str, Any]]) -> str:
    r"""Lay out samples below each other.

    Args:
        samples: of ``top_samples``.

    Returns:
        Lines, without control characters that came from data.

    Example:
        >>> print(laid_out([{"index": 3, "score": 2.0, "text": "a\x1b[2Jb"}]))
        #3  score 2
          a\x1b[2Jb
    """
    lines: list[str] = []
    for sample in samples:
        head = f"#{sample['index']}  score {sample['score']:.4g}"
        lines.append(head + (f"  label {sample['label']}" if "label" in sample else ""))
        lines += [f"  {line}" for line in sample.get("image", ())]
        lines += [f"  {_printable(line)}" for line in sample.get("text", "").splitlines()]
    return "\n".join(lines)


def _printable(text: str) -> str:
    """A text of a data set must not move the cursor or colour the screen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
