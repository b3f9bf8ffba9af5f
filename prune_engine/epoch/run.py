# SPDX-License-Identifier: Apache-2.0
"""Where a run is: its epochs, plans, cursor and reports. The engine's state, and what moves it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from prune_engine.epoch import ranks, state
from prune_engine.epoch.coverage import enforce_coverage
from prune_engine.epoch.plan import (
    EpochPlan,
    dump_plan,
    make_plan,
    restore_ahead,
    restore_plan,
    serve_count,
)
from prune_engine.epoch.policy import (
    Monitor,
    Policy,
    Progress,
    RunFacts,
    begin_memory,
    watcher_of,
)
from prune_engine.epoch.report import EpochReport, History
from prune_engine.epoch.score_buffer import Audit, ScoreBuffer
from prune_engine.errors import NonFiniteLossError, PruneEngineError
from prune_engine.ops.rule import Rule, Selection
from prune_engine.ops.to_host import host_floats

# Why ranks meet: all of them for the same reason, which is told as a number.
PURPOSES = ("end_epoch", "state_dict", "next_plan", "observe")


class EpochRun:
    """One run through its pruning epochs; a sampler draws from it, an engine feeds it.

    Args:
        buffer: the scores.
        policy: decides each epoch.
        mode: ``"epoch"`` or ``"steps"``.
        num_epochs: length of the run in epochs, or None.
        total_steps: length of the run in steps, or None.
        seed: in 0..2^63-1.
        process_group: the data-parallel group; default all ranks.
        on_nonfinite: ``"skip"`` or ``"raise"``.
        coverage: ``"raise"``, ``"warn"`` or ``"ignore"``.

    Example:
        >>> from prune_engine import KeepAll
        >>> run = EpochRun(ScoreBuffer(3), KeepAll(), "epoch", 2, None, 0, None, "skip", "raise")
        >>> run.plan.num_kept, run.epoch, run.cursor
        (3, 0, 0)
    """

    def __init__(
        self,
        buffer: ScoreBuffer,
        policy: Policy,
        mode: Literal["epoch", "steps"],
        num_epochs: int | None,
        total_steps: int | None,
        seed: int,
        process_group: Any,
        on_nonfinite: Literal["skip", "raise"],
        coverage: Literal["raise", "warn", "ignore"],
    ) -> None:
        self.buffer = buffer
        self.policy = policy
        self.mode: Literal["epoch", "steps"] = mode
        self.num_samples = buffer.num_samples
        self.num_epochs = num_epochs
        self.total_steps = total_steps
        self.seed = seed
        self.process_group = process_group
        self.on_nonfinite: Literal["skip", "raise"] = on_nonfinite
        self.coverage: Literal["raise", "warn", "ignore"] = coverage
        self.history = History()
        self.engine_seconds = 0.0
        self.epoch = 0
        self.total = total_steps if mode == "steps" else num_epochs
        self._steps = 0
        self._align = self._shards = 1
        self.ahead: list[EpochPlan] = []
        self.memory = begin_memory(policy, buffer, seed, RunFacts(self.total, process_group))
        self.watcher = watcher_of(self.memory)  # None: a step calls no hook
        self._begin_epoch(0)
        began = self.now()
        plan = self._decide(self._rule(0), 0)
        self._plan: EpochPlan | None = plan
        self.add_seconds(began)

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan."""
        if self._plan is None:
            raise PruneEngineError("the last end_epoch() failed while planning; restore a state")
        return self._plan

    @property
    def cursor(self) -> int:
        """Positions of this epoch consumed so far over all ranks: what was trained."""
        return self._start + self._local * ranks.world(self.process_group)[1]

    @property
    def served(self) -> int:
        """Positions of this epoch that are served over all ranks; the rest is the dropped tail."""
        return serve_count(self.plan.num_kept, self._align, self._shards, self._start)

    @property
    def progress(self) -> float:
        """The share of nominal work done, in [0, 1]: epochs (or steps) over the run's length."""
        if self.total is None:
            raise PruneEngineError("progress needs num_epochs, which was not given")
        if self.mode == "steps":
            return min(1.0, self._steps / self.total)
        within = min(1.0, self.cursor / self.served) if self.served else 0.0
        return min(1.0, (self.epoch + within) / self.total)

    @property
    def fixed_batch(self) -> int | None:
        """The size of batches whose samples stay together, or None."""
        return self.policy.fixed_batch

    @property
    def exhausted(self) -> bool:
        """Whether everything has been dropped for ever."""
        return self.memory is not None and self.memory.exhausted

    def attach(self, monitor: Monitor) -> None:
        """Take a batch's activations from a monitor (``PruneEngine.attach``)."""
        if self.memory is not None and not callable(getattr(monitor, "take", None)):
            raise TypeError(f"monitor must have take(), got {type(monitor).__name__}")
        if self.memory is None or not self.memory.attach(monitor):
            raise TypeError(
                f"policy must be one that looks at activations, such as BPAS, got {self.policy}"
            )

    def consume(self, size: int) -> None:
        """Note that a batch was observed."""
        self._local += size
        self._steps += 1

    def end_epoch(self) -> EpochReport:
        """End the epoch (``PruneEngine.end_epoch``)."""
        if self.mode == "steps":
            raise PruneEngineError("end_epoch() is for mode='epoch'; the sampler ends epochs here")
        began = self.now()
        draft = self._report(self._meet("end_epoch"))
        enforce_coverage(draft, self.coverage)
        self._remember()
        # The old list goes before the new one comes: 4 bytes per kept sample, not 8.
        upcoming = self.epoch + 1
        rule = self._rule(upcoming)
        self._plan = None
        self._plan = self._decide(rule, upcoming)
        self.add_seconds(began)
        return self._enter(upcoming, draft)

    def state_dict(self) -> dict[str, Any]:
        """Return the state (``PruneEngine.state_dict``)."""
        counters = self._meet("state_dict", self.cursor)
        self._refresh_sum()
        buffer = self.buffer.state_dict()
        buffer["counters"] = counters.to("cpu", copy=True)
        thresholds = host_floats(self.plan.threshold)
        return state.save(self, buffer, thresholds, [dump_plan(plan) for plan in self.ahead])

    def load_state_dict(self, saved: state.Saved) -> None:
        """Restore a state (``PruneEngine.load_state_dict``)."""
        self._restore(state.check(self, saved))

    def _restore(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that was checked."""
        self.buffer.load_state_dict(saved["buffer"])
        self.history = History.from_state(saved["history"])
        self._begin_epoch(int(saved["epoch"]))
        self._steps = int(saved["steps"])
        self.seek(int(saved["cursor"]))
        if self.memory is not None:
            self.memory.load_state_dict(saved["memory"])
        if ranks.world(self.process_group)[0] == 0:  # they are of all ranks together
            self.buffer.counters.copy_(saved["buffer"]["counters"])
        thresholds = torch.tensor(saved["threshold"], dtype=torch.float32)
        self._plan = self._restored_plan(thresholds.to(self.buffer.device))
        self.ahead = [restore_ahead(self.buffer, row, seed=self.seed) for row in saved["ahead"]]

    def _restored_plan(self, thresholds: Tensor) -> EpochPlan:
        """Return the plan of the restored epoch."""
        return restore_plan(
            self.buffer,
            thresholds,
            seed=self.seed,
            epoch=self.epoch,
            arrangement=None if self.memory is None else self.memory.arrangement(),
        )

    def now(self) -> float:
        """Return a clock for ``add_seconds``; 0 while being compiled, where no clock runs."""
        return 0.0 if torch.compiler.is_compiling() else time.perf_counter()

    def add_seconds(self, began: float) -> float:
        """Count host seconds since ``began`` as the engine's; returns them."""
        if torch.compiler.is_compiling():
            return 0.0  # reading the total would compile the step anew whenever it has changed
        seconds = self.now() - began
        self.engine_seconds += seconds
        return seconds

    @property
    def constant_length(self) -> bool:
        """Whether pruning epochs flow through epochs of a constant length."""
        return self.mode == "steps"

    @property
    def pass_start(self) -> int:
        """The position at which the latest pass over the epoch began."""
        return self._start

    def begin_pass(self, align: int, shards: int) -> tuple[EpochPlan, int]:
        """Begin to serve what of the epoch has not been trained yet.

        Args:
            align: serve a multiple of this many positions.
            shards: ranks that share them.

        Returns:
            The plan to draw from and the position to start at.

        Raises:
            PruneEngineError: all of it was trained in this process: ``end_epoch`` was forgotten
                (edge case 11), and a pass without a batch would not say so.
        """
        trained = self._trained or self._local > 0
        self._start, self._local = self.cursor, 0
        self._align, self._shards, self._trained = align, shards, trained
        if trained and self.mode == "epoch" and self._start >= self.served:
            raise PruneEngineError(
                f"epoch {self.epoch} is trained to its end: call end_epoch() before the next pass "
                "over the sampler, and iterate the data set itself to evaluate on it"
            )
        return self.plan, self._start

    def next_plan(self, plan: EpochPlan) -> EpochPlan:
        """Return the plan after another one, made ahead (``mode="steps"``).

        The loader runs ahead of training, so the last batches of the epoch have not been observed:
        their samples are decided by their scores of before.

        Args:
            plan: what has been drawn to its end; workers may be several short epochs ahead.

        Returns:
            The next plan; it becomes current when training has consumed those before it.
        """
        at = max(0, plan.epoch - self.epoch)
        if at == len(self.ahead):
            began = self.now()
            self._meet("next_plan")
            self._refresh_sum()
            upcoming = plan.epoch + 1
            self.ahead.append(self._decide(self._rule(upcoming), upcoming, ahead=True))
            self.add_seconds(began)
        return self.ahead[at]

    def seek(self, cursor: int) -> None:
        """Continue the epoch at a consumed cursor."""
        self._start, self._local, self._trained = cursor, 0, False

    @property
    def steps(self) -> int:
        """Batches observed in the run."""
        return self._steps

    def _rule(self, epoch: int) -> Rule | Selection:
        done = self._steps if self.mode == "steps" else epoch
        progress = Progress(epoch, done, self.total, self.seed)
        if self.memory is None:
            rule = self.policy.rule(self.buffer, progress)
        else:
            rule = self.policy.rule(self.buffer, progress, self.memory)
        if isinstance(rule, Selection) and rule.arrangement is not None:
            self._check_arranged()
        return rule

    def _check_arranged(self) -> None:
        """Refuse an arrangement that a state could not bring back."""
        name = type(self.policy).__name__
        if self.mode == "steps":
            # Plans are made ahead there, before the last batches are known, and saved as classes.
            raise ValueError(f"mode must be 'epoch' for {name}, got 'steps'")
        if self.memory is None or self.memory.arrangement() is None:
            got = "no memory" if self.memory is None else "None"
            raise ValueError(
                f"the memory of {name} must return from arrangement() what the Selection has, for "
                f"a restored run asks there, got {got}"
            )

    def _decide(self, rule: Rule | Selection, epoch: int, ahead: bool = False) -> EpochPlan:
        return make_plan(self.buffer, rule, seed=self.seed, epoch=epoch, ahead=ahead)

    def _audit(self) -> Audit:
        return self.buffer.audit(self.epoch)

    def _remember(self) -> None:
        """Tell the policy's memory of the epoch that ends: merged, audited and found whole."""
        if self.memory is not None:
            self.memory.end_epoch(self.buffer, self.epoch)

    def _threshold(self) -> float:
        threshold = self.plan.threshold
        return float(threshold[0].item()) if threshold.numel() else float("nan")

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.seek(0)
        self._seconds_before = self.engine_seconds
        self.buffer.reset_counters()

    def _enter(self, epoch: int, draft: EpochReport) -> EpochReport:
        """Finish the report of the epoch that ended and begin the next, whose plan is there."""
        report = replace(
            draft,
            next_planned=self.plan.num_kept,
            next_threshold=self._threshold(),
            engine_seconds=self.engine_seconds - self._seconds_before,
            ended_early=self.exhausted,
        )
        self._begin_epoch(epoch)
        self.history.append(report)
        return report

    def arrive(self, size: int) -> None:
        """Make the plan that a batch was drawn from the current one (``mode="steps"``)."""
        left = self.served - self.cursor
        if left > 0:
            if size * ranks.world(self.process_group)[1] > left:
                raise PruneEngineError(
                    f"a batch of {size} goes beyond epoch {self.epoch}, which has {left} samples "
                    "left: make the sampler with align=batch_size * world size, and keep at least "
                    "that many samples"
                )
            return
        draft = self._report(self._meet("observe"))
        enforce_coverage(draft, self.coverage)
        self._remember()
        self._plan = self.ahead.pop(0)
        self.buffer.activate(self._plan.weight_class, self._plan.weight_table, self._plan.epoch)
        self._enter(self._plan.epoch, draft)

    def _meet(self, purpose: str, cursor: int = 0) -> Tensor:
        """Exchange records with the other ranks; return the counters of all together."""
        facts = {
            "caller": PURPOSES.index(purpose),
            "checksum of arguments": state.checksum(self),
            "epoch": self.epoch,
            "cursor": cursor,  # a state must have one; an epoch's end audits what was seen instead
        }
        return self._exchange(facts)

    def _exchange(self, facts: dict[str, int]) -> Tensor:
        mine, group = (self.buffer.records, self.buffer.counters), self.process_group
        return ranks.exchange(*mine, epoch=self.epoch, facts=facts, group=group)

    def _refresh_sum(self) -> None:
        if ranks.world(self.process_group)[1] > 1:  # alone, the running sum is exact
            self.buffer.refresh_sum()

    def _report(self, merged: Tensor) -> EpochReport:
        """Audit the epoch that ends; the figures of the next are still to come."""
        counters = self.buffer.read_counters(merged)
        if counters.out_of_range:
            raise IndexError(
                f"indices must be in 0..{self.num_samples - 1}: {counters.out_of_range} were not "
                f"in epoch {self.epoch}, the smallest {counters.bad_index}"
            )
        if counters.nonfinite and self.on_nonfinite == "raise":
            raise NonFiniteLossError(
                f"losses must be finite, got {counters.nonfinite} that were not in epoch "
                f"{self.epoch}, {counters.saturated} of them float64 beyond float32"
            )
        audit = self._audit()
        planned, served = self.plan.num_kept, self.served
        trained = self.history.samples_trained + served
        everyone = None if self.memory is None else self.memory.nominal()
        everyone = self.num_samples if everyone is None else everyone
        nominal = serve_count(everyone, self._align, self._shards)
        nominal += self.history.nominal_trained
        return EpochReport(
            epoch=self.epoch,
            num_samples=self.num_samples,
            planned=planned,
            observed=counters.observed,
            served=served,
            dropped_tail=planned - served,
            missing=audit.missing,
            extra=audit.extra,
            nonfinite=counters.nonfinite,
            num_saturated=counters.saturated,
            num_seen=audit.seen,
            threshold=self._threshold(),
            score_mean=self.buffer.mean(),
            next_planned=0,
            next_threshold=float("nan"),
            samples_trained=trained,
            nominal_trained=nominal,
            dsi=1.0 - trained / nominal if nominal else 0.0,
            engine_seconds=0.0,
        )
