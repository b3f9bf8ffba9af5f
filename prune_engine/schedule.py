# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules when the number of steps is not known in advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prune_engine.plain import plain


class VirtualScheduler:
    """Step any scheduler by the progress through the data, not by the count of real steps.

    A pruned run takes fewer steps than planned, and how many is not known before it ends. After
    each real step the wrapped scheduler has been stepped ``round(progress * total_steps)`` times,
    so a run with 663 real steps of 1,000 nominal ones passes through the same curve and ends
    exactly at its end. Warm-up shrinks in real steps along with everything else.

    Args:
        scheduler: any object with ``step``, ``state_dict`` and ``load_state_dict``.
        total_steps: nominal steps: full epochs times full batches. (``OneCycleLR`` has that many
            values, the first before any step, so its last step is left out.)
        progress: returns the share of nominal work done, in [0, 1].

    Raises:
        TypeError: total_steps is no int, or there is no scheduler.
        ValueError: total_steps is not at least 1.

    Example:
        >>> class Count:
        ...     taken = 0
        ...     def step(self): self.taken += 1
        >>> inner = Count()
        >>> done = iter([0.25, 0.5, 1.0])
        >>> scheduler = VirtualScheduler(inner, 10, lambda: next(done))
        >>> for _ in range(3): scheduler.step()
        >>> inner.taken
        10
    """

    def __init__(self, scheduler: Any, total_steps: int, progress: Callable[[], float]) -> None:
        total_steps = plain(total_steps)
        if isinstance(total_steps, bool) or not isinstance(total_steps, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"total_steps must be an int of at least 1, got {total_steps!r}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if scheduler is None or isinstance(scheduler, type):
            raise TypeError(f"scheduler must be an object with step(), got {scheduler!r}")
        self.scheduler = scheduler
        self.total_steps = total_steps
        self._progress = progress
        self._taken = 0

    @property
    def taken(self) -> int:
        """How often the wrapped scheduler has been stepped."""
        return self._taken

    def step(self) -> None:
        """Bring the wrapped scheduler to where the data is. Call it after each optimizer step."""
        target = round(min(1.0, self._progress()) * self.total_steps)
        # OneCycleLR raises past its last value; it has total_steps values, the first at its start.
        limit = getattr(self.scheduler, "total_steps", None)
        if limit is not None:
            target = min(target, int(limit) - 1)
        while self._taken < target:
            self.scheduler.step()
            self._taken += 1

    def get_last_lr(self) -> list[float]:
        """Return the wrapped scheduler's last learning rates."""
        return list(self.scheduler.get_last_lr())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both."""
        return {"taken": self._taken, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of both.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            ValueError: it is no such state; nothing has changed then.
        """
        if not isinstance(state, dict) or "scheduler" not in state:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError("state must be what state_dict() returned, got no 'scheduler' in it")
        taken = state.get("taken")
        if isinstance(taken, bool) or not isinstance(taken, int) or taken < 0:
            raise ValueError(f"state: taken: expected an int of at least 0, got {taken!r}")
        self.scheduler.load_state_dict(state["scheduler"])
        self._taken = taken
