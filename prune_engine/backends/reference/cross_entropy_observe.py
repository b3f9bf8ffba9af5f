# SPDX-License-Identifier: Apache-2.0
"""The reference backend's loss on logits: part of the specification in :mod:`.reference`.

``F.cross_entropy(reduction="none")``, the formulas of :mod:`prune_engine.losses.scores` and
``observe``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prune_engine.backends.reference.arithmetic import MASK32, key_to_float
from prune_engine.backends.reference.observe import observe, reject_on_cpu
from prune_engine.losses import scores


def cross_entropy_observe(
    logits: Tensor,
    targets: Tensor,
    indices: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    kind: int,
    state: Sequence[Tensor],
    advance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute each row's loss and score, record the scores and weight the losses.

    Everything is computed in float32 (float64 for float64 logits), whatever the dtype of the
    logits. The score is that of the unsmoothed, unweighted row.

    Args:
        logits: [B, C] float16, bfloat16, float32 or float64.
        targets: [B] int64, values in [0, C), or ignore_index.
        indices: [B] int64 or int32, values in [0, N).
        class_weight: [C] float32, or None for all 1.
        label_smoothing: in [0, 1].
        ignore_index: a row with this target has loss 0 and no score.
        kind: position in ``scores.SCORES``.
        state: as of :func:`observe`, changed in place.
        advance: whether step grows by 1.

    Returns:
        rescaled [B], float32 or float64; batch_weights [B] float32; score [B] float32; stats
        [B, 2] in the dtype of rescaled, for :func:`cross_entropy_grad`: the largest logit m, and
        the softmax's weight ``(1 - s) w_y + s / C sum_c w_c`` over ``sum_c exp(z_c - m)``.

    Raises:
        IndexError: an index or a target is out of range and the tensors are on the cpu; nothing
            was written.

    Example:
        >>> state = [torch.zeros(count).long() for count in (3, 10, 5, 1)]
        >>> state += [torch.ones(3, dtype=torch.uint8), torch.eye(256)[1], torch.tensor([0])]
        >>> rescaled, _, score, _ = cross_entropy_observe(
        ...     torch.zeros(1, 2), torch.tensor([1]), torch.tensor([2]), None, 0.0, -100, 3,
        ...     state, True)
        >>> round(rescaled.item(), 4), score.item()
        (0.6931, 0.5)
    """
    records, epoch = state[0], state[-1]
    num_samples, num_classes = records.numel(), logits.shape[1]
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z = logits.detach().to(wide)
    samples = indices.to(torch.int64)
    reject_on_cpu(samples[(samples < 0) | (samples >= num_samples)], num_samples)
    ignored = targets == ignore_index
    bad = ~ignored & ((targets < 0) | (targets >= num_classes))
    reject_on_cpu(targets[bad], num_classes, "targets")

    # 1. A target that is ignored: loss 0, no score, so the last one stays.
    # 2. A target out of range, on a device: loss and score are nan, for all to see.
    weight = torch.ones(num_classes, device=z.device) if class_weight is None else class_weight
    weight = weight.to(wide)
    losses = F.cross_entropy(
        z,
        torch.where(bad, ignore_index, targets),
        weight=weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    losses = torch.where(bad, torch.nan, losses)
    y = torch.where(ignored | bad, 0, targets)
    largest = z.amax(dim=1)
    factor = (1 - label_smoothing) * weight[y] + label_smoothing / num_classes * weight.sum()
    factor = factor / torch.exp(z - largest[:, None]).sum(dim=1)

    name = scores.SCORES[kind]
    if name == "loss":
        score = scores.nll(z, y)
    elif name == "el2n":
        score = scores.el2n(z, y)
    elif name == "margin":
        score = scores.margin(z)
    elif name == "least_confidence":
        score = scores.least_confidence(z)
    elif name == "entropy":
        score = scores.entropy(z)
    else:
        old = records[samples.clamp(0, max(num_samples - 1, 0))]
        last = torch.where(old == 0, torch.nan, key_to_float(old & MASK32))
        correct = z.gather(1, y[:, None])[:, 0] == largest
        score = scores.forgetting(correct, last, (old >> 32) - 1, epoch)
    broken = ignored | bad | ~torch.isfinite(torch.logsumexp(z, dim=1))
    score = torch.where(broken, torch.nan, score)

    rescaled, batch_weights = observe(losses, indices, score, state, advance)
    stats = torch.stack([largest, torch.where(bad, torch.nan, factor)], dim=1)
    score = score.to(torch.float32)
    return rescaled, batch_weights, score, torch.where(ignored[:, None], 0.0, stats)
