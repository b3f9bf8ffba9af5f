# SPDX-License-Identifier: Apache-2.0
"""Where a run is: its epochs, plans, cursor and reports. The engine's state, and what moves it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sized
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from prune_engine.epoch import ranks, state
from prune_engine.epoch.copies import reduce_run
from prune_engine.epoch.coverage import enforce_coverage, repeats
from prune_engine.epoch.fit_policy import check_rule
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
from prune_engine.epoch.serving import LastBatch, Serving
from prune_engine.errors import NonFiniteLossError, PruneEngineError
from prune_engine.lasting import lasting
from prune_engine.ops.rule import AnyRule, LevelRule, Selection
from prune_engine.ops.to_host import host_floats, host_ints

# Why ranks meet: all of them for the same reason, which is told as a number.
PURPOSES = ("end_epoch", "state_dict", "next_plan", "observe", "resize")
SCAN = 1 << 20  # positions that are searched at a time for what was trained last
# What the engine's seconds are counted for, beside the batches that are observed.
PARTS = ("order", "audit", "recording", "plan")
Part = Literal["order", "audit", "recording", "plan"]


def _no_schedule() -> None:
    """Return that no scheduler was wrapped."""


class Recorder(Protocol):
    """Keeps what an epoch did, before the next one is decided."""

    seconds: float

    def record(self, run: EpochRun, report: EpochReport) -> None:
        """Note an epoch that ends; the figures of the next are still to come in its report."""
        ...


class EpochRun:
    """One run through its pruning epochs; a sampler draws from it, an engine feeds it.

    Args:
        buffer: the scores.
        policy: decides each epoch.
        mode: ``"epoch"`` or ``"flow"``.
        num_epochs: length of the run in pruning epochs, or None.
        horizon: with ``"flow"``, the share of an epoch after which the next one is decided.
        seed: in 0..2^63-1.
        process_group: the data-parallel group; default all ranks.
        on_nonfinite: ``"skip"`` or ``"raise"``.
        coverage: ``"raise"``, ``"warn"`` or ``"ignore"``.

    Example:
        >>> from prune_engine import KeepAll
        >>> run = EpochRun(ScoreBuffer(3), KeepAll(), "epoch", 2, 0.5, 0, None, "skip", "raise")
        >>> run.plan.num_kept, run.epoch, run.cursor
        (3, 0, 0)
    """

    @lasting
    def __init__(
        self,
        buffer: ScoreBuffer,
        policy: Policy,
        mode: Literal["epoch", "flow"],
        num_epochs: int | None,
        horizon: float,
        seed: int,
        process_group: Any,
        on_nonfinite: Literal["skip", "raise"],
        coverage: Literal["raise", "warn", "ignore"],
    ) -> None:
        self.buffer = buffer
        self.policy = policy
        self.mode: Literal["epoch", "flow"] = mode
        self.num_samples = buffer.num_samples
        self.num_epochs = num_epochs
        self.horizon = horizon
        self.seed = seed
        self.process_group = process_group
        self.on_nonfinite: Literal["skip", "raise"] = on_nonfinite
        self.coverage: Literal["raise", "warn", "ignore"] = coverage
        self.history = History()
        self.recorder: Recorder | None = None
        self.engine_seconds = 0.0
        self.part_seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.epoch = 0
        self._steps = 0
        self._last = LastBatch()
        self.flows = mode == "flow"
        self._attentive = self.flows  # a batch may call for more than being counted
        self._counted = 0  # positions that this rank observed, each batch once
        self._enters = 0  # epochs that ended in this process
        self._offered = 0  # the same, of all ranks in the epoch, when they last met
        self._overlap = 0  # samples of the epoch that several ranks recorded
        self._shared_records = 0  # samples of the epoch that all ranks know to be recorded
        self._start = self._from = 0  # a position of the epoch, and what was counted there
        self._training: Serving | None = None
        self._look: Serving | None = None  # the latest pass, where another one is being trained
        self._data: list[weakref.ref[Any]] = []  # what must have N items
        self.ahead: list[EpochPlan] = []
        self.divides = False  # a step's loss is divided by the sum of its weights
        self.schedule: Callable[[], Any] = _no_schedule  # a weak reference, once one is wrapped
        self.memory = begin_memory(policy, buffer, seed, RunFacts(num_epochs, process_group))
        self.watcher = watcher_of(self.memory)  # None: a step calls no hook
        # Whether nothing is done before or after a batch is recorded.
        self.plain = self.watcher is None and not self.flows and on_nonfinite != "raise"
        self._begin_epoch(0)
        began = self.now()
        plan = self._decide(self._rule(0), 0)
        self._plan: EpochPlan | None = plan
        self.add_seconds(began, "plan")

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan."""
        if self._plan is None:
            raise PruneEngineError("the last end_epoch() failed while planning; restore a state")
        return self._plan

    @property
    def cursor(self) -> int:
        """Positions of this epoch consumed so far over all ranks: what was trained."""
        return self._start + self._local() * ranks.world(self.process_group)[1]

    def _local(self) -> int:
        """Count what this rank has trained since ``_start``: never more than was drawn."""
        counted = self._counted - self._from
        serving = self._training
        if serving is None or not self._current(serving):
            return counted
        limit = serving.limit - self._from
        if counted <= limit:
            return counted
        look = self._look
        if look is not None and self._current(look) and counted <= look.limit - self._from:
            self._training, self._look = look, None  # the other pass was broken off
            return counted
        return max(0, limit)

    def _current(self, serving: Serving) -> bool:
        """Say whether a pass serves the current epoch."""
        return self.mode == "flow" or serving.epoch == self.epoch

    @property
    def served(self) -> int:
        """Positions of this epoch that are served over all ranks; the rest is the dropped tail."""
        serving, kept = self._training, self.plan.num_kept
        if serving is None:
            return kept if self._sealed is None else self._sealed
        start = serving.start if serving.epoch == self.epoch else 0
        return serve_count(kept, serving.align, serving.shards, start)

    @property
    def nominal(self) -> int:
        """Positions that this epoch would serve over all ranks if it kept everything."""
        everyone = None if self.memory is None else self.memory.nominal()
        everyone = self.num_samples if everyone is None else everyone
        serving = self._training
        if serving is None:
            return everyone if self._sealed_nominal is None else self._sealed_nominal
        return serve_count(everyone, serving.align, serving.shards)

    @property
    def progress(self) -> float:
        """The share of nominal work done, in [0, 1]: epochs over the run's length."""
        if self.num_epochs is None:
            raise PruneEngineError("progress needs num_epochs, which was not given")
        served = self.served
        within = min(1.0, self.cursor / served) if served else 0.0
        return min(1.0, (self.epoch + within) / self.num_epochs)

    @property
    def done(self) -> bool:
        """Whether the run is over: its epochs are trained, or everything is dropped for ever."""
        return self.exhausted or (self.num_epochs is not None and self.epoch >= self.num_epochs)

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
        made = not isinstance(monitor, type)
        if self.memory is not None and not (made and callable(getattr(monitor, "take", None))):
            got = type(monitor).__name__ if made else f"the class {monitor!r}"
            raise TypeError(f"monitor must have take(), got {got}")
        if self.memory is None or not self.memory.attach(monitor):
            raise TypeError(
                f"policy must be one that looks at activations, such as BPAS, got {self.policy}"
            )

    def again(self, indices: Tensor) -> bool | None:
        """Say whether all of a batch was observed last; None: it is of a tensor of its own."""
        try:
            whole = indices._base is None  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        except AttributeError:
            return False  # no tensor, which is refused by name later
        last = self._last
        return None if whole and indices is not last.base else last.again(indices)

    def trained(self, indices: Tensor, size: int, again: bool | None) -> None:
        """Note that a batch was observed.

        Args:
            indices: [B], as the loop passed them.
            size: B.
            again: what was said of it before it was recorded.
        """
        if again:
            return
        last = self._last
        if again is None:  # a loader's next batch: nothing more to find out
            last.base, last.whole, last.size = indices, size, size
            try:
                last.version = indices._version
            except RuntimeError:  # of inference mode, where none is counted
                last.version = 0
        else:
            size = last.fresh(indices, size)
        self._steps += 1
        self._counted += size
        if self._attentive:
            self._look_on()

    def consume(self, size: int) -> None:
        """Note that so many positions were trained on this rank (``PruneEngine.consume``)."""
        self._last.size = size
        self._counted += size
        self._steps += 1
        if self._attentive:
            self._look_on()

    def _look_on(self) -> None:
        """Do what a batch may call for: with a replay, and where epochs flow."""
        serving = self._training
        if serving is not None and serving.replayed:
            self._check_skipped(serving)
        self._attentive = self.mode == "flow"
        if self.mode == "flow":
            self._flow_on()

    def _check_skipped(self, serving: Serving) -> None:
        """Refuse a loop that trains on the placeholders of a replay."""
        if not serving.drawn:
            self._counted, self._steps = self._counted - self._last.size, self._steps - 1
            raise PruneEngineError(
                "resume='replay' is for a framework that skips the batches that were trained "
                f"before, {serving.start} positions of epoch {self.epoch}, but the loop observed "
                "one of them: take resume='rest'"
            )
        serving.replayed = False

    @lasting
    def end_epoch(self, *, partial: bool = False) -> EpochReport:
        """End the epoch (``PruneEngine.end_epoch``)."""
        if self.mode == "flow" and not partial and self.cursor < self.served:
            raise PruneEngineError(
                "in mode='flow' epochs end by themselves; end_epoch(partial=True) reports one that "
                "was broken off"
            )
        began = self.now()
        draft = self._audited("end_epoch", partial=partial)
        upcoming = self.epoch + 1
        if self.ahead:
            self._remember(draft)
            self._plan = self.ahead.pop(0)
            self._activate(self._plan)
        else:
            self._plan_next(upcoming, draft)
        self.add_seconds(began)
        report = self._enter(upcoming, draft)
        if self.mode == "flow":
            began = self.now()
            self._plan_ahead()
            self.add_seconds(began)
        return report

    def _audited(self, purpose: str, *, partial: bool = False) -> EpochReport:
        """Meet the other ranks and find out what the epoch that ends has seen."""
        began = self.now()
        draft = self._report(self._meet(purpose), partial=partial)
        enforce_coverage(draft, self.coverage, ranks.world(self.process_group)[1])
        self._spent("audit", began)
        return draft

    def _plan_next(self, upcoming: int, draft: EpochReport) -> None:
        """Let the policy take in the epoch and decide the next; undo both where it cannot."""
        before = None if self.memory is None else dict(vars(self.memory))
        threshold = self.plan.threshold
        try:
            self._remember(draft)
            began = self.now()
            rule = self._rule(upcoming)
            # The old list goes before the new one comes: 4 bytes per kept sample, not 8.
            self._plan = None
            self._plan = self._decide(rule, upcoming)
            self._spent("plan", began)
        except Exception:
            if self.memory is not None and before is not None:
                vars(self.memory).clear()
                vars(self.memory).update(before)
            # A policy's fault must not cost the run: the epoch has not ended, and can be saved.
            if self._plan is None and self._one_table:
                self._plan = self._restored_plan(threshold)
            raise

    @lasting
    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes (``PruneEngine.resize``)."""
        if self.mode == "flow":
            raise PruneEngineError("resize() needs mode='epoch', whose epochs end")
        if self.recorder is not None:
            raise PruneEngineError(
                "resize() cannot go with a recording, whose samples are fixed: call "
                "engine.record(None) before it, and record(another path) after it"
            )
        if self.cursor or self._counted > self._epoch_mark:
            raise PruneEngineError(
                f"resize() must be called at the end of an epoch, right after end_epoch(), got "
                f"epoch {self.epoch} with {self.cursor} samples trained"
            )
        told = {
            "caller": PURPOSES.index("resize"),
            "num_samples": num_samples,
            "epoch": self.epoch,
        }
        row = torch.tensor([*told.values()], device=self.buffer.device)
        every = ranks.gather(row, self.process_group)
        ranks.agree(told, [host_ints(each) for each in every])
        if self.memory is not None:
            self.memory.resize(num_samples)  # raises before anything has changed
        self.buffer.resize(num_samples)
        self.num_samples = num_samples
        self._training = self._look = self._sealed = self._sealed_nominal = None
        rule = self._rule(self.epoch)
        self._plan = None
        self._plan = self._decide(rule, self.epoch)

    @lasting
    def state_dict(self) -> dict[str, Any]:
        """Return the state (``PruneEngine.state_dict``)."""
        counters = self._meet("state_dict", self.cursor)
        self._settle(counters)
        self._refresh_sum()
        buffer = self.buffer.state_dict()
        buffer["counters"] = counters.to("cpu", copy=True)
        thresholds = host_floats(self.plan.threshold)
        return state.save(self, buffer, thresholds, [dump_plan(plan) for plan in self.ahead])

    @lasting
    def load_state_dict(self, saved: state.Saved) -> None:
        """Restore a state (``PruneEngine.load_state_dict``)."""
        self._restore(state.check(self, saved))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as arguments and state (``copies``)."""
        return reduce_run(self)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that was checked."""
        if self.memory is not None:
            state.restore_memory(self.memory, saved)
        self.buffer.load_state_dict(saved["buffer"])
        self.history = History.from_state(saved["history"])
        self._training = self._look = None
        self._enters = 0
        self._begin_epoch(int(saved["epoch"]))
        self._steps = int(saved["steps"])
        self.seek(int(saved["cursor"]))
        # What the epoch serves, until a pass says so; a state of before has none.
        self._sealed, self._sealed_nominal = saved.get("served"), saved.get("nominal")
        if self._one_table and not ranks.alone(self.process_group):
            self._shared_records = self._count_records()
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

    def add_seconds(self, began: float, part: Part | None = None) -> float:
        """Count host seconds since ``began`` as the engine's, and as a part's; returns them."""
        if torch.compiler.is_compiling():
            return 0.0  # reading the total would compile the step anew whenever it has changed
        seconds = self.now() - began
        self.engine_seconds += seconds
        if part is not None:
            self.part_seconds[part] += seconds
        return seconds

    def _spent(self, part: Part, began: float) -> None:
        """Say what for seconds went that the caller counts as the engine's."""
        if not torch.compiler.is_compiling():
            self.part_seconds[part] += self.now() - began

    @property
    def constant_length(self) -> bool:
        """Whether pruning epochs flow through epochs of a constant length."""
        return self.flows

    @property
    def pass_start(self) -> int:
        """The position at which the latest pass began, or a pass would begin now."""
        serving = self._training if self._look is None else self._look
        if serving is None or serving.closed or serving.epoch != self.epoch:
            return self.cursor
        return serving.start

    def watch(self, dataset: Sized) -> None:
        """Look at a data set's length whenever a pass begins.

        Args:
            dataset: of N items; not kept alive.
        """
        self._data = [each for each in self._data if each() is not None]
        if all(each() is not dataset for each in self._data):
            self._data.append(weakref.ref(dataset))

    def begin_pass(self, align: int, shards: int) -> Serving:
        """Begin to serve what of the epoch has not been trained yet.

        A pass that begins while another one is being trained is a look: it changes nothing.

        Args:
            align: serve a multiple of this many positions.
            shards: ranks that share them.

        Returns:
            The pass; it draws from ``plan``.

        Raises:
            PruneEngineError: all of it was trained in this process: ``end_epoch`` was forgotten
                (edge case 11), and a pass without a batch would not say so; the run is over; or a
                data set no longer has N items.
        """
        self._check_data()
        cursor = self.cursor
        if self.mode == "epoch":
            self._check_served(cursor)
        world = ranks.world(self.process_group)[1]
        serving = Serving(self.epoch, cursor, align, shards, world, self._counted)
        current = self._training
        if current is None or current.closed or not self._current(current):
            idle = True
        else:
            idle = self._counted == current.mark
        if idle:
            self._start, self._from = cursor, self._counted
            self._training, self._look = serving, None
        else:
            self._look = serving
        return serving

    def replays(self, serving: Serving) -> None:
        """Take note that a pass begins with placeholders, which the loop must skip."""
        serving.replayed = self._attentive = True

    def check_begun(self) -> None:
        """Refuse to begin once more what was trained to its end in this process."""
        if self._enters and self.num_epochs is not None and self.epoch >= self.num_epochs:
            raise self._over()

    def _over(self) -> PruneEngineError:
        return PruneEngineError(
            f"the run is over: all its num_epochs={self.num_epochs} epochs were trained. An engine "
            "is for one training on one data set: make a new one for another run, fold or model"
        )

    def _check_data(self) -> None:
        for each in self._data:
            dataset = each()
            if dataset is not None and len(dataset) != self.num_samples:
                raise PruneEngineError(
                    f"the data set has {len(dataset)} items, the engine {self.num_samples}: call "
                    f"engine.resize({len(dataset)}) at the end of an epoch"
                )

    def _check_served(self, cursor: int) -> None:
        self.check_begun()
        if self._counted > self._epoch_mark and cursor >= self.served:
            raise PruneEngineError(
                f"epoch {self.epoch} is trained to its end: call end_epoch() before the next pass "
                "over the sampler, and iterate the data set itself to evaluate on it"
            )

    def flowed(self, length: int) -> int:
        """Return how much of an epoch of constant length was trained before a restart.

        Args:
            length: of the framework's epoch, over all ranks.

        Returns:
            Positions over all ranks; 0 once something was observed.
        """
        if not length or self._counted > self._epoch_mark:
            return 0
        return (self.history.samples_trained + self.cursor) % length

    def next_plan(self, plan: EpochPlan) -> EpochPlan | None:
        """Return the plan after another one (``mode="flow"``).

        It was decided when ``horizon`` of the epoch before had been trained: by the scores of then,
        whatever a loader has drawn ahead.

        Args:
            plan: what has been drawn to its end.

        Returns:
            The next plan; it becomes current when training has consumed those before it. None
            after the last.

        Raises:
            PruneEngineError: it is asked for before it is decided.
        """
        if self.num_epochs is not None and plan.epoch + 1 >= self.num_epochs:
            return None
        at = max(0, plan.epoch - self.epoch)
        if at >= len(self.ahead):
            raise PruneEngineError(
                f"the loader runs too far ahead: it has drawn epoch {plan.epoch} to its end when "
                f"{self.cursor} of {self.served} samples of epoch {self.epoch} were trained, and "
                f"the next one is decided at horizon={self.horizon} of an epoch: take fewer "
                "workers, a smaller prefetch_factor or a smaller horizon"
            )
        return self.ahead[at]

    @lasting
    def _flow_on(self) -> None:
        """Decide the next epoch at the horizon; after the last batch of the run, end that."""
        cursor, served = self.cursor, self.served
        if not self.ahead and cursor >= self.horizon * served:
            self._plan_ahead(force=True)
        if cursor >= served and self.num_epochs is not None and self.epoch + 1 == self.num_epochs:
            draft = self._audited("observe")
            self._remember(draft)
            self._enter(self.epoch + 1, draft)

    @lasting
    def _plan_ahead(self, *, force: bool = False) -> None:
        """Decide the epoch after the current one, if there is one."""
        upcoming = self.epoch + 1
        if self.ahead or (self.num_epochs is not None and upcoming >= self.num_epochs):
            return
        if force or self.horizon == 0.0:
            began = self.now()
            self._meet("next_plan")
            self._refresh_sum()
            self.ahead.append(self._decide(self._rule(upcoming), upcoming, ahead=True))
            self._spent("plan", began)  # the caller's seconds have these in them

    def _settle(self, counters: Tensor) -> None:
        """Correct the cursor by what is recorded, before it is saved.

        The count of observed positions lags behind where a step was skipped, and runs ahead where
        a batch was observed again from another tensor. The records tell, but for losses that were
        not finite, which are not recorded.
        """
        serving = self._training
        if serving is None or not self._current(serving) or not self._one_table:
            return
        cursor, world = self.cursor, serving.world
        last = self._last_trained(serving)
        if last < 0:
            return
        # Up to what is recorded and no further: batches need not be of one size, and what is served
        # again after a loss that was not finite is better than what is never served.
        found = min(self.served, self._start + -(-(last + 1 - self._start) // world) * world)
        behind = max(1, self._last.size) * world
        nonfinite = int(counters[1].item())
        if found > cursor or (cursor >= found + behind and not nonfinite):
            self._move(found)

    def _last_trained(self, serving: Serving) -> int:
        """Return the last position of the epoch whose sample is recorded, or -1."""
        stop = min(self.served, self._start + (serving.limit - self._from) * serving.world)
        floor = (self.epoch + 1) << 32
        while stop > self._start:
            first = max(self._start, stop - SCAN)
            samples = self.plan.order(range(first, stop)).to(torch.int64)
            seen = torch.nonzero(self.buffer.records[samples] >= floor)
            if seen.numel():
                return first + int(seen[-1].item())
            stop = first
        return -1

    @property
    def _one_table(self) -> bool:
        """Whether this rank holds every sample's record."""
        return True

    def _move(self, cursor: int) -> None:
        """Set the cursor within a pass that goes on."""
        excess = (
            self._counted
            - self._from
            - (cursor - self._start) // ranks.world(self.process_group)[1]
        )
        self._from += excess
        for serving in (self._training, self._look):
            if serving is not None:
                serving.mark += excess

    def seek(self, cursor: int) -> None:
        """Continue the epoch at a consumed cursor."""
        self._start, self._from = cursor, self._counted
        self._base, self._epoch_mark = cursor, self._counted
        self._sealed: int | None = None
        self._sealed_nominal: int | None = None
        if self.mode == "epoch":
            self._training = self._look = None

    @property
    def steps(self) -> int:
        """Batches observed in the run."""
        return self._steps

    def _rule(self, epoch: int) -> AnyRule:
        progress = Progress(epoch, epoch, self.num_epochs, self.seed)
        if self.memory is None:
            rule: object = self.policy.rule(self.buffer, progress)
        else:
            rule = self.policy.rule(self.buffer, progress, self.memory)
        checked = check_rule(self.policy, rule, epoch)
        if isinstance(checked, Selection) and checked.arrangement is not None:
            self._check_arranged()
        return checked

    def _check_arranged(self) -> None:
        """Refuse an arrangement that a state could not bring back."""
        name = type(self.policy).__name__
        if self.mode == "flow":
            # Plans are made ahead there, before the last batches are known, and saved as classes.
            raise ValueError(f"mode must be 'epoch' for {name}, got 'flow'")
        if self.memory is None or self.memory.arrangement() is None:
            got = "no memory" if self.memory is None else "None"
            raise ValueError(
                f"the memory of {name} must return from arrangement() what the Selection has, for "
                f"a restored run asks there, got {got}"
            )

    def _decide(self, rule: AnyRule, epoch: int, ahead: bool = False) -> EpochPlan:
        counts = self._cells() if isinstance(rule, LevelRule) else None
        return make_plan(self.buffer, rule, seed=self.seed, epoch=epoch, ahead=ahead, counts=counts)

    def _cells(self) -> Tensor:
        """Count the cells of all scores."""
        return self.buffer.cells()

    def _audit(self) -> Audit:
        return self.buffer.audit(self.epoch)

    def _remember(self, draft: EpochReport) -> None:
        """Tell recorder and memory of the epoch that ends: merged, audited and found whole."""
        if self.recorder is not None:
            began = self.now()
            self.recorder.record(self, draft)
            self._spent("recording", began)
        if self.memory is not None:
            began = self.now()
            self.memory.end_epoch(self.buffer, self.epoch)
            self._spent("plan", began)

    def _threshold(self) -> float:
        threshold = self.plan.threshold
        return float(threshold[0].item()) if threshold.numel() else float("nan")

    def _begin_epoch(self, epoch: int) -> None:
        over = self._counted - self._from - self._local()
        for serving in (self._training, self._look):
            if serving is not None:
                serving.mark += over  # what was counted too much is not of the new epoch
        if not (self.flows and self.num_epochs == epoch):  # its last step may look once more
            self._last = LastBatch()  # the same tensor in another epoch is another batch
        self.epoch = epoch
        self._overlap = self._shared_records = 0
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
        self._enters += 1
        self.history.append(report)
        return report

    @lasting
    def arrive(self, again: bool | None, size: int) -> None:
        """Make the plan that a batch was drawn from the current one (``mode="flow"``)."""
        if again:
            return
        left = self.served - self.cursor
        if self.done:
            return
        if left > 0:
            if size * ranks.world(self.process_group)[1] > left:
                raise PruneEngineError(
                    f"a batch of {size} goes beyond epoch {self.epoch}, which has {left} samples "
                    "left: make the sampler with align=batch_size * world size, and keep at least "
                    "that many samples"
                )
            return
        if self._training is not None and self._counted - self._from > self._local():
            return  # an older batch once more, from another tensor
        if not self.ahead:
            raise PruneEngineError(
                f"epoch {self.epoch} was trained to its end, and no other is decided: the batch is "
                "of no epoch of this engine"
            )
        draft = self._audited("observe")
        self._remember(draft)
        self._plan = self.ahead.pop(0)
        self._activate(self._plan)
        self._enter(self._plan.epoch, draft)
        self._plan_ahead()

    def _activate(self, plan: EpochPlan) -> None:
        self.buffer.activate(plan.weight_class, plan.weight_table, plan.epoch)

    def _meet(self, purpose: str, cursor: int = 0) -> Tensor:
        """Exchange records with the other ranks; return the counters of all together."""
        facts = {
            "caller": PURPOSES.index(purpose),
            "checksum of arguments": state.checksum(self),
            "epoch": self.epoch,
            "cursor": cursor,  # a state must have one; an epoch's end audits what was seen instead
            "samples planned": self.plan.num_kept,  # a policy may say different things on ranks
        }
        counters, group = self.buffer.counters, self.process_group
        offered = self._counted - self._epoch_mark
        if ranks.alone(group):
            self._offered = offered
            return self._exchange(counters, facts)
        # What a rank observed, and of how many samples, is told along with its counters.
        own = self._count_records() - self._shared_records if self._one_table else 0
        told = torch.tensor([offered, own], device=counters.device)
        merged = self._exchange(torch.cat([counters, told]), facts)
        self._offered, recorded = host_ints(merged[-2:])
        if self._one_table:
            after = self._count_records()
            self._overlap += recorded - (after - self._shared_records)
            self._shared_records = after
        return merged[:-2]

    def _exchange(self, counters: Tensor, facts: dict[str, int]) -> Tensor:
        records, group = self.buffer.records, self.process_group
        return ranks.exchange(records, counters, epoch=self.epoch, facts=facts, group=group)

    def _count_records(self) -> int:
        """Count the samples that are recorded in this epoch."""
        return int(torch.count_nonzero(self.buffer.records >= (self.epoch + 1) << 32).item())

    def _refresh_sum(self) -> None:
        if ranks.world(self.process_group)[1] > 1:  # alone, the running sum is exact
            self.buffer.refresh_sum()

    def _report(self, merged: Tensor, *, partial: bool = False) -> EpochReport:
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
        planned, due = self.plan.num_kept, self.served
        served = min(due, self.cursor) if partial else due
        trained = self.history.samples_trained + served
        nominal = self.nominal
        if served < due:
            nominal = round(nominal * served / due)
        nominal += self.history.nominal_trained
        return EpochReport(
            epoch=self.epoch,
            num_samples=self.num_samples,
            planned=planned,
            observed=counters.observed,
            served=served,
            dropped_tail=planned - due,
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
            repeated=repeats(self._offered, due - self._base, self._overlap),
            partial=partial,
        )
