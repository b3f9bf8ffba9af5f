# SPDX-License-Identifier: Apache-2.0
"""The table of backends: one row each; selection raises and never falls silent."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor


class Kernels(Protocol):
    """The operators that every backend module defines (schemas: ``csrc/ops.cpp``)."""

    CHECKS_ARGUMENTS: bool

    def observe(
        self,
        losses: Tensor,
        indices: Tensor,
        score: Tensor | None,
        state: Sequence[Tensor],
        advance: bool,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Record the scores of one batch and weigh its losses."""
        ...

    def observe_mean(
        self,
        losses: Tensor,
        indices: Tensor,
        score: Tensor | None,
        state: Sequence[Tensor],
        advance: bool,
        /,
    ) -> Tensor:
        """Record the scores of one batch and return the gradient of its weighed mean."""
        ...

    def mean_threshold(self, score_sum: Tensor, /) -> Tensor:
        """Turn the running sum into the float32 mean threshold."""
        ...

    def plan(
        self,
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
        /,
    ) -> Tensor:
        """Write every sample's weight class and count the kept ones by block."""
        ...

    def cells(self, records: Tensor, /) -> Tensor:
        """Count the samples of each cell of scores."""
        ...

    def solve_levels(
        self, counts: Tensor, target: int, least: int, /
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find the levels that keep a number of samples on average."""
        ...

    def plan_levels(
        self,
        records: Tensor,
        top: Tensor,
        cut: Tensor,
        seed: int,
        epoch: int,
        weight_class: Tensor,
        first: int = 0,
        unseen: Tensor | None = None,
        /,
    ) -> Tensor:
        """Write every sample's class by its level and count the kept ones by block."""
        ...

    def compact(self, weight_class: Tensor, block_offsets: Tensor, num_kept: int, /) -> Tensor:
        """List the kept samples in ascending order."""
        ...

    def order(
        self,
        kept: Tensor,
        positions: Tensor | None,
        start: int,
        step: int,
        count: int,
        seed: int,
        epoch: int,
        /,
    ) -> Tensor:
        """Turn positions of the epoch into samples."""
        ...

    def shuffle(self, places: Tensor, n: int, inverse: bool, seed: int, epoch: int, /) -> Tensor:
        """Turn positions of an epoch into ranks among its kept samples, or back."""
        ...

    def draw(self, indices: Tensor, seed: int, epoch: int, stream: int, /) -> Tensor:
        """Return the 32-bit draw of each index in a stream."""
        ...

    def plan_top(
        self, records: Tensor, k: int, cut: int, seed: int, epoch: int, weight_class: Tensor, /
    ) -> Tensor:
        """Keep the largest scores of a random pool, and count the kept ones by block."""
        ...

    def audit(self, records: Tensor, weight_class: Tensor, epoch: int, /) -> Tensor:
        """Recompute the sum and compare what was seen with what was planned."""
        ...

    def cross_entropy_observe(
        self,
        logits: Tensor,
        targets: Tensor,
        indices: Tensor,
        class_weight: Tensor | None,
        label_smoothing: float,
        ignore_index: int,
        kind: int,
        state: Sequence[Tensor],
        advance: bool,
        /,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute losses and scores of logits, record the scores and weigh the losses."""
        ...

    def cross_entropy_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        targets: Tensor,
        class_weight: Tensor | None,
        label_smoothing: float,
        ignore_index: int,
        batch_weights: Tensor,
        stats: Tensor,
        /,
    ) -> Tensor:
        """Turn the gradient of the weighed losses into that of the logits."""
        ...

    def select(self, values: Tensor, offsets: list[int], shares: list[int], den: int, /) -> Tensor:
        """Find the scores at some ranks."""
        ...

    def top(self, values: Tensor, k: int, /) -> Tensor:
        """Mark the k largest scores."""
        ...

    def pick(
        self,
        values: Tensor,
        k: int,
        rule: int,
        floor: int,
        seed: int,
        epoch: Tensor,
        step: Tensor,
        rank: int,
        site: int,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose a fixed number of a batch's elements, with weights."""
        ...

    def moments(self, tensors: Sequence[Tensor], sample: int, /) -> Tensor:
        """Count, mean and sum of squared deviations of each tensor."""
        ...

    def activation_std(
        self,
        tensors: Sequence[Tensor],
        out: Tensor,
        slot: Tensor | None,
        unbiased: bool,
        sample: int,
        /,
    ) -> None:
        """Write the mean over the tensors of their standard deviations into one slot."""
        ...

    def relu_moments(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """ReLU, and the moments of the result."""
        ...

    def relu_moments_(self, x: Tensor, /) -> Tensor:
        """ReLU in place, and the moments of the result."""
        ...

    def gelu_moments(self, x: Tensor, tanh: bool, /) -> tuple[Tensor, Tensor]:
        """GELU, and the moments of the result."""
        ...


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Args:
        name: the public word.
        module: where its functions are.
        devices: device types it serves; empty means every one.
        automatic: whether ``"auto"`` may choose it.
        summary: one line for ``prune-engine info``.
        refusal: a function of the module that says why it cannot serve these devices here, ""
            where it can; none: it can wherever the module loads.
    """

    name: str
    module: str
    devices: tuple[str, ...]
    automatic: bool
    summary: str
    refusal: str | None = None


# The variable that Triton itself reads when a kernel is defined.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TRITON_DEVICES = ("cuda", "cpu") if _INTERPRETED else ("cuda",)

TABLE: tuple[Backend, ...] = (
    Backend(
        "cuda", "native", ("cuda",), True, "CUDA C++ kernels, one launch a batch", "cuda_refusal"
    ),
    Backend("cpu", "native", ("cpu",), True, "C++ kernels through the stable ABI"),
    Backend(
        "triton", "triton", _TRITON_DEVICES, True, "Triton kernels, for want of nvcc", "refusal"
    ),
    Backend("reference", "reference", (), False, "the specification in eager torch, any device"),
)


@cache
def load(name: str) -> Kernels:
    """Import one backend.

    Args:
        name: a name of ``TABLE``.

    Returns:
        The module with the operators.

    Raises:
        ValueError: no such backend.
        RuntimeError: it is known but cannot be loaded here; the message says why.

    Example:
        >>> import torch
        >>> load("reference").mean_threshold(torch.zeros(10, dtype=torch.int64)).item() < -3e38
        True
    """
    for row in TABLE:
        if row.name == name:
            try:
                module = importlib.import_module(f"{__name__}.{row.module}")
            except (ImportError, OSError) as error:
                raise RuntimeError(f"backend {name!r} cannot be loaded: {error}") from error
            if row.refusal is not None and (reason := getattr(module, row.refusal)()):
                raise RuntimeError(f"backend {name!r} cannot serve here: {reason}")
            return cast(Kernels, module)
    known = ", ".join(repr(row.name) for row in TABLE)
    raise ValueError(f"backend must be 'auto' or one of {known}, got {name!r}")


@cache
def resolve(name: str, device_type: str) -> str:
    """Turn ``"auto"`` into a backend's name and check that a named one serves the device.

    Args:
        name: ``"auto"`` or a name of ``TABLE``.
        device_type: such as ``"cpu"`` or ``"cuda"``.

    Returns:
        The name of a backend that is loaded and serves the device.

    Raises:
        ValueError: no such backend, or it does not serve this device.
        RuntimeError: none can be loaded; the message says why each candidate was refused.

    Example:
        >>> resolve("reference", "cpu")
        'reference'
    """
    if name != "auto":
        load(name)
        row = next(row for row in TABLE if row.name == name)
        if row.devices and device_type not in row.devices:
            raise ValueError(
                f"backend {name!r} serves {', '.join(row.devices)} tensors, got {device_type}"
            )
        return name
    refused: list[str] = []
    for row in TABLE:
        if not row.automatic:
            refused.append(f"{row.name}: only when named")
        elif row.devices and device_type not in row.devices:
            refused.append(f"{row.name}: serves {', '.join(row.devices)}")
        else:
            try:
                load(row.name)
            except RuntimeError as error:
                refused.append(f"{row.name}: {error}")
            else:
                return row.name
    raise RuntimeError(
        f"backend 'auto' found none for {device_type} tensors ({'; '.join(refused)}); "
        "name backend='reference' to use the slow specification"
    )


def kernels_for(name: str, tensor: Tensor) -> Kernels:
    """Return the operators that serve a tensor.

    Args:
        name: ``"auto"`` or a name of ``TABLE``.
        tensor: of the device to be served.

    Returns:
        A module with the operators.

    Raises:
        ValueError: no such backend, or it does not serve this device.
        RuntimeError: none can be loaded.

    Example:
        >>> kernels_for("reference", torch.zeros(1)).CHECKS_ARGUMENTS
        False
    """
    if torch.compiler.is_compiling() and name != "reference":
        # Dynamo can trace neither an import nor a cache, but an operator it can see by name; the
        # dispatcher then finds the device's kernel (for CUDA tensors the library's, or Triton's
        # where that has none and the backend was loaded) or says that there is none.
        traced: Any = torch.ops.prune_engine
        return traced
    return load(resolve(name, tensor.device.type))


@dataclass(frozen=True)
class BackendStatus:
    """What ``prune-engine info`` says of one backend.

    Args:
        name: the public word.
        devices: device types it serves.
        available: whether it loads here.
        reason: why not, or what it is.
    """

    name: str
    devices: tuple[str, ...]
    available: bool
    reason: str


def describe() -> list[BackendStatus]:
    """Try every backend and say which load and why the others do not.

    Returns:
        One status per row of the table, in its order.

    Example:
        >>> [status.name for status in describe()]
        ['cuda', 'cpu', 'triton', 'reference']
    """
    rows: list[BackendStatus] = []
    for row in TABLE:
        devices = row.devices or ("any",)
        try:
            load(row.name)
        except RuntimeError as error:
            rows.append(BackendStatus(row.name, devices, False, str(error)))
        else:
            rows.append(BackendStatus(row.name, devices, True, row.summary))
    return rows
