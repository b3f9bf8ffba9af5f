# SPDX-License-Identifier: Apache-2.0
"""What B-PAS remembers: the activations of every batch, this epoch's and those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import MAX_EPOCH
from prune_engine.epoch import ranks
from prune_engine.epoch.fits import int_problems, tensor_problems
from prune_engine.epoch.policy import Extras, Monitor
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.errors import PruneEngineError
from prune_engine.lasting import lasting
from prune_engine.ops.to_host import host_ints
from prune_engine.policies.batches.base import BatchMemory, BatchPolicy
from prune_engine.policies.batches.fixed import FixedBatches
from prune_engine.policies.batches.stability import statistic


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

    @lasting
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
        problems += int_problems(state, {"decided": MAX_EPOCH})
        if not problems:
            wrong = [name for name in ("seen", "mixed") if bool((state[name] < 0).any())]
            problems += [f"{name}: expected at least 0, got less" for name in wrong]
        return problems

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        super().load_state_dict(state)
        # Nothing is written over: a run puts back what it had where the rest does not fit.
        for name in (*self.NAMES, "moments", "seen", "mixed"):
            setattr(self, name, state[name].to(self.moments.device, copy=True))
        self.decided = int(state["decided"])
        if ranks.world(self.process_group)[0] != 0:  # they are of all ranks together
            self._reset()
