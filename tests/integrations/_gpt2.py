# SPDX-License-Identifier: Apache-2.0
"""A very small GPT-2 from a config that notes which rows it was trained on."""

from __future__ import annotations

from typing import Any

import torch
from _real import named
from transformers import GPT2Config, GPT2LMHeadModel


class Watched(GPT2LMHeadModel):
    """Notes the rows of each training batch by their content."""

    trained: list[list[int]]

    # Named, for a Trainer keeps the columns that the signature has.
    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any
    ) -> Any:
        if self.training and torch.is_grad_enabled():
            self.trained.append(named(input_ids))
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )


def gpt2(kind: Any = Watched, *, dropout: float = 0.1, length: int = 64) -> Any:
    """Return one with the same weights each time; with dropout, so that its chance counts."""
    config = GPT2Config(
        vocab_size=256,
        n_positions=length,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    model.trained = []
    return model
