# SPDX-License-Identifier: Apache-2.0
"""The samples nearest to a boundary between classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prune_engine.coresets.method import Samples, Scored, needed
from prune_engine.coresets.modes import evaluating
from prune_engine.coresets.pairs import slices, wide


@dataclass(frozen=True)
class DeepFool(Scored):
    """The smallest distances to the boundary, by which the model itself gives in.

    Without ``scores=`` they are ``boundary_distance`` of the last layer; ``scores=deepfool(model,
    inputs)`` are those of the inputs themselves (Ducoffe and Precioso, "Adversarial Active Learning
    for Deep Networks: a Margin Based Approach", 2018).

    Example:
        >>> z, w = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.eye(2)
        >>> DeepFool().pick(Samples(torch.arange(2), logits=z, head=w), 1).order.tolist()
        [1]
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "head")
    keep: ClassVar[Literal["hard", "easy"]] = "easy"

    def score(self, samples: Samples) -> Tensor:
        """Return the distance in the space of features."""
        return boundary_distance(needed(samples.logits, "logits"), needed(samples.head, "head"))


def boundary_distance(logits: Tensor, head: Tensor) -> Tensor:
    """Distance of a feature to the nearest boundary of a linear last layer, in closed form.

    ``min_{c != k} (z_k - z_c) / || W_k - W_c ||`` with k the predicted class: what DeepFool
    (Moosavi-Dezfooli et al., CVPR 2016, eq. 8) finds in its first and only step where f is linear.

    Args:
        logits: [B, C] floating.
        head: [C, d] floating, the weights W.

    Returns:
        [B] in batch order; inf where no other class can be reached (C = 1, or equal weights).

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> boundary_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0], [-1.0]])).item()
        1.5
    """
    if logits.dim() != 2 or head.dim() != 2 or logits.shape[1] != head.shape[0]:
        raise ValueError(
            f"head must be [{logits.shape[-1]}, d] for logits [B, {logits.shape[-1]}], got "
            f"{tuple(head.shape)} for {tuple(logits.shape)}"
        )
    rows = wide(head)
    between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    found: list[Tensor] = []
    for part in slices(len(logits), logits.shape[1]):
        z = wide(logits[part])
        top, best = z.max(dim=1, keepdim=True)
        apart = between.index_select(0, best[:, 0]).to(z.dtype)
        steps = torch.where(apart > 0, (top - z) / apart, torch.inf)
        found.append(steps.amin(dim=1))
    return torch.cat(found) if found else wide(logits).new_zeros(0)


def deepfool(model: nn.Module, inputs: Tensor, *, classes: int = 10, max_iter: int = 50) -> Tensor:
    """How far each input must move, in a straight line at a time, until the prediction changes.

    From x, with k the first prediction: ``w_c = grad (f_c - f_k)``, ``l = argmin_c |f_c - f_k| /
    || w_c ||``, ``x += |f_l - f_k| / || w_l ||^2 w_l``, until another class is likeliest
    (Moosavi-Dezfooli et al., CVPR 2016, algorithm 2, without its overshoot); the score is
    ``|| sum of the steps ||^2`` (Ducoffe and Precioso 2018). The model is taken as in evaluation
    and left as it was, and so are the inputs and what of the model is trained.

    Args:
        model: from inputs to logits [B, C].
        inputs: [B, ...] floating.
        classes: that are tried: the likeliest at first, the predicted one among them.
        max_iter: steps at most.

    Returns:
        [B] in batch order: squared lengths; inf where no step leads anywhere (C = 1, or a model
        that is flat there), for such an input is far from every boundary and not upon one.

    Raises:
        TypeError: inputs are not a floating tensor.
        ValueError: a number is too small.

    Example:
        >>> with torch.random.fork_rng():
        ...     model = nn.Linear(1, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> deepfool(model, torch.tensor([[1.5]])).item()
        2.25
    """
    if classes < 2 or max_iter < 1:
        raise ValueError(
            f"classes must be at least 2 and max_iter at least 1, got {classes} and {max_iter}"
        )
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"inputs must be a floating tensor, got {kind}")
    start = inputs.detach()
    moved = torch.zeros_like(start)
    stuck = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    active = torch.arange(len(start), device=start.device)
    with evaluating(model), torch.enable_grad():
        tried: Tensor | None = None
        for _ in range(max_iter):
            if not len(active):
                break
            x = (start[active] + moved[active]).requires_grad_()
            logits = model(x)
            if tried is None:  # column 0 is the prediction of the unmoved input
                count = min(classes, logits.shape[1])
                tried = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :count]
            still = logits.argmax(dim=1) == tried[active, 0]
            step, leads = _step(logits.gather(1, tried[active]), x)
            moved[active] += torch.where(_column(still, step), step, 0.0)
            stuck[active] = still & ~leads
            active = active[still & leads]
    return torch.where(stuck, torch.inf, moved.flatten(1).square().sum(dim=1))


def _step(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shortest step to where a linear model would change its mind, if there is one."""
    gradients = [
        torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0].flatten(1)
        for c in range(logits.shape[1])
    ]
    lead = logits.detach()[:, :1] - logits.detach()[:, 1:]
    ways = torch.stack(gradients[1:], dim=1) - gradients[0][:, None] if lead.shape[1] else None
    if ways is None:
        return torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    lengths = ways.square().sum(dim=2)
    reach = torch.where(lengths > 0, lead / lengths.sqrt(), torch.inf)
    best = reach.argmin(dim=1)
    rows = torch.arange(len(best), device=best.device)
    scale = torch.where(lengths > 0, lead / lengths, 0.0)[rows, best]
    return (scale[:, None] * ways[rows, best]).view_as(x), (lengths > 0).any(dim=1)


def _column(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *([1] * (like.dim() - 1)))
