# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules when the number of steps is not known in advance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from prune_engine.errors import LargeWeightWarning
from prune_engine.plain import plain


class HasProgress(Protocol):
    """Whoever knows how much of the nominal work is done; an engine."""

    @property
    def progress(self) -> float:
        """In [0, 1]."""
        ...


class ProgressOf:
    """Reads the progress of an engine; not a lambda, so that a scheduler can be copied and pickled.

    Args:
        source: the engine.
    """

    def __init__(self, source: HasProgress) -> None:
        self.source = source

    def __call__(self) -> float:
        """Return its progress."""
        return self.source.progress


class HasWeights(HasProgress, Protocol):
    """Whoever knows the largest weight of a sample as well; an engine's run."""

    divides: bool  # whether a step's loss is divided by the sum of its weights

    @property
    def plan(self) -> Any:
        """Has ``weight_bound``."""
        ...


class RateWatch:
    """Warns, once, where a sample's weight takes its learning rate beyond the schedule's peak.

    A weight w multiplies a sample's gradient, and so its learning rate: a rate that is the best for
    full training, times the largest weight, is one that nobody has tried, and runs diverge at it.

    Rates that are tensors on a device are not looked at, for the host would wait in each step:
    ``effective_lr`` reads them.

    Args:
        source: the engine's run.
        peak: the largest rate of the schedule made for full training.
    """

    def __init__(self, source: HasWeights, peak: float) -> None:
        self.source, self.peak, self.told = source, peak, False

    def __call__(self, rates: list[Any]) -> None:
        """Look at the rates of the next step."""
        here = (rate for rate in rates if not isinstance(rate, Tensor) or rate.is_cpu)
        largest = max(map(float, here), default=0.0)
        self.peak = max(self.peak, largest)
        if self.told or self.source.divides:
            return
        weight = float(self.source.plan.weight_bound)
        if weight * largest > self.peak * (1 + 1e-9):
            self.told = True
            warnings.warn(
                f"a sample that weighs {weight:g} at the learning rate {largest:g} is trained at "
                f"{weight * largest:g}, above {self.peak:g}, the peak of the schedule made for "
                "full training: training may diverge; lower the rate, or take a policy with "
                "smaller weights or weight_cap=",
                LargeWeightWarning,
                stacklevel=3,
            )


def peak_of(scheduler: Any) -> float:
    """Return the largest rate that a schedule is known to have.

    Args:
        scheduler: any; ``max_lr`` of ``OneCycleLR``'s groups, else the rates that it starts from,
            which warm-ups rise to and all others fall from.

    Returns:
        The rate; 0 where none is known.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> peak_of(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=9))
        2.0
    """
    groups = cast("list[dict[str, Any]]", getattr(_optimizer_of(scheduler), "param_groups", ()))
    known = [float(group[name]) for group in groups for name in ("max_lr", "lr") if name in group]
    known += [float(rate) for rate in getattr(scheduler, "base_lrs", None) or ()]
    return max(known, default=0.0)


def _optimizer_of(scheduler: Any) -> Any:
    return getattr(scheduler, "optimizer", None)


class VirtualScheduler(LRScheduler):
    """Step any scheduler by the progress through the data, not by the count of real steps.

    A pruned run takes fewer steps than planned, and how many is not known before it ends. After
    each real step the wrapped scheduler has been stepped ``round(progress * total_steps)`` times,
    so a run with 663 real steps of 1,000 nominal ones passes through the same curve and ends
    exactly at its end. Warm-up shrinks in real steps along with everything else. To a framework it
    is the scheduler of the optimizer: an ``LRScheduler`` with its ``optimizer``, ``base_lrs``,
    ``last_epoch`` (the nominal step it is at) and state.

    Args:
        scheduler: a scheduler of torch, or a chain of them; one of timm's, which is told the
            nominal step (``step_update``, or ``step`` where it counts epochs); or any object with
            ``step``, ``state_dict`` and ``load_state_dict``.
        total_steps: nominal steps: full epochs times full batches. (``OneCycleLR`` has that many
            values, the first before any step, so its last step is left out.)
        progress: returns the share of nominal work done, in [0, 1].
        watch: told the rates of the next step after each one.

    Raises:
        TypeError: total_steps is no int, or there is no scheduler, or one that waits for a metric.
        ValueError: total_steps is not at least 1, or is not what the scheduler was made for.

    Example:
        >>> import torch
        >>> done, optimizer = iter([0.25, 0.5, 1.0]), torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> inner = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10)
        >>> scheduler = VirtualScheduler(inner, 10, lambda: next(done))
        >>> optimizer.step()
        >>> for _ in range(3): scheduler.step()
        >>> scheduler.last_epoch, scheduler.get_last_lr()
        (10, [0.0])
    """

    # LRScheduler.__init__ takes the first step and writes the optimizer's initial rates, which the
    # wrapped scheduler has done; what it would set is set here.
    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self,
        scheduler: Any,
        total_steps: int,
        progress: Callable[[], float],
        watch: Callable[[list[Any]], None] | None = None,
    ) -> None:
        total_steps = plain(total_steps)
        if isinstance(total_steps, bool) or not isinstance(total_steps, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"total_steps must be an int of at least 1, got {total_steps!r}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if scheduler is None or isinstance(scheduler, type):
            raise TypeError(f"scheduler must be an object with step(), got {scheduler!r}")
        _refuse(scheduler, total_steps)
        self.scheduler = scheduler
        self.total_steps = total_steps
        self._progress, self._watch = progress, watch
        self._taken = 0
        self.optimizer = getattr(scheduler, "optimizer", None)  # type: ignore[assignment]
        self.base_lrs = list(getattr(scheduler, "base_lrs", None) or self._rates())

    @property
    def _step_count(self) -> int:  # type: ignore[override]
        """The nominal step as well: Accelerate steps no further than ``total_steps`` of them."""
        return self._taken

    @_step_count.setter
    def _step_count(self, count: int) -> None:
        """Take no count: Accelerate adds its micro-batches."""

    @property
    def taken(self) -> int:
        """How often the wrapped scheduler has been stepped."""
        return self._taken

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """The nominal step that the wrapped scheduler is at."""
        return self._taken

    def step(self, epoch: int | None = None) -> None:
        """Bring the wrapped scheduler to where the data is. Call it after each optimizer step.

        Args:
            epoch: not used: what a framework counts is not the work done.
        """
        target = round(min(1.0, self._progress()) * self.total_steps)
        # OneCycleLR raises past its last value; it has total_steps values, the first at its start.
        limit = getattr(self.scheduler, "total_steps", None)
        if limit is not None:
            target = min(target, int(limit) - 1)
        if hasattr(self.scheduler, "step_update"):
            self._update(target)
        else:
            while self._taken < target:
                self.scheduler.step()
                self._taken += 1
        if self._watch is not None:
            self._watch(self.get_last_lr())

    def _update(self, target: int) -> None:
        """Tell a scheduler of timm's where it is: it computes its rates from that."""
        if target <= self._taken:
            return
        if getattr(self.scheduler, "t_in_epochs", False):
            self.scheduler.step(target)
        else:
            self.scheduler.step_update(target)
        self._taken = target

    def _rates(self) -> list[float]:
        groups = cast("list[dict[str, Any]]", getattr(self.optimizer, "param_groups", ()))
        return [group["lr"] for group in groups]

    def get_last_lr(self) -> list[Any]:
        """Return the wrapped scheduler's last learning rates."""
        if hasattr(self.scheduler, "get_last_lr"):
            return list(self.scheduler.get_last_lr())
        return self._rates()

    def get_lr(self) -> list[Any]:
        """Return the same: no rate is computed here."""
        return self.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both; the engine has its own."""
        return {"taken": self._taken, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of both.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            ValueError: it is no such state.
        """
        if not isinstance(state_dict, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        taken: Any = state_dict.get("taken")
        count = isinstance(taken, int) and not isinstance(taken, bool) and taken >= 0
        if not count or "scheduler" not in state_dict:
            raise ValueError(
                "state_dict must be that of a wrapped scheduler, with taken and scheduler, got "
                f"{sorted(map(str, state_dict))}"
            )
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self._taken = taken


def _refuse(scheduler: Any, total_steps: int) -> None:
    """Refuse what no progress can step, or what was made for another number of steps."""
    inner = getattr(scheduler, "lr_scheduler", scheduler)  # timm's of a plateau has torch's inside
    if isinstance(inner, ReduceLROnPlateau):
        raise TypeError(
            "scheduler must not wait for a metric, got ReduceLROnPlateau, which counts evaluations "
            "and not steps: step it yourself at the end of each epoch"
        )
    if isinstance(scheduler, VirtualScheduler):
        raise TypeError("scheduler must be the one to wrap, got one that is wrapped already")
    for kind, name in ((OneCycleLR, "total_steps"), (CosineAnnealingLR, "T_max")):
        made_for = getattr(scheduler, name, None)
        if type(scheduler) is kind and made_for != total_steps:
            raise ValueError(
                f"total_steps must be what the scheduler was made for, got {total_steps} and "
                f"{kind.__name__}({name}={made_for})"
            )
