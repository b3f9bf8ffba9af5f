# SPDX-License-Identifier: Apache-2.0
"""The compiled operators (``csrc/``): loaded once, with fake kernels for ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from prune_engine.backends import surroundings
from prune_engine.backends.surroundings import LIBRARY
from prune_engine.bands import AUDIT_WORDS, CELLS, NUM_CLASSES, PLAN_BLOCK

CHECKS_ARGUMENTS = True  # before anything is written, so ops.py need not


def _load() -> Any:
    # Registering the namespace twice crashes the process, so a second copy must never be loaded.
    if not hasattr(torch.ops.prune_engine, "observe"):
        if not LIBRARY.exists():
            raise ImportError(f"{LIBRARY.name} is not built; run `pip install .` with a compiler")
        if reason := surroundings.torch_refusal(surroundings.Surroundings(torch.__version__)):
            raise ImportError(reason)
        try:
            torch.ops.load_library(str(LIBRARY))  # pyright: ignore[reportUnknownMemberType]
        except OSError as error:
            raise ImportError(surroundings.load_refusal(error)) from error
    return torch.ops.prune_engine


_ops = _load()
_Fake = Callable[..., object]
_register_fake = cast(
    "Callable[[str], Callable[[_Fake], _Fake]]",
    torch.library.register_fake,  # pyright: ignore[reportUnknownMemberType]
)


has_kernel = cast(
    "Callable[[str, str], bool]",
    torch._C._dispatch_has_kernel_for_dispatch_key,  # pyright: ignore
)
# Asked now, for the Triton backend may register its kernels for CUDA tensors later.
BUILT_WITH_CUDA = has_kernel("prune_engine::observe", "CUDA")


def cuda_refusal() -> str:
    """Say why the CUDA kernels cannot serve here.

    Returns:
        A phrase, or "" where they can.

    Example:
        >>> torch.cuda.is_available() or cuda_refusal() != ""
        True
    """
    here = surroundings.read()
    return surroundings.cuda_refusal(replace(here, kernels=BUILT_WITH_CUDA))


observe = _ops.observe.default
observe_mean = _ops.observe_mean.default
mean_threshold = _ops.mean_threshold.default
plan = _ops.plan.default
compact = _ops.compact.default
order = _ops.order.default
shuffle = _ops.shuffle.default
draw = _ops.draw.default
plan_top = _ops.plan_top.default
audit = _ops.audit.default
cells = _ops.cells.default
solve_levels = _ops.solve_levels.default
plan_levels = _ops.plan_levels.default
cross_entropy_observe = _ops.cross_entropy_observe.default
cross_entropy_grad = _ops.cross_entropy_grad.default
select = _ops.select.default
top = _ops.top.default
pick = _ops.pick.default
moments = _ops.moments.default
activation_std = _ops.activation_std.default
relu_moments = _ops.relu_moments.default
relu_moments_ = _ops.relu_moments_.default
gelu_moments = _ops.gelu_moments.default


# What observe returns has no gradient, so autograd need not look at its arguments, nor need they be
# detached for it, which takes as long as a step's own work. (Kept: what it says goes with it.)
_autograd = torch.library.Library("prune_engine", "IMPL")
for _name in ("observe", "observe_mean"):
    _autograd.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # pyright: ignore[reportUnknownMemberType]


@_register_fake("prune_engine::observe")
def _(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: Sequence[Tensor],
    advance: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(losses), torch.empty_like(losses, dtype=torch.float32)


@_register_fake("prune_engine::observe_mean")
def _(
    losses: Tensor,
    indices: Tensor,
    score: Tensor | None,
    state: Sequence[Tensor],
    advance: bool,
) -> Tensor:
    return torch.empty_like(losses)


@_register_fake("prune_engine::mean_threshold")
def _(score_sum: Tensor) -> Tensor:
    return score_sum.new_empty(1, dtype=torch.float32)


@_register_fake("prune_engine::plan")
def _(
    records: Tensor,
    thresholds: Tensor,
    cuts: list[int],
    classes: list[int],
    keep_num: list[int],
    keep_den: int,
    unseen_band: int,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    first: int = 0,
) -> Tensor:
    blocks = (records.numel() + PLAN_BLOCK - 1) // PLAN_BLOCK
    return records.new_empty(blocks + 1, dtype=torch.int64)


@_register_fake("prune_engine::cells")
def _(records: Tensor) -> Tensor:
    return records.new_empty(CELLS)


@_register_fake("prune_engine::solve_levels")
def _(counts: Tensor, target: int, least: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        counts.new_empty(1, dtype=torch.int32),
        counts.new_empty(NUM_CLASSES, dtype=torch.int32),
        counts.new_empty(NUM_CLASSES, dtype=torch.float32),
        counts.new_empty(2),
    )


@_register_fake("prune_engine::plan_levels")
def _(
    records: Tensor,
    top: Tensor,
    cut: Tensor,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    first: int = 0,
    unseen: Tensor | None = None,
) -> Tensor:
    blocks = (records.numel() + PLAN_BLOCK - 1) // PLAN_BLOCK
    return records.new_empty(blocks + 1)


@_register_fake("prune_engine::compact")
def _(weight_class: Tensor, block_offsets: Tensor, num_kept: int) -> Tensor:
    return weight_class.new_empty(num_kept, dtype=torch.int32)


@_register_fake("prune_engine::order")
def _(
    kept: Tensor,
    positions: Tensor | None,
    start: int,
    step: int,
    count: int,
    seed: int,
    epoch: int,
) -> Tensor:
    return kept.new_empty(count if positions is None else positions.numel(), dtype=torch.int32)


@_register_fake("prune_engine::shuffle")
def _(places: Tensor, n: int, inverse: bool, seed: int, epoch: int) -> Tensor:
    return torch.empty_like(places)


@_register_fake("prune_engine::draw")
def _(indices: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    return torch.empty_like(indices)


@_register_fake("prune_engine::plan_top")
def _(records: Tensor, k: int, cut: int, seed: int, epoch: int, weight_class: Tensor) -> Tensor:
    blocks = (records.numel() + PLAN_BLOCK - 1) // PLAN_BLOCK
    return records.new_empty(blocks + 1, dtype=torch.int64)


@_register_fake("prune_engine::audit")
def _(records: Tensor, weight_class: Tensor, epoch: int) -> Tensor:
    return records.new_empty(AUDIT_WORDS, dtype=torch.int64)


@_register_fake("prune_engine::cross_entropy_observe")
def _(
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
    size = logits.shape[0]
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weights, score = (logits.new_empty(size, dtype=torch.float32) for _ in range(2))
    stats = logits.new_empty((size, 2), dtype=real)
    return logits.new_empty(size, dtype=real), weights, score, stats


@_register_fake("prune_engine::cross_entropy_grad")
def _(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    batch_weights: Tensor,
    stats: Tensor,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@_register_fake("prune_engine::select")
def _(values: Tensor, offsets: list[int], shares: list[int], den: int) -> Tensor:
    return values.new_empty(len(offsets), dtype=torch.float32)


@_register_fake("prune_engine::top")
def _(values: Tensor, k: int) -> Tensor:
    return values.new_empty(values.numel(), dtype=torch.uint8)


@_register_fake("prune_engine::pick")
def _(
    values: Tensor,
    k: int,
    rule: int,
    floor: int,
    seed: int,
    epoch: Tensor,
    step: Tensor,
    rank: int,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    size = min(k, values.numel())
    return (
        values.new_empty(size, dtype=torch.int32),
        values.new_empty(size, dtype=torch.float32),
        values.new_empty(1, dtype=torch.int64),
    )


@_register_fake("prune_engine::moments")
def _(tensors: list[Tensor], sample: int) -> Tensor:
    return tensors[0].new_empty((len(tensors), 3), dtype=torch.float64)


@_register_fake("prune_engine::activation_std")
def _(tensors: list[Tensor], out: Tensor, slot: Tensor | None, unbiased: bool, sample: int) -> None:
    return None


@_register_fake("prune_engine::relu_moments")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(3, dtype=torch.float64)


@_register_fake("prune_engine::relu_moments_")
def _(x: Tensor) -> Tensor:
    return x.new_empty(3, dtype=torch.float64)


@_register_fake("prune_engine::gelu_moments")
def _(x: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(3, dtype=torch.float64)
