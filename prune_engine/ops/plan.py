# SPDX-License-Identifier: Apache-2.0
"""A weight class for every sample of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from prune_engine import backends
from prune_engine.ops.checks import check_count, check_first, check_seed_epoch, check_vector
from prune_engine.ops.plan_top import plan_top
from prune_engine.ops.rule import Rule, TopRule


def plan(
    records: Tensor,
    rule: Rule | TopRule,
    *,
    seed: int,
    epoch: int,
    out: Tensor | None = None,
    first: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Decide every sample's weight class and count the kept ones by block.

    A sample's band is the number of thresholds <= its score; with independent draws it is dropped
    iff ``draw(seed, epoch, index) < cut`` of its band (InfoBatch, ICLR 2024, eq. 4; SEMANTICS 3.3),
    with fixed counts the band's largest draws stay, ties to the smaller index. A ``TopRule`` keeps
    the largest scores of a random pool. A band of the never seen alone lies above infinity, which
    no score reaches.

    Args:
        records: [N] int64.
        rule: thresholds and bands, or a number of the largest.
        seed: in 0..2^63-1.
        epoch: the epoch being planned, in 0..2^31-2.
        out: [N] uint8 to write the weight classes into; default a fresh tensor.
        first: the number in the data set of ``records[0]``, where these are a shard's: a multiple
            of 4096. The draws are those of the data set, at any size up to 2^62.
        backend: which kernels.

    Returns:
        ``weight_class`` [N] uint8 in dataset order, and ``block_offsets`` [ceil(N / 4096) + 1]
        int64: exclusive prefix sums of the kept per 4096 samples; the last entry is the number
        kept.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: records are not int64.

    Example:
        >>> rule = Rule.keep_all(torch.device("cpu"))
        >>> classes, offsets = plan(torch.zeros(3, dtype=torch.int64), rule, seed=0, epoch=0)
        >>> classes.tolist(), offsets.tolist()
        ([1, 1, 1], [0, 3])
    """
    if isinstance(rule, TopRule):
        check_first(first, fixed=True)
        return plan_top(
            records, rule.k, cut=rule.cut, seed=seed, epoch=epoch, out=out, backend=backend
        )
    check_vector("records", records, (torch.int64,))
    check_count("records", records.shape[0])
    check_vector("rule.thresholds", rule.thresholds, (torch.float32,), device=records.device)
    seed, epoch = check_seed_epoch(seed, epoch)
    first = check_first(first, fixed=rule.fixed)
    weight_class = (
        torch.empty(records.shape, dtype=torch.uint8, device=records.device) if out is None else out
    )
    check_vector(
        "out",
        weight_class,
        (torch.uint8,),
        size=records.shape[0],
        device=records.device,
        changed=out is not None,
    )
    block_offsets = backends.kernels_for(backend, records).plan(
        records.contiguous(),
        _edges(rule),
        [band.cut for band in rule.bands],
        [band.weight_class for band in rule.bands],
        [band.keep_num for band in rule.bands],
        rule.bands[0].keep_den if rule.fixed else 0,
        rule.unseen_band,
        seed,
        epoch,
        weight_class,
        first,
    )
    torch.autograd.graph.increment_version(weight_class)
    return weight_class, block_offsets


def _edges(rule: Rule) -> Tensor:
    """Return a threshold fewer than there are bands: infinity below that of the never seen."""
    edges = rule.thresholds.contiguous()
    own = len(rule.bands) > edges.shape[0] + 1
    return pad(edges, (0, 1), value=torch.inf) if own else edges
