# SPDX-License-Identifier: Apache-2.0
"""What policies over fixed batches remember: who is alive, and the activations of B-PAS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import weight_table
from prune_engine.epoch import ranks
from prune_engine.epoch.policy import Extras, Monitor, PolicyMemory, RunFacts
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import PruneEngineError
from prune_engine.ops.rule import Selection
from prune_engine.ops.to_host import host_ints
from prune_engine.policies.batches.base import BatchPolicy
from prune_engine.policies.batches.fixed import MEMBERS, FixedBatches, KeptBatches
from prune_engine.policies.batches.stability import statistic

if TYPE_CHECKING:
    from typing_extensions import Self

RANKS = MEMBERS - 1  # the order's epoch word of the random control's ranking


class BatchMemory(PolicyMemory):
    """The fixed batches of a run and which of them are alive.

    Args:
        policy: decides, once per epoch, who is alive.
        batches: all of them.

    Example:
        >>> from prune_engine import RandomBatches
        >>> fixed = FixedBatches(7, 3, False, 0, torch.device("cpu"), "auto")
        >>> BatchMemory(RandomBatches(3), fixed).arrangement().num_batches
        3
    """

    def __init__(self, policy: BatchPolicy, batches: FixedBatches) -> None:
        self.policy = policy
        self.batches = batches
        self.total: int | None = None  # epochs of the run
        self.process_group: Any = None
        self.alive = torch.ones(batches.num_batches, dtype=torch.bool, device=batches.device)
        self.delta: Tensor | None = None  # what the report calls the threshold
        self.counts: list[int] = []  # batches kept in each epoch, the current one's last
        self._kept: KeptBatches | None = None  # of ``alive``, listed when first asked for

    @classmethod
    def of(cls, memory: object) -> Self:
        """Return the run's memory as what a policy over batches made it.

        Args:
            memory: what the run passed to ``rule``.

        Returns:
            The same object.

        Raises:
            TypeError: another, or none: a rule over batches is not a function of scores alone.
        """
        if not isinstance(memory, cls):
            raise TypeError(f"memory must be a {cls.__name__}, got {type(memory).__name__}")
        return memory

    def begin_run(self, run: RunFacts) -> None:
        """Take note of the run, and decide its first epoch.

        Args:
            run: its length and its process group.
        """
        self.total, self.process_group = run.total, run.process_group
        self._settle(0)

    def drawn(self, count: int) -> Tensor:
        """Return the first so many batches of a random ranking, the same one in every epoch.

        Args:
            count: in 0..num_batches.

        Returns:
            bool [num_batches].
        """
        fixed = self.batches
        ranking = ops.order(
            torch.arange(fixed.num_batches, dtype=torch.int32, device=fixed.device),
            range(fixed.num_batches),
            seed=fixed.seed,
            epoch=RANKS,
            backend=fixed.backend,
        )
        chosen = torch.zeros_like(self.alive)
        chosen[ranking[:count].to(torch.int64)] = True
        return chosen

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Decide the next epoch.

        Args:
            buffer: not used.
            epoch: the epoch that ended.
        """
        self._settle(epoch + 1)

    def _settle(self, epoch: int) -> None:
        """Make the policy's decision of an epoch the current one, and count its batches."""
        self.alive, self.delta = self.policy.decide(self, epoch)
        self._kept = None
        self.counts = [*self.counts[:epoch], self.arrangement().num_batches]

    def arrangement(self) -> KeptBatches:
        """Return the batches of the current epoch; this reads their number from the device."""
        if self._kept is None:
            self._kept = self.batches.keep(self.alive, self.policy.shuffle_batches)
        return self._kept

    def nominal(self) -> int:
        """Return how many samples are in a batch at all."""
        return self.batches.dealt

    @property
    def exhausted(self) -> bool:
        """Whether every batch has been dropped for ever."""
        return self.batches.num_batches > 0 and self.arrangement().num_batches == 0

    def select(self) -> Selection:
        """Return the decision of the current epoch: weight 1 for the samples of living batches."""
        delta = self.delta
        thresholds = torch.empty(0) if delta is None else delta.to(torch.float32).reshape(1)
        return Selection(
            self.batches.classes(self.alive),
            weight_table(),
            thresholds,
            arrangement=self.arrangement(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything as tensors on the cpu and lists."""
        return {"alive": self.alive.to("cpu", copy=True), "counts": list(self.counts)}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {"alive": self.alive})
        if not isinstance(state.get("counts"), list):
            problems.append(f"counts: expected list, got {type(state.get('counts')).__name__}")
        return problems

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        self.alive = state["alive"].to(self.alive.device, copy=True)
        self._kept = None
        self.counts = list(state["counts"])


def tensor_problems(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """List the tensors of a state that are missing or of another shape or dtype.

    Args:
        state: what was saved.
        expected: tensors by name.

    Returns:
        One phrase per difference.

    Example:
        >>> tensor_problems({}, {"alive": torch.zeros(2)})
        ['alive: expected torch.float32 (2,), got NoneType']
    """
    problems: list[str] = []
    for name, have in expected.items():
        came = state.get(name)
        want = f"expected {have.dtype} {tuple(have.shape)}"
        if not isinstance(came, Tensor):
            problems.append(f"{name}: {want}, got {type(came).__name__}")
        elif came.shape != have.shape or came.dtype != have.dtype:
            problems.append(f"{name}: {want}, got {came.dtype} {tuple(came.shape)}")
    return problems


class StabilityMemory(BatchMemory):
    """What B-PAS remembers: this epoch's moments, X of the last three epochs, who is alive.

    ``moments`` [num_batches, L, 3] are of this rank's samples; they are merged over the ranks once,
    at the epoch's end, so that the std is that of the global batch and no step has a collective.

    Args:
        policy: decides, once per epoch, who is alive.
        batches: all of them.
        unbiased: divide by count - 1.

    Example:
        >>> from prune_engine import BPAS
        >>> fixed = FixedBatches(6, 3, False, 0, torch.device("cpu"), "auto")
        >>> memory = StabilityMemory(BPAS(3), fixed, unbiased=True)
        >>> memory.commit(torch.ones(1, 3, dtype=torch.float64), fixed.members(torch.tensor([1])))
        >>> memory.seen.tolist()
        [0, 3, 0]
    """

    NAMES = ("now", "before", "earlier")

    def __init__(self, policy: BatchPolicy, batches: FixedBatches, *, unbiased: bool) -> None:
        super().__init__(policy, batches)
        self.unbiased = unbiased
        self.monitor: Monitor | None = None
        count, device = batches.num_batches, batches.device
        unknown = torch.full((count,), torch.nan, dtype=torch.float64, device=device)
        self.now, self.before, self.earlier = unknown, unknown.clone(), unknown.clone()
        # One row more takes what belongs to no batch; the number of layers is not known yet.
        self.moments = torch.zeros(count + 1, 0, 3, dtype=torch.float64, device=device)
        self.seen = torch.zeros(count + 1, dtype=torch.int64, device=device)
        self.mixed = torch.zeros(1, dtype=torch.int64, device=device)
        self.decided = 0  # the last epoch that X decided
        self._parts: Tensor | None = None  # of the batch that is being recorded

    def attach(self, monitor: Monitor) -> bool:
        """Take the monitor.

        Args:
            monitor: of the model whose losses are observed.

        Returns:
            True.
        """
        self.monitor = monitor
        return True

    def before_record(self, indices: Tensor) -> None:
        """Take what the monitor saw.

        Args:
            indices: not used.
        """
        self._parts = self.take()

    def after_record(self, indices: Tensor, losses: Tensor, score: Tensor, extras: Extras) -> None:
        """Note the activations of a batch that was recorded.

        Args:
            indices: [B].
            losses: not used.
            score: not used.
            extras: not used.
        """
        assert self._parts is not None
        self.commit(self._parts, indices)
        self._parts = None

    def take(self) -> Tensor:
        """Take the moments of the forward pass that led to the losses, before they are recorded.

        Returns:
            float64 [L, 3].

        Raises:
            PruneEngineError: no monitor is attached, it saw nothing, or other layers than before.
        """
        if self.monitor is None:
            raise PruneEngineError(
                "BPAS looks at activations: engine.attach(pe.ActivationMonitor(model)) before the "
                "first observe()"
            )
        parts = self.monitor.take()
        layers = self.moments.shape[1]
        if layers not in (0, parts.shape[0]):
            raise PruneEngineError(
                f"the monitor must see the same layers in every forward pass, got {parts.shape[0]} "
                f"after {layers}"
            )
        return parts

    def commit(self, parts: Tensor, indices: Tensor) -> None:
        """Put a forward pass's moments into its batch's place; the host does not wait.

        Args:
            parts: float64 [L, 3], from ``take``.
            indices: [M], the samples of the pass: a fixed batch, this rank's share of one, or a
                micro-batch of that.
        """
        size = indices.shape[0]
        if size == 0:
            return
        if self.moments.shape[1] != parts.shape[0]:
            shape = (self.moments.shape[0], parts.shape[0], 3)
            self.moments = torch.zeros(shape, dtype=torch.float64, device=self.moments.device)
        # An index out of range is refused by observe on the cpu and counted by it on a device.
        safe = indices.clamp(0, self.batches.num_samples - 1)
        slots = self.batches.batch_of.index_select(0, safe)
        slot = slots[:1].to(torch.int64)
        self.mixed += (slots != slots[:1]).any()
        self.seen.index_add_(0, slot, torch.full_like(slot, size))
        if size * ranks.world(self.process_group)[1] < self.batches.batch_size:
            # A micro-batch, or the incomplete batch: it joins what is there already.
            parts = ops.merge_moments(torch.stack([self.moments[slot][0], parts]))
        self.moments.index_copy_(0, slot, parts[None])

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Merge the ranks, compute X of every batch that was served whole, and decide.

        Args:
            buffer: not used.
            epoch: the epoch that ended.

        Raises:
            PruneEngineError: samples of different fixed batches came in one pass.
        """
        moments, seen, mixed = self._merged()
        (wrong,) = host_ints(mixed)
        if wrong:
            raise PruneEngineError(
                f"epoch {epoch}: {wrong} calls of observe() had samples of different fixed "
                f"batches; the loader must cut the sampler's stream into batches of "
                f"{self.batches.batch_size} over all ranks (or a divisor, for accumulation)"
            )
        count = self.batches.num_batches
        x = statistic(moments[:count], unbiased=self.unbiased)
        whole = seen[:count] == self.batches.sizes()
        self.earlier, self.before = self.before, self.now
        self.now = torch.where(whole, x, torch.nan)
        self._reset()
        super().end_epoch(buffer, epoch)
        if epoch >= 1:
            self.decided = epoch + 1

    def _merged(self) -> tuple[Tensor, Tensor, Tensor]:
        group = self.process_group
        moments = ops.merge_moments(ranks.gather(self.moments, group))
        seen = ranks.gather(self.seen, group).sum(0)
        return moments, seen, ranks.gather(self.mixed, group).sum(0)

    def _reset(self) -> None:
        self.moments.zero_()
        self.seen.zero_()
        self.mixed.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything; with several ranks a collective, the same on each."""
        moments, seen, mixed = self._merged()
        tensors = {"moments": moments, "seen": seen, "mixed": mixed}
        tensors.update({name: getattr(self, name) for name in self.NAMES})
        saved = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        return {**super().state_dict(), **saved, "decided": self.decided}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        expected = {name: getattr(self, name) for name in (*self.NAMES, "seen", "mixed")}
        moments = state.get("moments")
        layers = moments.shape[1] if isinstance(moments, Tensor) and moments.dim() == 3 else 0
        expected["moments"] = self.moments.new_empty(self.moments.shape[0], layers, 3)
        problems = [*super().state_problems(state), *tensor_problems(state, expected)]
        if not isinstance(state.get("decided"), int):
            problems.append(f"decided: expected int, got {type(state.get('decided')).__name__}")
        return problems

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        super().load_state_dict(state)
        for name in self.NAMES:
            getattr(self, name).copy_(state[name])
        self.decided = int(state["decided"])
        self.moments = state["moments"].to(self.moments.device, copy=True)
        self.seen.copy_(state["seen"])
        self.mixed.copy_(state["mixed"])
        if ranks.world(self.process_group)[0] != 0:  # they are of all ranks together
            self._reset()
