# SPDX-License-Identifier: Apache-2.0
"""The samples with the longest gradients: of the last layer, or of the whole network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prune_engine.coresets.method import Samples, Scored, needed
from prune_engine.coresets.modes import evaluating
from prune_engine.losses import scores


@dataclass(frozen=True)
class GraNd(Scored):
    """The largest gradient norms, of the last layer (``pe.scores.grand``; Paul et al., 2021).

    ``full_grand`` gives those of all parameters and ``pe.scores.mean`` averages over models: pass
    either as ``scores=``.

    Example:
        >>> z, h = torch.zeros(2, 2), torch.tensor([[1.0], [3.0]])
        >>> samples = Samples(torch.arange(2), h, z, torch.tensor([0, 1]))
        >>> GraNd().score(samples).argmax().item()
        1
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "logits", "targets")
    alone: ClassVar[bool] = True

    def score(self, samples: Samples) -> Tensor:
        """Return the norm, a product of two lengths."""
        return scores.grand(
            needed(samples.logits, "logits"),
            needed(samples.targets, "targets"),
            needed(samples.features, "features"),
        )


def full_grand(model: nn.Module, inputs: Tensor, targets: Tensor, *, chunk: int = 32) -> Tensor:
    """Norm of the gradient of each sample's loss by all parameters that are trained.

    ``|| d nll(f(x), y) / d theta ||_2`` (GraNd: Paul, Ganguli and Dziugaite, NeurIPS 2021,
    definition 2.1, for one set of weights), by ``torch.func``: one gradient per sample, and no
    share of a batch's mean, so that no last batch weighs more than the others. The model is taken
    as in evaluation, batch norms and dropout included, and left as it was.

    Args:
        model: from inputs to logits [B, C].
        inputs: [B, ...].
        targets: [B] int64.
        chunk: gradients that are held at a time: chunk times the parameters in memory.

    Returns:
        [B] in batch order.

    Raises:
        ValueError: targets are not [B], or chunk is below 1.

    Example:
        >>> with torch.random.fork_rng():
        ...     model = nn.Linear(3, 2)
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> norms = full_grand(model, x, y)
        >>> torch.allclose(norms, scores.grand(model(x), y, x))
        True
    """
    if targets.shape != inputs.shape[:1]:
        raise ValueError(f"targets must be [{inputs.shape[0]}], got {tuple(targets.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    trained = {
        name: value.detach() for name, value in model.named_parameters() if value.requires_grad
    }
    fixed = {name: value.detach() for name, value in model.named_buffers()}
    fixed |= {
        name: value.detach() for name, value in model.named_parameters() if not value.requires_grad
    }

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**fixed, **weights}, (x[None],))
        return nn.functional.cross_entropy(logits, y[None])

    def norm(x: Tensor, y: Tensor) -> Tensor:
        found: Any = torch.func.grad(loss)(trained, x, y)
        squares = [part.square().sum() for part in found.values()]
        return torch.stack(squares).sum().sqrt()

    with evaluating(model):
        return torch.func.vmap(norm, chunk_size=chunk)(inputs, targets)
