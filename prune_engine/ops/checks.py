# SPDX-License-Identifier: Apache-2.0
"""What the operators refuse: the argument's name, what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from prune_engine.bands import (
    COUNTERS,
    MAX_EPOCH,
    MAX_INDEX,
    MAX_SAMPLES,
    MAX_SEED,
    NUM_CLASSES,
    PLAN_BLOCK,
    SUM_WORDS,
)
from prune_engine.plain import plain

LOSS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_DTYPES = (torch.int64, torch.int32)

# records, score_sum, counters, step, weight_class, weight_table and epoch: the state of the schemas
ObserveState = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def state_of(
    records: Tensor,
    score_sum: Tensor,
    counters: Tensor,
    step: Tensor,
    weight_class: Tensor,
    weight_table: Tensor,
    epoch: int | Tensor,
) -> ObserveState:
    """Return the state that an operator which records a batch is called with.

    What is changed must be changed in place (``check_state``); what is read may be converted.

    Args:
        records: see ``observe``.
        score_sum: see ``observe``.
        counters: see ``observe``.
        step: see ``observe``.
        weight_class: see ``observe``.
        weight_table: see ``observe``.
        epoch: see ``observe``; a number becomes a tensor.

    Returns:
        The seven tensors, none of them checked but an epoch that is a number.

    Raises:
        ValueError: the epoch is out of range.

    Example:
        >>> zero = torch.zeros(1)
        >>> state_of(zero, zero, zero, zero, zero, zero, 3)[-1]
        tensor([3])
    """
    epoch = plain(epoch)
    if isinstance(epoch, int):
        check_seed_epoch(0, epoch)
        epoch = torch.tensor([epoch], dtype=torch.int64, device=records.device)
    if isinstance(weight_class, Tensor) and isinstance(weight_table, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        weight_class, weight_table = weight_class.contiguous(), weight_table.contiguous()
    return records, score_sum, counters, step, weight_class, weight_table, epoch


def check_vector(
    name: str,
    tensor: object,
    dtypes: tuple[torch.dtype, ...],
    *,
    size: int | None = None,
    device: torch.device | None = None,
    changed: bool = False,
) -> Tensor:
    """Refuse what is not a vector of a size, dtype and device (edge case 7).

    Args:
        name: the argument's name, for the message.
        tensor: what came.
        dtypes: those allowed.
        size: the number of elements, or None for any.
        device: where it must be, or None for anywhere.
        changed: whether it is written to, so that a converted copy would lose the write.

    Returns:
        The same tensor.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: wrong dimensions, size or device, or not contiguous where it is changed.

    Example:
        >>> check_vector("losses", torch.zeros(2), (torch.float32,), size=2)
        tensor([0., 0.])
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dim() != 1 or (size is not None and tensor.shape[0] != size):
        expected = "a vector" if size is None else f"a vector of {size} elements"
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        words = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {words}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {tensor.layout}")
    if changed and not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, for it is changed in place, got strides {tensor.stride()}"
        )
    return tensor


def check_count(name: str, count: int) -> None:
    """Refuse more samples than one device's int32 lists can name (edge case 8).

    Args:
        name: whose length it is.
        count: the length.

    Raises:
        ValueError: 2^31 or more.

    Example:
        >>> check_count("records", 10)
    """
    if count > MAX_SAMPLES:
        raise ValueError(
            f"{name} must have at most {MAX_SAMPLES} elements, got {count}: shard the data set"
        )


def check_first(first: object, *, fixed: bool) -> int:
    """Refuse a start of a shard that its plan cannot have.

    Args:
        first: must be a multiple of 4096 in 0..2^62.
        fixed: whether the rule draws fixed counts, which are of the whole data set.

    Returns:
        The same, as a plain int.

    Raises:
        TypeError: it is no int.
        ValueError: it is not, or a shard's counts would be fixed.

    Example:
        >>> check_first(8192, fixed=False)
        8192
    """
    words = f"a multiple of {PLAN_BLOCK} in 0..2^62"
    first = check_int("first", first, 0, MAX_INDEX, words)
    if first % PLAN_BLOCK:
        raise ValueError(f"first must be {words}, got {first}")
    if first and fixed:
        raise ValueError(
            "rule must draw independently where first is above 0: fixed counts are of the whole "
            "data set, and a shard sees its own samples only"
        )
    return first


def check_seed_epoch(seed: object, epoch: object) -> tuple[int, int]:
    """Refuse a seed or an epoch that the counters of the generator cannot hold.

    Args:
        seed: must be in 0..2^63-1.
        epoch: must be in 0..2^31-2.

    Returns:
        Both, as plain ints.

    Raises:
        TypeError: one is no int.
        ValueError: one is not.

    Example:
        >>> check_seed_epoch(0, 0)
        (0, 0)
    """
    return (
        check_int("seed", seed, 0, MAX_SEED, "0..2^63-1"),
        check_int("epoch", epoch, 0, MAX_EPOCH, "0..2^31-2"),
    )


def check_state(
    records: object,
    score_sum: object,
    counters: object,
    step: object,
    weight_class: object,
    weight_table: object,
    epoch: object,
) -> None:
    """Refuse a state that ``observe`` cannot change.

    Args:
        records: must be [N] int64.
        score_sum: must be [10] int64.
        counters: must be [5] int64.
        step: must be [1] int64.
        weight_class: must be [N] uint8.
        weight_table: must be [256] float32.
        epoch: must be [1] int64.

    Raises:
        TypeError: not a tensor, or a dtype does not fit.
        ValueError: a shape, device or layout does not fit.

    Example:
        >>> count = torch.zeros(10, dtype=torch.int64)
        >>> classes, table = torch.ones(10, dtype=torch.uint8), torch.zeros(256)
        >>> check_state(count, count, count[:5], count[:1], classes, table, count[:1])
    """
    integer = (torch.int64,)
    records = check_vector("records", records, integer, changed=True)
    device, size = records.device, records.shape[0]
    check_vector("score_sum", score_sum, integer, size=SUM_WORDS, device=device, changed=True)
    check_vector("counters", counters, integer, size=COUNTERS, device=device, changed=True)
    check_vector("step", step, integer, size=1, device=device, changed=True)
    check_vector("weight_class", weight_class, (torch.uint8,), size=size, device=device)
    check_vector("weight_table", weight_table, (torch.float32,), size=NUM_CLASSES, device=device)
    check_vector("epoch", epoch, integer, size=1, device=device)


def check_batch(losses: object, indices: object, score: object, device: torch.device) -> None:
    """Refuse a batch that cannot be recorded, naming the argument.

    Args:
        losses: must be [B] floating; a scalar is told about ``reduction="none"`` (edge case 12).
        indices: must be [B] int64 | int32.
        score: None, or must be [B] floating.
        device: where the records are.

    Raises:
        TypeError: not a tensor, or a dtype does not fit.
        ValueError: a shape or device does not fit.

    Example:
        >>> check_batch(torch.zeros(1), torch.tensor([0]), None, torch.device("cpu"))
    """
    if isinstance(losses, Tensor) and losses.dim() == 0:
        raise ValueError(
            'losses must be one per sample, got a scalar: compute the loss with reduction="none"'
        )
    losses = check_vector("losses", losses, LOSS_DTYPES, device=device)
    size = losses.shape[0]
    check_vector("indices", indices, INDEX_DTYPES, size=size, device=device)
    if score is not None:
        check_vector("score", score, LOSS_DTYPES, size=size, device=device)


def check_labels(
    logits: object,
    targets: object,
    indices: object,
    class_weight: object,
    label_smoothing: float,
    device: torch.device,
) -> None:
    """Refuse logits and labels that no loss can be made of, naming the argument.

    Args:
        logits: must be [B, C] floating, C at least 1.
        targets: must be [B] int64 | int32.
        indices: must be [B] int64 | int32.
        class_weight: None, or must be [C] floating.
        label_smoothing: must be in 0..1.
        device: where the records are.

    Raises:
        TypeError: not a tensor, or a dtype does not fit.
        ValueError: a shape, device or number does not fit.

    Example:
        >>> batch = torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0])
        >>> check_labels(*batch, None, 0.1, torch.device("cpu"))
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [B, C] with C > 0, got shape {tuple(logits.shape)}")
    if logits.dtype not in LOSS_DTYPES:
        words = " or ".join(str(dtype).removeprefix("torch.") for dtype in LOSS_DTYPES)
        raise TypeError(f"logits must be {words}, got {logits.dtype}")
    if logits.device != device:
        raise ValueError(f"logits must be on {device}, got {logits.device}")
    if logits.layout != torch.strided:
        raise TypeError(f"logits must be dense, got layout {logits.layout}")
    size, num_classes = logits.shape
    check_vector("targets", targets, INDEX_DTYPES, size=size, device=device)
    check_vector("indices", indices, INDEX_DTYPES, size=size, device=device)
    if class_weight is not None:
        check_vector("class_weight", class_weight, LOSS_DTYPES, size=num_classes, device=device)
    label_smoothing = plain(label_smoothing)
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"label_smoothing must be a number in 0..1, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in 0..1, got {label_smoothing}")


def raise_index_error(error: Exception) -> NoReturn:
    """Re-raise a kernel's error, as IndexError where the kernel says it is one.

    Args:
        error: what a compiled operator raised; the stable ABI knows RuntimeError only.

    Raises:
        IndexError: the message is marked ``IndexError:``.
        Exception: any other, as it came.
    """
    text = str(error)
    at = text.find("IndexError: ")
    if at < 0:
        raise error
    raise IndexError(text[at + len("IndexError: ") :].splitlines()[0]) from None


def dense(name: str, tensor: object, device: torch.device | None = None) -> Tensor:
    """Return a floating tensor whose storage can be read from end to end.

    Args:
        name: the argument's name, for the message.
        tensor: any shape; contiguous, channels_last or any layout without gap or overlap; what has
            gaps is copied, as torch would.
        device: where it must be, or None for anywhere.

    Returns:
        The tensor, detached, or a contiguous copy.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: on another device.

    Example:
        >>> dense("x", torch.zeros(2, 3).t()).stride(), dense("x", torch.zeros(4)[::2]).stride()
        ((1, 3), (1,))
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in LOSS_DTYPES:
        words = " or ".join(str(dtype).removeprefix("torch.") for dtype in LOSS_DTYPES)
        raise TypeError(f"{name} must be {words}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    tensor = tensor.detach()
    return tensor if is_dense(tensor) else tensor.contiguous()


def is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor's elements fill their storage without gap or overlap.

    Args:
        tensor: of any shape.

    Returns:
        Whether it is contiguous after some permutation of its dimensions.

    Example:
        >>> is_dense(torch.zeros(2, 3).t()), is_dense(torch.zeros(1).expand(2))
        (True, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def dense_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a table of statistics, each dense, all on one device.

    Args:
        tensors: at least one floating tensor.

    Returns:
        As many tensors, see ``dense``.

    Raises:
        TypeError: one is not a floating tensor.
        ValueError: there is none, or they are on several devices.

    Example:
        >>> dense_tensors([torch.zeros(2)])
        [tensor([0., 0.])]
    """
    if not isinstance(tensors, list | tuple | Tensor):
        raise TypeError(f"tensors must be a sequence, got {type(tensors).__name__}")
    if isinstance(tensors, Tensor) or not tensors:
        raise ValueError(
            "tensors must be a sequence of at least one tensor, got "
            + ("a tensor" if isinstance(tensors, Tensor) else "none")
        )
    first = dense("tensors[0]", tensors[0])
    rest = [dense(f"tensors[{k}]", tensors[k], first.device) for k in range(1, len(tensors))]
    return [first, *rest]


def check_values(values: Tensor) -> Tensor:
    """Return scores or records, contiguous; refuse what is neither."""
    check_vector("values", values, (torch.float32, torch.int64))
    check_count("values", values.shape[0])
    return values.contiguous()


def check_int(name: str, value: object, low: int, high: int, words: str = "") -> int:
    """Refuse what is not an int within bounds; return it plain, for NumPy's ints are welcome."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {words or f'{low}..{high}'}, got {value}")
    return value


def check_sample(sample: object) -> int:
    """Refuse a sample that no statistic takes; beyond the number of blocks all take one of them."""
    sample = plain(sample)
    if isinstance(sample, bool) or not isinstance(sample, int):
        raise TypeError(f"sample must be an int of at least 1, got {sample!r}")
    if sample < 1:
        raise ValueError(f"sample must be at least 1, got {sample}")
    return check_int("sample", sample, 1, MAX_SAMPLES)


def has_tangent(tensor: Tensor) -> bool:
    """Tell whether forward-mode differentiation (``torch.func.jvp``) goes through a tensor."""
    if torch.compiler.is_compiling():  # a level of it is never open in a graph
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # pyright: ignore[reportUnknownMemberType]
