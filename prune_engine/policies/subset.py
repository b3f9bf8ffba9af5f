# SPDX-License-Identifier: Apache-2.0
"""Subset: train what was chosen elsewhere, with the weights that it brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prune_engine.bands import NUM_CLASSES, weight_table
from prune_engine.epoch import ranks
from prune_engine.epoch.fits import class_problems, int_problems, table_problems, tensor_problems
from prune_engine.epoch.fits import weighed as weighed_in
from prune_engine.epoch.per_sample import PerSample
from prune_engine.epoch.policy import Policy, PolicyMemory, Progress, RunFacts
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import check_count
from prune_engine.ops.rule import AnyRule, Rule, Selection
from prune_engine.ops.to_host import host_floats, host_ints
from prune_engine.ops.weights import weights_on
from prune_engine.plain import store_plain

Chosen = tuple[Any, Any]  # indices [M]; weights [M], or None
Choose = Callable[[int, Tensor], Chosen]


def weigh(indices: PerSample, weights: PerSample | None, num_samples: int) -> Selection:
    """Turn a subset and its weights into weight classes.

    Up to 254 weights have a class each. Of more, ``key >> shift`` of the positive floats, with the
    smallest shift that needs no more than 254 classes; a class weighs the mean of its members, so
    that the sum of all weights stays (SEMANTICS 3.14).

    Args:
        indices: distinct, in 0..N-1.
        weights: as many, all above 0; None: 1 each.
        num_samples: N.

    Returns:
        The selection, on the cpu.

    Raises:
        ValueError: they do not fit together.

    Example:
        >>> chosen = weigh(PerSample([2, 0]), PerSample([1.5, 3.0]), 3)
        >>> chosen.weight_class.tolist(), chosen.weight_table
        ([3, 0, 2], (0.0, 1.0, 1.5, 3.0))
    """
    cpu = torch.device("cpu")
    least, most = indices.bounds()
    if not indices.integral or least < 0 or most >= max(1, num_samples):
        raise ValueError(f"indices must be integers in 0..{num_samples - 1}, got {least} to {most}")
    if not indices.distinct():
        raise ValueError("indices must be distinct, got one twice: give it twice the weight")
    classes = torch.zeros(num_samples, dtype=torch.uint8)
    places = indices.on(cpu)
    if weights is None:
        classes[places] = 1
        return Selection(classes, weight_table())
    if len(weights) != len(indices):
        raise ValueError(f"weights must be {len(indices)}, one for each index, got {len(weights)}")
    if len(weights) and not weights.bounds()[0] > 0:
        raise ValueError(f"weights must be above 0, got {weights.bounds()[0]}")
    kinds, table = _classes_of(weights.array.astype(np.float32))
    classes[places] = kinds
    return Selection(classes, weight_table(*table))


def _classes_of(values: NDArray[np.float32]) -> tuple[Tensor, list[float]]:
    """Return the class of each weight from 2 on, and the mean weight of each class."""
    # Of positive floats the bits ascend as they do.
    keys = torch.from_numpy(values).view(torch.int32).to(torch.int64)  # pyright: ignore[reportUnknownMemberType]
    shift, ascending = 0, np.unique(keys.numpy())
    while len(ascending) > NUM_CLASSES - 2:
        shift, ascending = shift + 1, np.unique(ascending >> 1)
    levels = torch.from_numpy(ascending)  # pyright: ignore[reportUnknownMemberType]
    kinds = torch.searchsorted(levels, keys >> shift)
    nothing = torch.zeros(len(levels), dtype=torch.float64)
    wide = torch.from_numpy(values).to(torch.float64)  # pyright: ignore[reportUnknownMemberType]
    sums = nothing.index_add(0, kinds, wide)
    counts = nothing.index_add(0, kinds, torch.ones_like(wide))
    return (kinds + 2).to(torch.uint8), host_floats(sums / counts)


@dataclass(frozen=True)
class Subset(Policy):
    """Train a subset that was chosen elsewhere, in every epoch, with its weights.

    For coresets: CRAIG's gamma and GradMatch's w multiply the losses (Mirzasoleiman et al. 2020,
    Killamsetty et al. 2021). Normalise them to a mean of 1 to keep the learning rate; up to 254
    different weights are exact, of more see ``weigh``.

    Args:
        indices: the samples, distinct: a ``PerSample``, tensor, array or list.
        weights: one for each, above 0; None: 1.

    Raises:
        TypeError: they are no numbers.
        ValueError: they do not fit together.

    Example:
        >>> Subset([0, 2, 5], [1.0, 0.5, 1.5]).describe()["policy"]
        'Subset'
    """

    indices: PerSample
    weights: PerSample | None = None

    def __post_init__(self) -> None:
        for name in ("indices", "weights"):
            given: Any = getattr(self, name)
            if given is not None and not isinstance(given, PerSample):
                object.__setattr__(self, name, PerSample(given))
        weigh(self.indices, self.weights, int(self.indices.bounds()[1]) + 1)  # what can be checked

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Selection:
        """Return the subset.

        Args:
            buffer: says how many samples there are and where tensors live.
            progress: not used.
            memory: there is none.

        Returns:
            The same decision in every epoch.

        Raises:
            ValueError: an index is not of this data set.
        """
        chosen = weigh(self.indices, self.weights, buffer.num_samples)
        return Selection(chosen.weight_class.to(buffer.device), chosen.weight_table)


class ReselectMemory(PolicyMemory):
    """The subset at present, as weight classes and their table: 1 byte per sample.

    Args:
        policy: says who chooses, and when.
        buffer: says how many samples there are and where tensors live.
    """

    def __init__(self, policy: Reselect, buffer: ScoreBuffer) -> None:
        self.policy = policy
        self.chosen = buffer.weight_class.clone()
        self.table = weights_on(weight_table(), buffer.device)
        self.decided = False
        self.group: Any = None

    def begin_run(self, run: RunFacts) -> None:
        """Take note of the ranks.

        Args:
            run: says which.
        """
        self.group = run.process_group

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Let the subset be chosen anew where its time has come.

        Args:
            buffer: the scores.
            epoch: the epoch that ended.

        Raises:
            ValueError: what was chosen does not fit, or ranks chose differently.
        """
        if (epoch + 1 - self.policy.start) % self.policy.every or epoch + 1 < self.policy.start:
            return
        indices, weights = self.policy.choose(epoch + 1, buffer.scores)
        given = None if weights is None else PerSample(weights)
        found = weigh(PerSample(indices), given, buffer.num_samples)
        self.chosen = found.weight_class.to(buffer.device)
        self.table = weights_on(found.weight_table, buffer.device)
        self.decided = True
        if not ranks.alone(self.group):
            self._agree()

    def _agree(self) -> None:
        """Refuse subsets that differ between ranks, told by what does not depend on a device."""
        numbers = torch.arange(1, self.chosen.shape[0] + 1, device=self.chosen.device)
        bits, entries = self.table.view(torch.int32).long(), torch.arange(1, NUM_CLASSES + 1)
        told = [(self.chosen.long() * numbers).sum(), (bits * entries.to(bits.device)).sum()]
        facts = torch.stack(told)
        every = [host_ints(row) for row in ranks.gather(facts, self.group)]
        if any(row != every[0] for row in every):
            raise ValueError("choose must return the same subset on every rank, got others")

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything on the cpu."""
        return {
            "chosen": self.chosen.to("cpu", copy=True),
            "table": self.table.to("cpu", copy=True),
            "decided": int(self.decided),
        }

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {"chosen": self.chosen, "table": self.table})
        problems += int_problems(state, {"decided": 1})
        problems = problems or table_problems("table", state["table"])
        return problems or class_problems("chosen", state["chosen"], weighed_in(state["table"]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        self.chosen = state["chosen"].to(self.chosen.device, copy=True)
        self.table = state["table"].to(self.table.device, copy=True)
        self.decided = bool(state["decided"])


@dataclass(frozen=True)
class Reselect(Policy):
    """Train a subset with weights, chosen anew every R epochs by a function of yours.

    What CRAIG and GradMatch do during training (every epoch, or every 20): the function sees the
    epoch and the last scores, may look at the model it closes over, and returns indices and
    weights. The first ``start`` epochs are full. The function is no part of a saved state but for
    its module and name; what it chose is.

    Args:
        choose: ``choose(epoch, scores) -> (indices, weights or None)``; on several ranks it must
            return the same on each, which is checked.
        every: R, at least 1.
        start: at least 1: the first epoch with a subset.

    Raises:
        TypeError: choose cannot be called or has no name.
        ValueError: a number is out of range.

    Example:
        >>> def hardest(epoch, scores):
        ...     return scores.topk(2).indices, [1.5, 0.5]
        >>> Reselect(hardest, every=5).describe()["choose"].endswith(":hardest")
        True
    """

    choose: Choose
    every: int = 1
    start: int = field(default=1)

    def __post_init__(self) -> None:
        store_plain(self, "every", "start")
        if not callable(self.choose) or not hasattr(self.choose, "__qualname__"):
            raise TypeError(
                f"choose must be a named function (epoch, scores) -> (indices, weights), got "
                f"{self.choose!r}"
            )
        check_count("every", self.every, needed=True)
        check_count("start", self.start, needed=True)

    def describe(self) -> dict[str, Any]:
        """Return the parameters; the function by its module and name."""
        name = f"{self.choose.__module__}:{self.choose.__qualname__}"
        return {"policy": "Reselect", "choose": name, "every": self.every, "start": self.start}

    def memory(self, buffer: ScoreBuffer, seed: int) -> ReselectMemory:
        """Return the whole data set.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: not used.

        Returns:
            What the run keeps.
        """
        return ReselectMemory(self, buffer)

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> AnyRule:
        """Return the subset at present; everything before the first.

        Args:
            buffer: says where tensors live.
            progress: not used.
            memory: what ``memory`` returned.

        Returns:
            The decision of the epoch.

        Raises:
            TypeError: the memory is not that of this policy.
        """
        own = ReselectMemory.of(memory)
        if not own.decided:
            return Rule.keep_all(buffer.device)
        return Selection(own.chosen, tuple(host_floats(own.table)))
