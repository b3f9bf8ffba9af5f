# SPDX-License-Identifier: Apache-2.0
"""The engine: composes policies, plans and the score buffer around a training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prune_engine import distributed, state
from prune_engine.buffer import ScoreBuffer
from prune_engine.checks import check_batch
from prune_engine.coverage import MODES, enforce_coverage
from prune_engine.dataset import IndexedDataset
from prune_engine.history import History
from prune_engine.losses import reduce_losses
from prune_engine.plan import EpochPlan, dump_plan, make_plan, restore_ahead, restore_plan
from prune_engine.policies import Policy, Progress
from prune_engine.sampler import PruneSampler, serve_count
from prune_engine.schedule import VirtualScheduler
from prune_engine.types import MAX_SEED, EpochReport, NonFiniteLossError, PruneEngineError, Rule

Reduction = Literal["mean", "sum", "none", "weighted_mean"]


class PruneEngine:
    """Skip the samples a model has already learned, without making the host wait.

    Scores live on the device; each batch records its losses in one launch (``observe``), each
    epoch's end decides the next one (``end_epoch``). Same seed, same scores: same samples, same
    order, on any backend, thread count or world size.

    Args:
        dataset_or_num_samples: a sized data set, or N.
        policy: such as ``InfoBatch(prune_ratio=0.5, delta=0.875)``.
        num_epochs: length of the run in epochs (``mode="epoch"``).
        total_steps: length of the run in ``observe`` calls (``mode="steps"``).
        mode: ``"epoch"``: an epoch is what the plan keeps. ``"steps"``: the sampler has a constant
            length and pruning epochs flow through it, for frameworks that fix an epoch's length.
        seed: in 0..2^63-1; the library touches no global random state.
        device: where scores live and losses come from; default torch's default device.
        backend: ``"auto"``, ``"cpu"`` or ``"reference"``.
        process_group: the data-parallel group; default all ranks.
        on_nonfinite: ``"skip"`` keeps the last finite score; ``"raise"`` stops.
        coverage: ``"raise"``, ``"warn"`` or ``"ignore"`` when the samples seen in an epoch are not
            the planned ones.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the policy needs a length that is missing.

    Example:
        >>> from prune_engine import KeepAll
        >>> engine = PruneEngine(4, KeepAll(), num_epochs=1)
        >>> for epoch in engine.epochs():
        ...     for index in engine.sampler():
        ...         _ = engine.observe(torch.ones(1), torch.tensor([index]))
        >>> engine.history[0].num_seen
        4
    """

    def __init__(
        self,
        dataset_or_num_samples: Any,
        policy: Policy,
        *,
        num_epochs: int | None = None,
        total_steps: int | None = None,
        mode: Literal["epoch", "steps"] = "epoch",
        seed: int = 0,
        device: torch.device | str | None = None,
        backend: str = "auto",
        process_group: Any = None,
        on_nonfinite: Literal["skip", "raise"] = "skip",
        coverage: Literal["raise", "warn", "ignore"] = "raise",
    ) -> None:
        self.num_samples = state.sample_count(dataset_or_num_samples)
        state.check_choice("mode", mode, ("epoch", "steps"))
        state.check_choice("on_nonfinite", on_nonfinite, ("skip", "raise"))
        state.check_choice("coverage", coverage, MODES)
        state.check_count("num_epochs", num_epochs)
        state.check_count("total_steps", total_steps)
        if not isinstance(policy, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"policy must be a Policy, got {type(policy).__name__}")
        if isinstance(seed, bool) or not isinstance(seed, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be in 0..2^63-1, got {seed}")
        total = total_steps if mode == "steps" else num_epochs
        length = "total_steps" if mode == "steps" else "num_epochs"
        if total is None and (policy.needs_total or mode == "steps"):
            raise ValueError(f"{length} must be given for {policy} in mode={mode!r}, got None")
        self.policy = policy
        self.num_epochs = num_epochs
        self.total_steps = total_steps
        self.mode: Literal["epoch", "steps"] = mode
        self.seed = seed
        self.process_group = process_group
        self.on_nonfinite: Literal["skip", "raise"] = on_nonfinite
        self.coverage: Literal["raise", "warn", "ignore"] = coverage
        self.buffer = ScoreBuffer(self.num_samples, device=device, backend=backend)
        self.history = History()
        self.engine_seconds = 0.0
        self.epoch = 0
        self._total = total
        self._steps = 0
        self._align = self._shards = 1
        self._ahead: list[EpochPlan] = []
        self._begin_epoch(0)
        began = self.now()
        plan = make_plan(self.buffer, self._rule(0), seed=seed, epoch=0)
        self._plan: EpochPlan | None = plan
        self.add_seconds(began)

    # The loop ---------------------------------------------------------------------------------

    def observe(
        self,
        losses: Tensor,
        indices: Tensor,
        *,
        score: Tensor | None = None,
        reduction: Reduction = "mean",
        denom: Tensor | float | None = None,
    ) -> Tensor:
        """Record a batch's losses and return the loss to call ``backward`` on.

        ``mean``: ``sum(w_i loss_i) / B``, divided by B and not by the sum of weights (InfoBatch,
        ICLR 2024, eq. 9). One launch, no host sync; the caller's tensors are not changed.

        Args:
            losses: [B] float16 | bfloat16 | float32 | float64, from ``reduction="none"``.
            indices: [B] int64 | int32, the dataset positions that came with the batch.
            score: [B], what is recorded instead of the losses: the unsmoothed loss where the loss
                is label-smoothed.
            reduction: ``"mean"``, ``"sum"``, ``"none"`` or ``"weighted_mean"`` (by sum of weights).
            denom: divide the weighted sum by this (a token count) instead of B.

        Returns:
            A scalar, or [B] in the order of the batch for ``"none"``; in the dtype of ``losses``.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or device does not fit, or the loss is a scalar.
            IndexError: an index is out of range (on a device it is raised by ``end_epoch``).
            NonFiniteLossError: on the cpu, with ``on_nonfinite="raise"``; nothing is recorded then.
        """
        began = self.now()
        if isinstance(indices, Tensor) and indices.device != self.buffer.device:  # pyright: ignore[reportUnnecessaryIsInstance]
            indices = indices.to(self.buffer.device, non_blocking=True)
        if self._ahead or self.on_nonfinite == "raise":
            check_batch(losses, indices, score, self.buffer.device)
        if self._ahead:
            self._flow(losses.shape[0])
        if self.on_nonfinite == "raise" and losses.is_cpu:
            scored = losses if score is None else score
            finite = torch.isfinite(scored)
            if not bool(finite.all()):
                bad = indices[~finite.to(indices.device)][0].item()
                raise NonFiniteLossError(f"losses must be finite, got another for sample {bad}")
        rescaled, weights = self.buffer.observe(losses, indices, score=score)
        self._local += losses.shape[0]
        self._steps += 1
        loss = reduce_losses(rescaled, weights, reduction, denom)
        self.add_seconds(began)
        return loss

    def epochs(self) -> Iterator[int]:
        """Iterate over the epochs, ending each after the loop's body; continues a restored run.

        Returns:
            The epoch numbers from the current one to ``num_epochs - 1``.

        Raises:
            PruneEngineError: the run has no ``num_epochs``.
        """
        if self.num_epochs is None or self.mode == "steps":
            raise PruneEngineError("epochs() needs num_epochs and mode='epoch'")
        while self.epoch < self.num_epochs:
            current = self.epoch
            yield current
            if self.epoch == current:  # the body may have ended it
                self.end_epoch()

    def end_epoch(self) -> EpochReport:
        """End the epoch: merge ranks, audit, decide the next. The only collective.

        Returns:
            What the epoch did and the next will do; nothing has changed if this raises.

        Raises:
            IndexError: a device met indices out of range.
            CoverageError: the samples seen are not the planned ones.
            NonFiniteLossError: with ``on_nonfinite="raise"``.
        """
        if self.mode == "steps":
            raise PruneEngineError("end_epoch() is for mode='epoch'; the sampler ends epochs here")
        began = self.now()
        distributed.merge_records(self.buffer.records, self.process_group)
        draft = self._report()
        enforce_coverage(draft, self.coverage)
        # The old list goes before the new one comes: 4 bytes per kept sample, not 8.
        upcoming = self.epoch + 1
        rule = self._rule(upcoming)
        self._plan = None
        self._plan = make_plan(self.buffer, rule, seed=self.seed, epoch=upcoming)
        self.add_seconds(began)
        return self._enter(upcoming, draft)

    # Data -------------------------------------------------------------------------------------

    def dataset(self, dataset: Any) -> IndexedDataset:
        """Wrap a data set so that each item carries its position.

        Args:
            dataset: map-style, of length N.

        Returns:
            The wrapped data set (the same object where it is wrapped already).

        Raises:
            ValueError: its length is not N.
        """
        wrapped = dataset if isinstance(dataset, IndexedDataset) else IndexedDataset(dataset)
        if len(wrapped) != self.num_samples:
            raise ValueError(f"dataset must have {self.num_samples} items, got {len(wrapped)}")
        return wrapped

    def sampler(self, shard: distributed.Shard = "auto", align: int | None = None) -> PruneSampler:
        """Return a sampler of this engine's order.

        Args:
            shard: ``"auto"`` (the rank of ``torch.distributed``; everything under Accelerate),
                ``"none"`` or (rank, world size).
            align: serve a multiple of this many positions over all ranks; default 1.

        Returns:
            A sampler for ``DataLoader(sampler=...)``.
        """
        return PruneSampler(self, shard=shard, align=1 if align is None else align)

    def loader(
        self, dataset: Any, batch_size: int, *, align: int | None = None, **options: Any
    ) -> DataLoader[Any]:
        """Return a ``DataLoader`` whose batches end with their indices.

        Args:
            dataset: map-style, of length N.
            batch_size: per rank.
            align: default ``batch_size * world size``: every batch is full.
            options: for ``DataLoader``: workers, collate_fn, ...

        Returns:
            The loader; ``len`` is right in every epoch.

        Raises:
            TypeError: an option decides the order, which is the engine's.
        """
        for name in ("sampler", "batch_sampler", "shuffle"):
            if options.get(name) is not None:
                raise TypeError(f"{name} must not be given: the engine decides the order")
        state.check_count("batch_size", batch_size)
        if align is None:
            align = batch_size * distributed.world(self.process_group)[1]
        sampler = self.sampler(align=align)
        return DataLoader(self.dataset(dataset), batch_size, sampler=sampler, **options)

    # What is known ----------------------------------------------------------------------------

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's plan."""
        if self._plan is None:
            raise PruneEngineError("the last end_epoch() failed while planning; restore a state")
        return self._plan

    @property
    def cursor(self) -> int:
        """Positions of this epoch consumed so far over all ranks: what was trained."""
        return self._start + self._local * distributed.world(self.process_group)[1]

    @property
    def served(self) -> int:
        """Positions of this epoch that are served over all ranks; the rest is the dropped tail."""
        return serve_count(self.plan.num_kept, self._align, self._shards, self._start)

    @property
    def progress(self) -> float:
        """The share of nominal work done, in [0, 1]: epochs (or steps) over the run's length."""
        if self._total is None:
            raise PruneEngineError("progress needs num_epochs, which was not given")
        if self.mode == "steps":
            return min(1.0, self._steps / self._total)
        within = min(1.0, self.cursor / self.served) if self.served else 0.0
        return min(1.0, (self.epoch + within) / self._total)

    def wrap_scheduler(self, scheduler: Any, total_steps: int) -> VirtualScheduler:
        """Make a learning-rate schedule follow the data instead of the count of steps.

        Args:
            scheduler: any scheduler made for ``total_steps``.
            total_steps: the nominal steps: full epochs times full batches.

        Returns:
            An object to ``step()`` after each optimizer step (``schedule.VirtualScheduler``).
        """
        if self._total is None:
            raise ValueError("num_epochs must be given to wrap a scheduler, got None")
        return VirtualScheduler(scheduler, total_steps, lambda: self.progress)

    def scores(self) -> Tensor:
        """Return the last score of every sample, float32 [N], nan where never seen (a copy)."""
        return self.buffer.scores

    def metrics(self) -> dict[str, float]:
        """Return the last ended epoch as slash-named numbers for any logger; empty before it."""
        if not self.history:
            return {}
        last = self.history[-1]
        row = {f"prune/{name}": float(value) for name, value in last.as_dict().items()}
        return {**row, "prune/saved_fraction": last.saved_fraction}

    def state_dict(self) -> dict[str, Any]:
        """Return everything a restart needs, as tensors and plain data (``weights_only`` safe).

        Right at any batch: the cursor is the consumed one, the plan is stored. With several ranks
        this is a collective, for scores of the current epoch live on the rank that saw them.

        Returns:
            A new dictionary, the same on every rank and independent of the world size.
        """
        distributed.merge_records(self.buffer.records, self.process_group)
        buffer = self.buffer.state_dict()
        buffer["counters"] = distributed.merge_counters(
            self.buffer.counters, self.process_group
        ).to("cpu", copy=True)
        ahead = [dump_plan(plan) for plan in self._ahead]
        return state.save(self, buffer, self.plan.threshold.to("cpu", copy=True), ahead)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state; all or nothing.

        Args:
            saved: what ``state_dict`` returned, in this or another world size.

        Raises:
            StateMismatchError: it lists every difference; nothing has changed then.
        """
        state.check(self, saved)
        self.buffer.load_state_dict(saved["buffer"])
        self.history = History.from_state(saved["history"])
        self._begin_epoch(int(saved["epoch"]))
        self._steps = int(saved["steps"])
        thresholds = saved["threshold"].to(self.buffer.device)
        self._plan = restore_plan(self.buffer, thresholds, seed=self.seed, epoch=self.epoch)
        self._ahead = [restore_ahead(self.buffer, row, seed=self.seed) for row in saved["ahead"]]
        if distributed.world(self.process_group)[0] == 0:  # they are of all ranks together
            self.buffer.counters.copy_(saved["buffer"]["counters"])
        self.seek(int(saved["cursor"]))

    # What the sampler asks --------------------------------------------------------------------

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

    def drawing_plan(self) -> tuple[EpochPlan, int]:
        """Return the plan to draw from and the position to start at."""
        return self.plan, self.cursor if self.mode == "steps" else self._start

    def drew(self, align: int, shards: int) -> None:
        """Note how a sampler cuts the epochs' tails."""
        self._align, self._shards = align, shards

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
        if at == len(self._ahead):
            began = self.now()
            distributed.merge_records(self.buffer.records, self.process_group)
            upcoming = plan.epoch + 1
            self._ahead.append(
                make_plan(
                    self.buffer, self._rule(upcoming), seed=self.seed, epoch=upcoming, ahead=True
                )
            )
            self.add_seconds(began)
        return self._ahead[at]

    def seek(self, cursor: int) -> None:
        """Continue the epoch at a consumed cursor."""
        self._start, self._local = cursor, 0

    @property
    def steps(self) -> int:
        """Batches observed in the run."""
        return self._steps

    # Inside -----------------------------------------------------------------------------------

    def _rule(self, epoch: int) -> Rule:
        done = self._steps if self.mode == "steps" else epoch
        return self.policy.rule(self.buffer, Progress(epoch, done, self._total))

    def _threshold(self) -> float:
        threshold = self.plan.threshold
        return float(threshold[0].item()) if threshold.numel() else float("nan")

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._start = self._local = 0
        self._seconds_before = self.engine_seconds
        self.buffer.reset_counters()

    def _enter(self, epoch: int, draft: EpochReport) -> EpochReport:
        """Finish the report of the epoch that ended and begin the next, whose plan is there."""
        report = replace(
            draft,
            next_planned=self.plan.num_kept,
            next_threshold=self._threshold(),
            engine_seconds=self.engine_seconds - self._seconds_before,
        )
        self._begin_epoch(epoch)
        self.history.append(report)
        return report

    def _flow(self, size: int) -> None:
        """Make the plan that a batch was drawn from the current one (``mode="steps"``)."""
        left = self.served - self.cursor
        if left > 0:
            if size * distributed.world(self.process_group)[1] > left:
                raise PruneEngineError(
                    f"a batch of {size} goes beyond epoch {self.epoch}, which has {left} samples "
                    "left: make the sampler with align=batch_size * world size, and keep at least "
                    "that many samples"
                )
            return
        distributed.merge_records(self.buffer.records, self.process_group)
        draft = self._report()
        enforce_coverage(draft, self.coverage)
        self._plan = self._ahead.pop(0)
        self.buffer.activate(self._plan.weight_class, self._plan.weight_table, self._plan.epoch)
        self._enter(self._plan.epoch, draft)

    def _report(self) -> EpochReport:
        """Audit the epoch that ends; the figures of the next are still to come."""
        merged = distributed.merge_counters(self.buffer.counters, self.process_group)
        counters = self.buffer.read_counters(merged)
        if counters.out_of_range:
            raise IndexError(
                f"indices must be in 0..{self.num_samples - 1}: {counters.out_of_range} were not "
                f"in epoch {self.epoch}, the smallest {counters.bad_index}"
            )
        if counters.nonfinite and self.on_nonfinite == "raise":
            raise NonFiniteLossError(
                f"losses must be finite, got {counters.nonfinite} that were not in epoch "
                f"{self.epoch}"
            )
        audit = self.buffer.audit(self.epoch)
        planned, served = self.plan.num_kept, self.served
        trained = self.history.samples_trained + served
        nominal = serve_count(self.num_samples, self._align, self._shards)
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
