# SPDX-License-Identifier: Apache-2.0
"""What torch offers for the same work."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.operators import Batches, Operator, Scored

QUANTILE_LIMIT = 2**24  # torch.quantile refuses more elements


def eager_plan(scores: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The plan as a torch user would write it, on the device: masks, nonzero, randperm."""
    low_mask = scores < scores.mean()
    low = low_mask.nonzero().squeeze(1)
    high = low_mask.logical_not().nonzero().squeeze(1)
    half = low.shape[0] // 2
    chosen = torch.randperm(low.shape[0], generator=generator, device=scores.device)[:half]
    low_kept = low[chosen]
    weights = torch.ones_like(scores)
    weights[low_kept] = 2.0
    kept = torch.cat((high, low_kept))
    order = torch.randperm(kept.shape[0], generator=generator, device=scores.device)
    return kept[order], weights


def epoch_rivals(made: Scored) -> list[Operator]:
    """Sorts, selections and permutations of N scores."""
    n, scores = made.n, made.scores
    generator = torch.Generator(scores.device).manual_seed(1)
    copied = torch.empty_like(made.records)

    def quantile() -> Tensor:
        if n > QUANTILE_LIMIT:
            raise RuntimeError(f"torch.quantile takes at most {QUANTILE_LIMIT} elements")
        return torch.quantile(scores, 0.5)

    return [
        Operator("copy of the records", lambda: copied.copy_(made.records), 16 * n),
        Operator("torch eager planner", lambda: eager_plan(scores, generator)),
        Operator("torch.sort", lambda: torch.sort(scores)),
        Operator("torch.argsort", lambda: torch.argsort(scores)),
        Operator("torch.quantile", quantile),
        Operator("torch.kthvalue", lambda: torch.kthvalue(scores, n // 2)),
        Operator("torch.topk, half", lambda: torch.topk(scores, n // 2)),
        Operator(
            "torch.randperm", lambda: torch.randperm(n, generator=generator, device=scores.device)
        ),
        Operator("torch.nonzero", lambda: torch.nonzero(made.weight_class)),
    ]


def select_rivals(made: Scored) -> list[Operator]:
    """Two percentiles and a half."""
    n, scores = made.n, made.scores
    ranks = [round((n - 1) * percent / 100) + 1 for percent in (20, 85)]
    copied = torch.empty_like(scores)
    return [
        Operator("copy of the scores", lambda: copied.copy_(scores), 8 * n),
        Operator("torch.kthvalue, twice", lambda: [torch.kthvalue(scores, rank) for rank in ranks]),
        Operator("torch.sort", lambda: torch.sort(scores)),
        Operator("torch.topk, half", lambda: torch.topk(scores, n // 2, sorted=False)),
        Operator("torch.mean", scores.mean, 4 * n),
    ]


def observe_rival(made: Batches) -> Operator:
    """Scatter, gather and product, with scores and weights of N floats each."""
    scores, weights = (torch.ones_like(made.records, dtype=torch.float32) for _ in range(2))

    def eager() -> None:
        for losses, indices in zip(made.losses, made.indices, strict=True):
            scores[indices] = losses
            losses * weights[indices]

    return Operator("torch scatter, gather, product", eager, calls=len(made.losses))


def activation_rivals(tensors: list[Tensor]) -> list[Operator]:
    """The same statistics and activations."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    largest = max(tensors, key=Tensor.numel)
    moved = 2 * largest.numel() * largest.element_size()
    return [
        Operator("torch.std loop", lambda: torch.stack([t.std() for t in tensors]).mean(), size),
        Operator("torch.relu", lambda: torch.relu(largest), moved),
        Operator("torch.relu_", lambda: torch.relu_(largest), moved),
        Operator("torch gelu", lambda: F.gelu(largest), moved),
    ]
