# SPDX-License-Identifier: Apache-2.0
"""The score buffer: one max-register per sample, and the only mutable thing in the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from prune_engine import backends, ops
from prune_engine.bands import (
    COUNTERS,
    INT64_MAX,
    LIMBS,
    MAX_EPOCH,
    MAX_SAMPLES,
    NUM_CLASSES,
    SUM_WORDS,
)
from prune_engine.epoch.copies import pack, unpack
from prune_engine.epoch.exact_sum import exact_mean, sum_in_units
from prune_engine.epoch.fits import (
    class_problems,
    int_problems,
    table_problems,
    tensor_problems,
    weighed,
)
from prune_engine.errors import StateMismatchError
from prune_engine.lasting import lasting, stay
from prune_engine.ops.checks import ObserveState, check_batch, check_state
from prune_engine.ops.cross_entropy_observe import cross_entropy_state
from prune_engine.ops.observe import observe_state
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import plain

KEY_MASK = 0xFFFFFFFF
LOW_KEY, HIGH_KEY = 0x00800000, 0xFF7FFFFF  # of -FLT_MAX and FLT_MAX: all between are finite
MAX_DOT = 4096  # a longer dot product is cut among threads, each number of them in its own way
TENSORS = ("records", "counters", "weight_class", "weight_table")  # of a state


@dataclass(frozen=True)
class Audit:
    """What one pass over the records found (``ops.audit``), as host numbers.

    Args:
        seen: samples that have a score.
        planned_seen: planned samples with a score from the epoch.
        missing: planned samples without one.
        extra: samples with a score from the epoch that were not planned.
    """

    seen: int
    planned_seen: int
    missing: int
    extra: int


@dataclass(frozen=True)
class Counters:
    """What the batches of an epoch brought, as host numbers.

    Args:
        observed: samples passed to ``observe``.
        nonfinite: scores that were inf or nan.
        out_of_range: indices outside the data set (only a device gets this far).
        bad_index: the smallest of those.
        saturated: of the nonfinite ones, those that were finite before they were rounded to
            float32: float64 beyond its range.
    """

    observed: int
    nonfinite: int
    out_of_range: int
    bad_index: int
    saturated: int


def _filled(count: int, value: int, dtype: type[np.generic], device: torch.device) -> Tensor:
    # Batches touch records all over N. NumPy asks Linux for huge pages where torch does not, and
    # a scattered access then costs one cache miss instead of one and a walk of the page table.
    here = count if device.type == "cpu" else 0  # a device fills its own memory
    filled = torch.from_numpy(np.full(here, value, dtype))  # pyright: ignore[reportUnknownMemberType]
    if device.type == "cpu":
        return filled
    return torch.full((count,), value, dtype=filled.dtype, device=device)


def _device(device: torch.device | str | None) -> torch.device:
    """Return a device, or the default one; say which argument names none."""
    if device is None:
        return torch.get_default_device()
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        words = str(error).splitlines()[0]
        raise ValueError(f"device must name a device of torch, got {device!r}: {words}") from error


def _decoded(records: Tensor) -> Tensor:
    key = records & KEY_MASK
    bits = torch.where(key >= 0x80000000, key & 0x7FFFFFFF, key ^ KEY_MASK)
    # The low 32 bits as a signed number, which is what a cast to int32 may not wrap to.
    signed = torch.where(bits >= 0x80000000, bits - 0x100000000, bits)
    decoded = signed.to(torch.int32).view(torch.float32)
    return torch.where(records == 0, torch.nan, decoded)


def _record_problems(records: Tensor, epoch: int) -> list[str]:
    """List a phrase where a record is of an epoch still to come, or no finite score's.

    Such a record would never be replaced, or would make the sum of all scores wrong for ever.
    """
    seen = records[records != 0]
    if not seen.numel():
        return []
    keys = seen & KEY_MASK
    first, last = int(seen.min()) >> 32, int(seen.max()) >> 32
    if first >= 1 and last <= epoch + 1 and LOW_KEY <= keys.min() and keys.max() <= HIGH_KEY:
        return []
    return [f"records: expected finite scores of epochs 0..{epoch}, got others"]


class ScoreBuffer:
    """The scores of N samples on one device, with their exact running sum.

    ``records[i] = ((epoch + 1) << 32) | order-preserving key of the float32 score`` (SEMANTICS 1):
    keeping the larger record keeps the newest epoch's largest score, in any order of arrival.
    9 bytes per sample in all: 8 of records, 1 of weight class. Not thread-safe.

    Args:
        num_samples: N, in 0..2^31-1.
        device: where everything lives; default torch's default device.
        backend: which kernels.

    Raises:
        TypeError: N is no int.
        ValueError: N is out of range.

    Example:
        >>> buffer = ScoreBuffer(3)
        >>> _ = buffer.observe(torch.tensor([2.0, 4.0]), torch.tensor([0, 2]))
        >>> buffer.scores.tolist(), buffer.mean_threshold().item()
        ([2.0, nan, 4.0], 3.0)
    """

    @lasting
    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> None:
        num_samples, backend = plain(num_samples), plain(backend)
        if isinstance(num_samples, bool) or not isinstance(num_samples, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"num_samples must be an int, got {num_samples!r}")
        if num_samples < 0:
            raise ValueError(f"num_samples must be at least 0, got {num_samples}")
        if num_samples > MAX_SAMPLES:
            raise ValueError(
                f"num_samples must be at most {MAX_SAMPLES} on one device, got {num_samples}: "
                "divide them among ranks with shard_scores=True"
            )
        self.num_samples = num_samples
        self.first = 0  # the number of the sample that the first record is of
        self.device = _device(device)
        self.backend = backends.resolve(backend, self.device.type)
        self.records = _filled(num_samples, 0, np.int64, self.device)
        self.device = self.records.device  # "cuda" has become "cuda:0"
        self.score_sum = torch.zeros(SUM_WORDS, dtype=torch.int64, device=self.device)
        self.counters = torch.zeros(COUNTERS, dtype=torch.int64, device=self.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.weight_class = _filled(num_samples, 1, np.uint8, self.device)
        self.weight_table = torch.zeros(NUM_CLASSES, dtype=torch.float32, device=self.device)
        self.epoch = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.weight_table.select(0, 1).fill_(1.0)
        self.reset_counters()
        # The tensors stay the same for life, so what each batch needs is put together once.
        self._kernels = backends.load(self.backend)
        self._checks = self._kernels.CHECKS_ARGUMENTS
        # What calling a compiled operator comes to; only a graph needs its name.
        mean = self._kernels.observe_mean
        self._observe_mean: Any = getattr(mean, "_op", mean)
        self._largest_dot = MAX_DOT if self.device.type == "cpu" else 0
        self.observe_arguments: ObserveState = (
            self.records,
            self.score_sum,
            self.counters,
            self.step,
            self.weight_class,
            self.weight_table,
            self.epoch,
        )
        stay(*self.observe_arguments)

    @property
    def scores(self) -> Tensor:
        """Decode the scores: float32 [N] in dataset order, nan where never seen (a copy)."""
        return _decoded(self.records)

    def last_scores(self, indices: Tensor) -> Tensor:
        """Return some samples' last scores, without waiting for the device.

        Args:
            indices: [B] int64 | int32 in 0..N-1; one that is not gives any sample's, for
                ``observe`` is what refuses it.

        Returns:
            float32 [B] in the order of ``indices``, nan where never seen.
        """
        inside = indices.to(torch.int64).clamp(0, max(self.num_samples - 1, 0))
        return _decoded(self.records[inside])

    def observe(
        self,
        losses: Tensor,
        indices: Tensor,
        *,
        score: Tensor | None = None,
        advance: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Record one batch in the current epoch and weigh its losses (``ops.observe``).

        Args:
            losses: [B] float16 | bfloat16 | float32 | float64.
            indices: [B] int64 | int32 in 0..N-1.
            score: [B] floating; default the losses.
            advance: whether ``step`` grows by 1: once for each batch that is served.

        Returns:
            ``rescaled`` [B] and ``batch_weights`` [B], in the order of the batch.

        Raises:
            IndexError: an index is out of range (on the cpu).
        """
        kernels: Any = self._kernels
        if is_compiling() and self.backend == "triton":
            kernels = torch.ops.prune_engine  # a graph names operators, not functions that launch
        # These tensors are the buffer's own: none of them is ever saved for a backward pass.
        return observe_state(
            losses,
            indices,
            score,
            self.observe_arguments,
            kernels,
            advance=advance,
            checks=self._checks,
        )

    def observe_mean(
        self, losses: Tensor, indices: Tensor, score: Tensor | None, advance: bool
    ) -> Tensor | None:
        """Record one batch and return ``sum(w_i loss_i) / B``, where that is done in one go.

        Of float32 losses on a cpu, at most ``MAX_DOT`` of them: calling torch is most of such a
        step, and one dot product takes the place of a product and a mean (SEMANTICS 3.6). Its
        gradient has the bits of theirs.

        Args:
            losses: [B].
            indices: [B] in 0..N-1.
            score: [B] floating, or None: the losses.
            advance: whether ``step`` grows by 1: once for each batch that is served.

        Returns:
            A scalar; None where ``observe`` must do it, and nothing is recorded yet.
        """
        try:
            if losses.dtype is not torch.float32 or not losses.is_cpu or not indices.is_cpu:
                return None
            if score is not None and not (score.is_cpu and losses.dim() == 1):
                return None
            size = losses.numel()
            if not 0 < size <= self._largest_dot:
                return None
            if not self._checks:
                if not (losses.is_contiguous() and indices.is_contiguous()):
                    return None
                check_state(*self.observe_arguments)
                check_batch(losses, indices, score, self.device)
            observe = self._kernels.observe_mean if is_compiling() else self._observe_mean
            shares = observe(losses, indices, score, self.observe_arguments, advance)
        except (AttributeError, RuntimeError, TypeError):
            return None  # nothing is recorded: what does not fit is converted or said by observe
        return losses.dot(shares)

    def cross_entropy_observe(
        self,
        logits: Tensor,
        targets: Tensor,
        indices: Tensor,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        score: str = "loss",
        advance: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Record one batch from its logits (``ops.cross_entropy_observe``).

        Args:
            logits: [B, C].
            targets: [B].
            indices: [B] int64 | int32 in 0..N-1.
            label_smoothing: of the loss.
            ignore_index: a target that counts for nothing.
            class_weight: [C], of the loss.
            score: a name of ``scores.SCORES``.
            advance: whether ``step`` grows by 1: once for each batch that is served.

        Returns:
            ``rescaled``, ``batch_weights`` and ``score`` [B], in the order of the batch.

        Raises:
            IndexError: an index or a target is out of range (on the cpu).
        """
        return cross_entropy_state(
            logits,
            targets,
            indices,
            self.observe_arguments,
            self._kernels,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            class_weight=class_weight,
            score=score,
            advance=advance,
        )

    def mean_threshold(self) -> Tensor:
        """Return the mean threshold, float32 [1] on the device (``ops.mean_threshold``)."""
        return ops.mean_threshold(self.score_sum, backend=self.backend)

    def cells(self) -> Tensor:
        """Count the samples of each cell of scores, int64 [4096] (``ops.cells``)."""
        return ops.cells(self.records, backend=self.backend)

    def percentiles(self, percents: Sequence[float]) -> Tensor:
        """Return exact percentiles of the seen scores, float32 [R] (``ops.percentiles``).

        Args:
            percents: each in [0, 100].

        Returns:
            On the device, in the order of ``percents``.
        """
        return ops.percentiles(self.records, percents, backend=self.backend)

    def top(self, values: Tensor, k: int) -> Tensor:
        """Mark the k largest of some scores by this buffer's kernels, uint8 [N] (``ops.top``).

        Args:
            values: [N] float32.
            k: how many.

        Returns:
            1 = among the k largest, ties to the smaller index.
        """
        return ops.top(values, k, backend=self.backend)

    def activate(self, weight_class: Tensor, weight_table: Tensor, epoch: int) -> None:
        """Make an epoch's decision the current one.

        The storage of the three stays the same for life, so captured graphs see the change.

        Args:
            weight_class: uint8 [N]; may be the buffer's own.
            weight_table: float32 [256].
            epoch: in 0..2^31-2.
        """
        if weight_class is not self.weight_class:
            self.weight_class.copy_(weight_class)
        self.weight_table.copy_(weight_table)
        self.epoch.fill_(epoch)

    def audit(self, epoch: int) -> Audit:
        """Recompute the exact sum from the records and compare what was seen with the plan.

        Args:
            epoch: the epoch that ended.

        Returns:
            The counts; this reads them from the device.
        """
        result = ops.audit(self.records, self.weight_class, epoch=epoch, backend=self.backend)
        self.score_sum.copy_(result[:SUM_WORDS])
        return Audit(*host_ints(result)[LIMBS:])

    def refresh_sum(self) -> None:
        """Recompute the exact sum from the records: after records came from elsewhere."""
        self.score_sum.copy_(
            ops.audit(self.records, self.weight_class, epoch=0, backend=self.backend)[:SUM_WORDS]
        )

    def resize(self, num_samples: int) -> None:
        """Take samples in at the end, or let the last ones go; the others keep their scores.

        New memory: whatever captured the old tensors, such as a CUDA graph, must be made anew.

        Args:
            num_samples: N from now on; new samples are unseen, of weight class 1.

        Raises:
            TypeError: N is no int.
            ValueError: N is out of range.

        Example:
            >>> buffer = ScoreBuffer(2)
            >>> _ = buffer.observe(torch.tensor([3.0, 5.0]), torch.tensor([0, 1]))
            >>> buffer.resize(3)
            >>> buffer.scores.tolist(), buffer.mean()
            ([3.0, 5.0, nan], 4.0)
        """
        other = ScoreBuffer(num_samples, device=self.device, backend=self.backend)
        both = slice(0, min(self.num_samples, other.num_samples))
        for name, tensor in vars(self).items():
            if isinstance(tensor, Tensor):
                part = both if name in ("records", "weight_class") else slice(None)
                getattr(other, name)[part].copy_(tensor[part])
        vars(self).update(vars(other))
        self.refresh_sum()

    def read_counters(self, counters: Tensor | None = None) -> Counters:
        """Read the counters from the device.

        Args:
            counters: those of all ranks together; default this rank's.

        Returns:
            Host numbers.
        """
        merged = self.counters if counters is None else counters
        return Counters(*host_ints(merged))

    def reset_counters(self) -> None:
        """Start counting anew."""
        self.counters.zero_()
        self.counters.select(0, 3).fill_(INT64_MAX)

    def mean(self) -> float:
        """Return the float64 nearest to the exact mean of the scores, nan before the first."""
        words = host_ints(self.score_sum)
        return exact_mean(sum_in_units(words), words[LIMBS])

    @lasting
    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu."""
        return {
            "records": self.records.to("cpu", copy=True),
            "counters": self.counters.to("cpu", copy=True),
            "weight_class": self.weight_class.to("cpu", copy=True),
            "weight_table": self.weight_table.to("cpu", copy=True),
            "epoch": int(self.epoch.item()),
            "step": int(self.step.item()),
        }

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state, before anything is loaded.

        Args:
            state: what ``state_dict`` returned.

        Returns:
            One phrase per difference.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        numbers = int_problems(state, {"epoch": MAX_EPOCH, "step": INT64_MAX})
        problems = [*tensor_problems(state, tensors), *numbers]
        if problems:
            return problems
        return [
            *_record_problems(state["records"], state["epoch"]),
            *([] if bool((state["counters"] >= 0).all()) else ["counters: expected at least 0"]),
            *class_problems("weight_class", state["weight_class"], weighed(state["weight_table"])),
            *table_problems("weight_table", state["weight_table"]),
        ]

    def plan_problems(self, plan: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a saved plan of these samples.

        Args:
            plan: what ``dump_plan`` returned.

        Returns:
            One phrase per difference.
        """
        tensors = {name: getattr(self, name) for name in ("weight_class", "weight_table")}
        came = plan.get("threshold")
        length = came.numel() if isinstance(came, Tensor) else 0
        tensors["threshold"] = self.weight_table.new_empty(length)
        problems = [*tensor_problems(plan, tensors), *int_problems(plan, {"epoch": MAX_EPOCH})]
        return problems or [
            *class_problems("weight_class", plan["weight_class"], weighed(plan["weight_table"])),
            *table_problems("weight_table", plan["weight_table"]),
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as arguments and state: no kernels, and no memory that is shared."""
        return _revive, (self.num_samples, self.device, self.backend, pack(self.state_dict()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; all or nothing.

        Args:
            state: see there.

        Raises:
            StateMismatchError: it does not fit; nothing has changed then.
        """
        problems = self.state_problems(state)
        if problems:
            raise StateMismatchError("the buffer's state does not fit: " + "; ".join(problems))
        for name in TENSORS:
            getattr(self, name).copy_(state[name])
        self.epoch.fill_(int(state["epoch"]))
        self.step.fill_(int(state["step"]))
        self.refresh_sum()


def _revive(num_samples: int, device: torch.device, backend: str, saved: bytes) -> ScoreBuffer:
    """Make a buffer again that was copied or pickled."""
    buffer = ScoreBuffer(num_samples, device=device, backend=backend)
    buffer.load_state_dict(unpack(saved))
    return buffer
