# SPDX-License-Identifier: Apache-2.0
"""The outputs of one forward pass: measured when they are made, or together before the backward."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from prune_engine import ops

Key = tuple[nn.Module, int]  # a module, and how often it ran before in the pass


class Outputs:
    """What a pass left, in order: moments, and outputs that wait to be measured in one launch.

    An output may wait where something else keeps it alive and unchanged until it is taken, which
    the first pass finds out: there each is measured at once. From then on those wait that lived as
    long and had not changed; the others are measured at once for ever. What waits hangs on the
    autograd graph that made it, and goes with it.

    Args:
        sample: see ``ops.moments``.
        backend: which kernels.

    Example:
        >>> relu, outputs = nn.ReLU(), Outputs(1, "auto")
        >>> for _ in range(2):
        ...     outputs.begin()
        ...     output = relu(torch.ones(3, 2, requires_grad=True))
        ...     outputs.see(relu, output)
        ...     waiting = outputs.waiting
        ...     _ = outputs.take()
        >>> waiting
        1
    """

    def __init__(self, sample: int, backend: str) -> None:
        self.sample, self.backend = sample, backend
        self._rows: list[Tensor | _Waiting] = []
        self._trials: list[_Trial] = []
        self._ran: dict[nn.Module, int] = {}
        self._may_wait: dict[Key, bool] = {}

    def begin(self) -> None:
        """Forget a pass that nobody took, and begin the next."""
        for row in self._rows:
            if isinstance(row, _Waiting):
                row.release()
        self._rows, self._trials = [], []
        self._ran.clear()

    def note(self, moments: Tensor) -> None:
        """Add what was measured elsewhere.

        Args:
            moments: float64 [3] = (count, mean, M2).
        """
        self._rows.append(moments)

    def see(self, module: nn.Module, output: Tensor) -> None:
        """Measure an output, or let it wait.

        Args:
            module: whose it is.
            output: of any shape.
        """
        if is_compiling():  # in a graph what waits would have to leave it
            self.note(self._measure([output.detach()])[0])
            return
        times = self._ran.get(module, 0)
        self._ran[module] = times + 1
        key = (module, times)
        # Without a graph nothing else may keep it; a subclass may keep its numbers elsewhere.
        hangs = type(output) is Tensor and output.grad_fn is not None
        may_wait = self._may_wait.get(key)
        if hangs and may_wait:
            self._rows.append(_Waiting(key, output))
            return
        self.note(self._measure([output.detach()])[0])
        if hangs and may_wait is None:
            self._trials.append(_Trial(key, output))

    def take(self) -> Tensor | None:
        """Return the pass's moments and forget it.

        Returns:
            float64 [L, 3]; None where nothing was seen.
        """
        if not self._rows:
            return None
        for trial in self._trials:
            self._may_wait[trial.key] = trial.passed()
        waiting = [row for row in self._rows if isinstance(row, _Waiting)]
        measured = self._measure_waiting(waiting)
        rows = [measured.pop(row) if isinstance(row, _Waiting) else row for row in self._rows]
        self.begin()
        return torch.stack(rows)

    @property
    def waiting(self) -> int:
        """How many outputs of the pass wait."""
        return sum(isinstance(row, _Waiting) for row in self._rows)

    def _measure(self, tensors: list[Tensor]) -> Tensor:
        return ops.moments(tensors, sample=self.sample, backend=self.backend)

    def _measure_waiting(self, waiting: list[_Waiting]) -> dict[_Waiting, Tensor]:
        """Measure what waited and is still what it was, all of it in one call."""
        tensors = {row: tensor for row in waiting if (tensor := row.tensor()) is not None}
        storages = [weakref.ref(tensor.untyped_storage()) for tensor in tensors.values()]
        rows = list(tensors)
        found = dict(zip(rows, self._measure(list(tensors.values())), strict=True)) if rows else {}
        for row in waiting:
            row.release()
            if row not in found:
                found[row] = self._unknown(row)
        del tensors
        for row, storage in zip(rows, storages, strict=True):
            if storage() is None:  # nothing else kept it any more: never longer than autograd does
                self._may_wait[row.key] = False
        return found

    def _unknown(self, row: _Waiting) -> Tensor:
        """Warn of an output that was lost while it waited, and return moments that say so."""
        self._may_wait[row.key] = False
        warnings.warn(
            f"an output of {type(row.key[0]).__name__} was changed in place or let go before "
            "observe(), which in the first pass it was not: the statistic of this batch is nan, "
            "so that it is not dropped for it; the layer is measured when it runs from now on",
            RuntimeWarning,
            stacklevel=2,
        )
        moments = torch.full((3,), math.nan, dtype=torch.float64, device=row.device)
        moments[0] = row.count
        return moments


class _Held:
    """What an autograd graph holds of an output, so that it goes when the graph does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor


class _Waiting:
    """An output that waits."""

    def __init__(self, key: Key, output: Tensor) -> None:
        self.key = key
        self.count, self.device = output.numel(), output.device
        held = _Held(output.detach())
        self._version = output._version
        self._held = weakref.ref(held)
        node: Any = output.grad_fn  # its stub takes metadata for a method
        node.metadata[held] = None

    def tensor(self) -> Tensor | None:
        """Return the output, or None where it has changed or is gone."""
        held = self._held()
        tensor = None if held is None else held.tensor
        return tensor if tensor is not None and tensor._version == self._version else None

    def release(self) -> None:
        """Hold the output no longer."""
        held = self._held()
        if held is not None:
            held.tensor = None


class _Trial:
    """An output that was measured, and is watched to see whether it could have waited."""

    def __init__(self, key: Key, output: Tensor) -> None:
        self.key = key
        # Shares the output's count of changes, and then has no more of it than that.
        self._counter = output.detach()
        self._counter.data = torch.empty(0, dtype=output.dtype, device=output.device)
        self._version = output._version
        self._storage = weakref.ref(output.untyped_storage())

    def passed(self) -> bool:
        """Say whether it lives, and nothing was written into it."""
        return self._storage() is not None and self._counter._version == self._version
