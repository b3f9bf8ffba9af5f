# SPDX-License-Identifier: Apache-2.0
"""A small causal Transformer over bytes, of torch alone: text without another package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH = 64, 2, 3  # as of the small GPT-2 of text.py


class Block(nn.Module):
    """Causal attention, then two linear layers, each added to what came in (GPT-2's pre-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 64] to [B, T, 64]."""
        batch, length, _ = x.shape
        split = self.attend(self.before(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.between(x))


class ByteTransformer(nn.Module):
    """Three blocks over bytes and their places; a byte is told by the embedding it came from.

    Args:
        length: tokens of a row, the most that it takes.
        seed: of the initial weights; the global generator is left as it was.

    Example:
        >>> model = ByteTransformer(length=8, seed=0)
        >>> tuple(model(torch.zeros(2, 8, dtype=torch.int64)).shape)
        (2, 8, 256)
    """

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        # Layers draw their first weights from the global generator: lend it a seed.
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
            self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(length, WIDTH)
            # Named as in GPT-2, so that B-PAS's preset of its blocks finds these too.
            self.h = nn.ModuleList(Block() for _ in range(DEPTH))
            self.end = nn.LayerNorm(WIDTH)
            for embedding in (self.tokens, self.places):
                nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T] to logits [B, T, 256]."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.end(x), self.tokens.weight)
