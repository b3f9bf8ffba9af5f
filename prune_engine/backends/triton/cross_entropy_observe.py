# SPDX-License-Identifier: Apache-2.0
"""cross_entropy_observe in Triton: one launch, a program per row, one read of the logits."""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import key_to_bits, widen
from prune_engine.backends.triton.launch import launch
from prune_engine.backends.triton.record import is_saturated, record
from prune_engine.losses.scores import MAX_EVENTS

# The numbers of prune_engine/scores.py.
EL2N: tl.constexpr = tl.constexpr(1)
MARGIN: tl.constexpr = tl.constexpr(2)
LEAST_CONFIDENCE: tl.constexpr = tl.constexpr(3)
ENTROPY: tl.constexpr = tl.constexpr(4)
FORGETTING: tl.constexpr = tl.constexpr(5)
EVENTS: tl.constexpr = tl.constexpr(MAX_EVENTS)
LOWEST: tl.constexpr = tl.constexpr(float("-inf"))


@triton.jit
def real(x, WIDE: tl.constexpr):
    """Widen a tile of logits exactly, to what is computed in."""
    if WIDE:
        return x.to(tl.float64)
    else:
        return widen(x)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 without losing a small x (Kahan)."""
    one = 1.0 + x
    exact = one - 1.0
    return tl.where(exact == 0.0, x, tl.log(one) * (x / tl.where(exact == 0.0, 1.0, exact)))


@triton.jit
def forgetting_score(old, correct, epoch):
    """The forgetting score after one more presentation; see ``scores.forgetting``. Tiles."""
    bits = key_to_bits(old.to(tl.uint32))
    last = bits.to(tl.float32, bitcast=True)
    limit = EVENTS * 1.0
    inside = tl.where(last > 0.0, tl.where(last < limit, last, limit), 0.0)
    packed = tl.where(old == 0, 0.0, inside * 16.0).to(tl.int64)
    state = (packed >> 2) & 3
    before = packed & 3
    # Presented in this epoch already: go back to where that started.
    again = ((old >> 32) - 1) >= epoch
    events = (packed >> 4) - (again & (state == 1) & (before == 0)).to(tl.int64)
    start = tl.where(old == 0, 2, tl.minimum(tl.where(again, before, state), 2))
    never = start == 2
    wrong = tl.where(never, epoch + 1, events + (start == 0).to(tl.int64))
    total = tl.where(correct, tl.where(never, 0, events), wrong)
    total = tl.minimum(tl.maximum(total, 0), EVENTS)
    now = tl.where(correct, 0, tl.where(never, 2, 1))
    return ((total << 4) + (now << 2) + start).to(tl.float32) * 0.0625


@triton.jit(
    do_not_specialize=["num_classes", "num_samples", "smoothing", "ignore_index", "advance"]
)
def cross_entropy_kernel(
    logits,
    targets,
    indices,
    class_weight,
    records,
    score_sum,
    counters,
    step,
    weight_class,
    weight_table,
    epoch,
    rescaled,
    batch_weights,
    scores,
    stats,
    num_classes: tl.int64,
    num_samples: tl.int64,
    smoothing: tl.float64,
    ignore_index: tl.int64,
    advance: tl.int64,
    KIND: tl.constexpr,
    SMOOTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scan, score, record and weigh one row. Scalars of a row are tiles of one element."""
    b = tl.program_id(0).to(tl.int64)
    one = tl.arange(0, 1)
    row = logits + b * num_classes
    zero = tl.zeros([1], tl.float64 if WIDE else tl.float32)
    target = tl.load(targets + b + one)
    ignored = target == ignore_index
    named = (target >= 0) & (target < num_classes)

    # The online softmax of csrc/softmax.h: sums relative to the largest so far, itself left out.
    largest = zero + LOWEST
    second = zero + LOWEST
    ties = zero
    rest = zero
    squares = zero
    spread = zero
    total = zero
    weights = zero
    for begin in range(0, num_classes, BLOCK):
        c = begin + tl.arange(0, BLOCK)
        there = c < num_classes
        z = real(tl.load(row + c, there, other=LOWEST), WIDE)
        peak = zero + tl.max(z)
        larger = tl.maximum(largest, peak)
        rise = larger - largest
        empty = (largest == LOWEST) | (rise > 700.0)  # ties at -inf, or exp(-rise) is 0
        scale = tl.where(empty, 0.0, tl.exp(-tl.where(empty, 0.0, rise)))
        before = ties + rest
        same = rise == 0.0
        # Below the largest: where it stays, its ties stay ties.
        below = larger - z
        tie = there & (z == larger)
        far = (below > 700.0) | (there == 0)
        value = tl.where(tie | far, 0.0, tl.exp(-tl.where(far, 0.0, below)))
        # Where nothing came before, before is 0 or, of a nan that was met, nan.
        rest = tl.where(same, rest, before * scale) + tl.sum(value)
        found = zero + tl.sum(tie.to(tl.int32)).to(zero.dtype)
        if KIND == EL2N:
            old = tl.where(empty, 0.0, (ties + squares) * scale * scale)
            squares = tl.where(same, squares, old) + tl.sum(value * value)
        if KIND == ENTROPY:
            moved = tl.where(empty, 0.0, spread + tl.where(empty, 0.0, rise) * before) * scale
            spread = tl.where(same, spread, moved) + tl.sum(tl.where(far, 0.0, value * below))
        if KIND == MARGIN:
            others = zero + tl.max(tl.where(tie, LOWEST, z))
            second = tl.maximum(tl.maximum(second, others), tl.where(same, LOWEST, largest))
        if SMOOTH:
            if WEIGHTED:
                w = tl.load(class_weight + c, there, other=0.0).to(zero.dtype)
                total += tl.sum(tl.where(there, w * z, 0.0))
                weights += tl.sum(w)
            else:
                total += tl.sum(tl.where(there, z, 0.0))
        ties = tl.where(same, ties, 0.0) + found
        largest = larger

    if WEIGHTED:
        own_weight = tl.load(class_weight + target, named, other=1.0).to(zero.dtype)
    else:
        own_weight = zero + 1.0
    own = real(tl.load(row + target, named, other=0.0), WIDE)
    sums = ties + rest
    others = ties - 1.0 + rest
    log_sum = log1p(others)
    finite = (largest - largest) == 0.0
    nll = largest - own + log_sum
    loss = own_weight * nll
    weight = own_weight
    if SMOOTH:
        if not WEIGHTED:
            weights = zero + num_classes.to(zero.dtype)
        share = (zero + smoothing).to(zero.dtype)  # interpreted, a number has no dtype
        each = share / num_classes.to(zero.dtype)
        loss = (1.0 - share) * loss + each * (weights * (largest + log_sum) - total)
        weight = (1.0 - share) * own_weight + each * weights
    good = finite & named
    loss = tl.where(ignored, 0.0, tl.where(good, loss, float("nan")))
    factor = tl.where(ignored, 0.0, tl.where(good, weight / sums, float("nan")))

    index = tl.load(indices + b + one).to(tl.int64)
    inside = one == 0
    valid = (index >= 0) & (index < num_samples)
    now = tl.load(epoch)
    if KIND == EL2N:
        chance = tl.exp(own - largest)
        highest = own == largest
        wrong = tl.where(highest, others, 1.0 + others - chance)
        squared = ties - 1.0 + squares
        squared = tl.where(highest, squared, 1.0 + squared - chance * chance)
        score = tl.sqrt(wrong * wrong + squared) / sums
    elif KIND == MARGIN:
        second = tl.where(ties > 1.0, largest, second)
        score = (others + tl.exp(second - largest)) / sums
    elif KIND == LEAST_CONFIDENCE:
        score = others / sums
    elif KIND == ENTROPY:
        score = log_sum + spread / sums
    elif KIND == FORGETTING:
        old = tl.load(records + index, valid, other=0)
        score = forgetting_score(old, own == largest, now)
    else:
        score = nll
    usable = good & ((sums - sums) == 0.0) & (ignored == 0)
    exact = tl.where(usable, score, float("nan"))
    score = exact.to(tl.float32)
    tl.store(scores + b + one, score)
    tl.store(stats + 2 * b + one, tl.where(good & (ignored == 0), largest, 0.0))
    tl.store(stats + 2 * b + 1 + one, factor)

    fate = tl.load(weight_class + index, valid, other=1).to(tl.int32)
    given = tl.where(valid, tl.load(weight_table + fate), 1.0)
    tl.store(batch_weights + b + one, given)
    tl.store(rescaled + b + one, loss * given.to(zero.dtype))
    bits = score.to(tl.uint32, bitcast=True)
    saturated = is_saturated(exact, bits)
    tensors = records, score_sum, counters, step
    record(bits, saturated, index, valid, inside, now, advance, *tensors)


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
    """Compute losses and scores of logits and record them; see ``reference``."""
    records, _, _, step, *_ = state
    size, num_classes = logits.shape
    wide = logits.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    rescaled = logits.new_empty(size, dtype=dtype)
    batch_weights, score = (logits.new_empty(size, dtype=torch.float32) for _ in range(2))
    stats = logits.new_empty((size, 2), dtype=dtype)
    if size == 0:  # edge case 1; an empty grid cannot be launched
        step.add_(int(advance))
        return rescaled, batch_weights, score, stats
    # 8 logits a thread, 4 of float64: twice as many spill on some generations.
    most = 1024 if wide else 2048
    block = min(most, max(128, triton.next_power_of_2(num_classes)))
    launch(
        cross_entropy_kernel,
        size,
        records,
        logits,
        targets,
        indices,
        batch_weights if class_weight is None else class_weight,
        *state,
        rescaled,
        batch_weights,
        score,
        stats,
        num_classes,
        records.numel(),
        label_smoothing,
        ignore_index,
        int(advance),
        KIND=kind,
        SMOOTH=label_smoothing != 0,
        WEIGHTED=class_weight is not None,
        WIDE=wide,
        BLOCK=block,
        warps=8 if block == most else 4,
    )
    return rescaled, batch_weights, score, stats
