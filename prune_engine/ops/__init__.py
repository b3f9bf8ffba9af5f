# SPDX-License-Identifier: Apache-2.0
"""The operators as typed, checked, documented functions over tensors: the functional core.

Every function takes ``backend=``: ``"auto"`` (the best that serves the tensors' device),
``"cuda"``, ``"cpu"``, ``"triton"`` or ``"reference"``; all give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune_engine import backends
from prune_engine.bands import PLAN_BLOCK
from prune_engine.ops.checks import (
    check_batch,
    check_count,
    check_first,
    check_seed_epoch,
    check_state,
    check_vector,
    raise_index_error,
)
from prune_engine.ops.cross_entropy_observe import ObserveState
from prune_engine.ops.cross_entropy_observe import cross_entropy_observe as cross_entropy_observe
from prune_engine.ops.gradient import differentiable_observe
from prune_engine.ops.moments import activation_std as activation_std
from prune_engine.ops.moments import gelu_moments as gelu_moments
from prune_engine.ops.moments import merge_moments as merge_moments
from prune_engine.ops.moments import moments as moments
from prune_engine.ops.moments import relu_moments as relu_moments
from prune_engine.ops.rule import Rule
from prune_engine.ops.select import kth as kth
from prune_engine.ops.select import percentiles as percentiles
from prune_engine.ops.select import select as select
from prune_engine.ops.select import top as top
from prune_engine.ops.shuffle import shuffle as shuffle
from prune_engine.ops.shuffle import unshuffle as unshuffle
from prune_engine.ops.weights import rescale

_kernels = backends.kernels_for


def observe(
    losses: Tensor,
    indices: Tensor,
    *,
    records: Tensor,
    score_sum: Tensor,
    counters: Tensor,
    weight_class: Tensor,
    weight_table: Tensor,
    epoch: int | Tensor,
    score: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Record the scores of one batch and weigh its losses, in one launch.

    ``records[i] = max(records[i], (epoch + 1) << 32 | key(score_i))``, ``rescaled = loss *
    weight_table[weight_class[i]]`` (InfoBatch, ICLR 2024, eq. 5; SEMANTICS 2). A max-register does
    not depend on the order of samples, batches or ranks. ``records``, ``score_sum`` and
    ``counters`` change; nothing else does.

    Args:
        losses: [B] float16 | bfloat16 | float32 | float64, per sample, unreduced.
        indices: [B] int64 | int32, dataset positions in 0..N-1.
        records: [N] int64, changed.
        score_sum: [3] int64, changed.
        counters: [4] int64, changed.
        weight_class: [N] uint8, this epoch's decision.
        weight_table: [8] float32.
        epoch: in 0..2^31-2; an int64 [1] tensor on the device where a captured graph is replayed
            in later epochs.
        score: [B] floating, what is recorded; default the losses themselves, detached.
        backend: which kernels.

    Returns:
        ``rescaled`` [B] in the dtype of ``losses`` (its gradient is ``grad * batch_weights``) and
        ``batch_weights`` [B] float32, both in the order of the batch.

    Raises:
        TypeError: a dtype is not one of those.
        ValueError: a shape or device does not fit.
        IndexError: an index is out of range (on the cpu; nothing is written then).

    Example:
        >>> state = dict(
        ...     records=torch.zeros(4, dtype=torch.int64),
        ...     score_sum=torch.zeros(3, dtype=torch.int64),
        ...     counters=torch.tensor([0, 0, 0, 2**63 - 1]),
        ...     weight_class=torch.tensor([1, 2, 1, 0], dtype=torch.uint8),
        ...     weight_table=torch.tensor([0.0, 1, 2, 0, 0, 0, 0, 0]),
        ... )
        >>> rescaled, _ = observe(torch.tensor([0.5, 3.0]), torch.tensor([1, 2]), epoch=0, **state)
        >>> rescaled.tolist(), state["score_sum"][2].item()
        ([1.0, 3.0], 2)
    """
    if isinstance(epoch, int):
        check_seed_epoch(0, epoch)
        epoch = torch.tensor([epoch], dtype=torch.int64, device=records.device)
    # What is changed must be changed in place (check_state); what is read may be converted.
    if isinstance(weight_class, Tensor) and isinstance(weight_table, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        weight_class, weight_table = weight_class.contiguous(), weight_table.contiguous()
    state = (records, score_sum, counters, weight_class, weight_table, epoch)
    try:
        kernels = _kernels(backend, records)
    except AttributeError:
        check_state(*state)
        raise
    checks = torch.compiler.is_compiling() or kernels.CHECKS_ARGUMENTS
    result = observe_state(losses, indices, score, state, kernels, checks=checks)
    # The compiled operators do not tell autograd what they changed; a tensor saved for a backward
    # pass must not be damaged unnoticed.
    torch.autograd.graph.increment_version(state[:3])
    return result


def observe_state(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: ObserveState,
    kernels: backends.Kernels,
    *,
    checks: bool,
) -> tuple[Tensor, Tensor]:
    """Do what ``observe`` does with a state and kernels that are known to fit: the hot path.

    Args:
        losses: [B], see ``observe``.
        indices: [B], see ``observe``.
        score: [B] or None, see ``observe``.
        state: records, score_sum, counters, weight_class, weight_table and epoch.
        kernels: of a backend that serves their device.
        checks: whether those kernels check their arguments themselves.

    Returns:
        ``rescaled`` and ``batch_weights``, see ``observe``.

    Raises:
        TypeError: a dtype is not one of those.
        ValueError: a shape or device does not fit.
        IndexError: an index is out of range.

    Example:
        >>> from prune_engine.epoch import ScoreBuffer
        >>> state = ScoreBuffer(2).observe_arguments
        >>> kernels = backends.load("reference")
        >>> batch = torch.ones(1), torch.tensor([1]), None
        >>> observe_state(*batch, state, kernels, checks=False)[0].tolist()
        [1.0]
    """
    records = state[0]
    try:
        # A compiled operator checks everything before it writes anything, but not where tensors
        # of another kind (meta) are; its plain messages are said better below, and what is not
        # contiguous is converted there. A good call pays for nothing else.
        if not (checks and losses.device == indices.device == records.device) or (
            score is not None and score.device != records.device
        ):
            check_state(*state)
            check_batch(losses, indices, score, records.device)
        if score is not None:
            score = score.detach()
        wants_grad = losses.requires_grad and torch.is_grad_enabled()
        if wants_grad and not losses.is_cpu:
            result = differentiable_observe(losses, kernels.observe, indices, score, *state)
        else:
            result = kernels.observe(losses.detach(), indices, score, *state)
    except (AttributeError, RuntimeError, TypeError) as error:
        check_state(*state)
        check_batch(losses, indices, score, records.device)
        batch = (losses, indices) if score is None else (losses, indices, score)
        if all(tensor.is_contiguous() for tensor in batch):
            raise_index_error(error)
        losses, indices = losses.contiguous(), indices.contiguous()
        score = None if score is None else score.contiguous()
        return observe_state(losses, indices, score, state, kernels, checks=checks)
    if wants_grad and losses.is_cpu:
        # The same product once more, by an operator with a native gradient: on a cpu that takes a
        # tenth of the time of a Python autograd function, and a launch costs nothing.
        result = (rescale(losses, result[1]), result[1])
    return result


def mean_threshold(score_sum: Tensor, *, backend: str = "auto") -> Tensor:
    """Turn the exact running sum into the mean threshold, in O(1) on the device.

    ``T = ceil(sum of codes / number seen)``; the threshold is the smallest float32 x with
    ``code(x) >= T``, so ``score < threshold`` is exactly ``code(score) < mean code`` (InfoBatch,
    ICLR 2024, eq. 4; SEMANTICS 3.2). With nothing seen it is -FLT_MAX: nobody is below.

    Args:
        score_sum: [3] int64: high limb, low limb, number seen.
        backend: which kernels.

    Returns:
        float32 [1] on the same device.

    Raises:
        ValueError: not a vector of three.
        TypeError: not int64.

    Example:
        >>> mean_threshold(torch.tensor([1 << 8, 0, 2])).item()  # code 2^40 is score 1.0
        0.5
    """
    check_vector("score_sum", score_sum, (torch.int64,), size=3)
    return _kernels(backend, score_sum).mean_threshold(score_sum.contiguous())


def plan(
    records: Tensor,
    rule: Rule,
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
    with fixed counts the band's largest draws stay, ties to the smaller index.

    Args:
        records: [N] int64.
        rule: thresholds and bands.
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
    check_vector("records", records, (torch.int64,))
    check_count("records", records.shape[0])
    check_vector("rule.thresholds", rule.thresholds, (torch.float32,), device=records.device)
    check_seed_epoch(seed, epoch)
    check_first(first, fixed=rule.fixed)
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
    block_offsets = _kernels(backend, records).plan(
        records.contiguous(),
        rule.thresholds.contiguous(),
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


def compact(
    weight_class: Tensor, block_offsets: Tensor, num_kept: int, *, backend: str = "auto"
) -> Tensor:
    """List the kept samples in ascending order.

    Args:
        weight_class: [N] uint8, from ``plan``.
        block_offsets: [ceil(N / 4096) + 1] int64, from the same ``plan``.
        num_kept: ``block_offsets[-1]``, which the caller has read.
        backend: which kernels.

    Returns:
        int32 [num_kept], ascending.

    Raises:
        ValueError: the three do not belong together.

    Example:
        >>> compact(torch.tensor([1, 0, 2], dtype=torch.uint8), torch.tensor([0, 2]), 2).tolist()
        [0, 2]
    """
    check_vector("weight_class", weight_class, (torch.uint8,))
    check_count("weight_class", weight_class.shape[0])
    blocks = -(-weight_class.shape[0] // PLAN_BLOCK)
    device = weight_class.device
    check_vector("block_offsets", block_offsets, (torch.int64,), size=blocks + 1, device=device)
    if not 0 <= num_kept <= weight_class.shape[0]:
        raise ValueError(f"num_kept must be in 0..{weight_class.shape[0]}, got {num_kept}")
    try:
        return _kernels(backend, weight_class).compact(
            weight_class.contiguous(), block_offsets.contiguous(), num_kept
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def order(
    kept: Tensor, positions: Tensor | range, *, seed: int, epoch: int, backend: str = "auto"
) -> Tensor:
    """Turn positions of an epoch into samples: ``kept[pi(position)]``.

    ``pi`` is a keyed Feistel bijection of [0, len(kept)) with cycle walking (after Mitchell et al.,
    "Bandwidth-Optimal Random Shuffling for GPUs", 2022; SEMANTICS 3.7): a pure function of (seed,
    epoch, len(kept)), so a batch, a rank's share or everything is random access.

    Args:
        kept: [n] int32, from ``compact``.
        positions: [M] int64, or a range; each in 0..n-1.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        backend: which kernels.

    Returns:
        int32 [M], in the order of ``positions``.

    Raises:
        IndexError: a position is out of range.
        TypeError: positions are neither int64 nor a range.

    Example:
        >>> kept = torch.arange(5, dtype=torch.int32)
        >>> sorted(order(kept, range(5), seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    check_vector("kept", kept, (torch.int32,))
    check_seed_epoch(seed, epoch)
    given, start, step, count = None, 0, 1, 0
    if isinstance(positions, range):
        start, step, count = positions.start, positions.step, len(positions)
    else:
        check_vector("positions", positions, (torch.int64,), device=kept.device)
        given = positions.contiguous()
    try:
        return _kernels(backend, kept).order(
            kept.contiguous(), given, start, step, count, seed, epoch
        )
    except RuntimeError as error:
        raise_index_error(error)


def audit(records: Tensor, weight_class: Tensor, *, epoch: int, backend: str = "auto") -> Tensor:
    """Recompute the exact sum and compare what was seen in an epoch with what was planned.

    Args:
        records: [N] int64.
        weight_class: [N] uint8, the epoch's decision.
        epoch: the epoch being audited, in 0..2^31-2.
        backend: which kernels.

    Returns:
        int64 [6]: sum high, sum low, number seen, planned and recorded in the epoch, planned but
        not recorded (missing), recorded though not planned (extra).

    Raises:
        ValueError: a shape, device or number does not fit.

    Example:
        >>> classes = torch.tensor([1, 0], dtype=torch.uint8)
        >>> audit(torch.zeros(2, dtype=torch.int64), classes, epoch=0).tolist()
        [0, 0, 0, 0, 1, 0]
    """
    check_vector("records", records, (torch.int64,))
    size, device = records.shape[0], records.device
    check_vector("weight_class", weight_class, (torch.uint8,), size=size, device=device)
    check_seed_epoch(0, epoch)
    return _kernels(backend, records).audit(records.contiguous(), weight_class.contiguous(), epoch)
