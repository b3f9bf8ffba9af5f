# SPDX-License-Identifier: Apache-2.0
"""Scores of how predictions moved in a training, recorded beside the scores of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune_engine.bands import MAX_EPOCH
from prune_engine.epoch.fits import int_problems, tensor_problems
from prune_engine.epoch.policy import Extras, Policy, PolicyMemory, Progress, RunFacts
from prune_engine.epoch.ranks import world
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.lasting import lasting
from prune_engine.losses.reduce import wide_dtype
from prune_engine.ops.rule import Rule
from prune_engine.plain import store_plain

DYNAMICS = ("aum", "dyn_unc", "dual", "tdds")


@dataclass(frozen=True)
class TrainingDynamics(Policy):
    """Keep every sample, and record how each is predicted from epoch to epoch.

    ``engine.memory.scores(name)`` are, for p_t the chance of the target in epoch t and over all
    windows of J epochs, all of them the larger the harder:

    - ``"aum"``: ``-mean_t (z_y - max_{c != y} z_c)`` (Pleiss et al., "Identifying Mislabeled Data
      using the Area Under the Margin Ranking", NeurIPS 2020, eq. 1, taken from 0);
    - ``"dyn_unc"``: ``mean over windows of std(p_t)`` (He et al., "Large-scale Dataset Pruning
      with Dynamic Uncertainty", 2023, eq. 3);
    - ``"dual"``: ``mean over windows of std(p_t) (1 - mean(p_t))``, of the first epochs alone (Cho,
      Shin and Kim, "DUAL", 2025, eq. 4);
    - ``"tdds"``: of ``d_t = sum_c | p_{t+1} (ln p_{t+1} - ln p_t) |`` each window's ``|| d - mean d
      ||``, averaged with decay (Zhang et al., "Spanning Training Progress", CVPR 2024, eq. 8).

    A sample that an epoch does not show counts as it was when it was last shown. The memory is a
    number per sample for each and J for a window, and N x C for ``tdds``; no file
    per epoch. Call ``engine.cross_entropy_observe``, which sees the logits.

    Args:
        window: J, at least 2.
        first: epochs that ``dual`` looks at; the papers take 30 for CIFAR and 60 for ImageNet.
        decay: weight of the newest window of ``tdds``, in (0, 1].
        num_classes: C, where ``tdds`` is wanted; 0: it is not.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> from prune_engine.epoch.score_buffer import ScoreBuffer
        >>> memory = TrainingDynamics(window=2).memory(ScoreBuffer(2), seed=0)
        >>> memory.record(torch.tensor([0, 1]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        ...               torch.tensor([0, 0]))
        >>> memory.scores("aum").tolist()
        [-2.0, 1.0]
    """

    window: int = 10
    first: int = 30
    decay: float = 0.9
    num_classes: int = 0

    def __post_init__(self) -> None:
        store_plain(self)
        for name, least in (("window", 2), ("first", self.window), ("num_classes", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")

    def memory(self, buffer: ScoreBuffer, seed: int) -> DynamicsMemory:
        """Return an empty record.

        Args:
            buffer: says how many samples there are, and where.
            seed: not used.

        Returns:
            The memory.
        """
        return DynamicsMemory(self, buffer.num_samples, buffer.device)

    def rule(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None = None
    ) -> Rule:
        """Return the rule that drops nothing.

        Args:
            buffer: the scores; not used.
            progress: not used.
            memory: not used.

        Returns:
            The same rule in every epoch.
        """
        return Rule.keep_all(buffer.device)


class DynamicsMemory(PolicyMemory):
    """What ``TrainingDynamics`` remembers.

    Args:
        policy: its parameters.
        num_samples: N.
        device: of the scores.

    Example:
        >>> memory = DynamicsMemory(TrainingDynamics(), 3, torch.device("cpu"))
        >>> memory.scores("dyn_unc").isnan().all().item()
        True
    """

    NAMES = ("margins", "seen", "chances", "uncertainty", "windows", "dual", "dual_windows")
    TDDS = ("logs", "shifts", "tdds", "tdds_windows")

    @lasting
    def __init__(self, policy: TrainingDynamics, num_samples: int, device: torch.device) -> None:
        self.policy, self.num_samples, self.epochs = policy, num_samples, 0
        n, j, c = num_samples + 1, policy.window, policy.num_classes  # a row more for no sample

        def zeros() -> Tensor:
            return torch.zeros(n, dtype=torch.float64, device=device)

        def unknown(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float32, device=device)

        self.margins, self.seen = zeros(), zeros()
        self.chances = unknown(j, n)
        self.uncertainty, self.windows = zeros(), zeros()
        self.dual, self.dual_windows = zeros(), zeros()
        rows = n if c else 0
        self.logs, self.shifts = unknown(rows, c), unknown(j, rows)
        self.tdds, self.tdds_windows = zeros()[:rows], zeros()[:rows]

    def begin_run(self, run: RunFacts) -> None:
        """Refuse a run of several ranks, each of which would see its share alone.

        Args:
            run: its process group.

        Raises:
            ValueError: there are several ranks.
        """
        if world(run.process_group)[1] > 1:
            raise ValueError(
                f"TrainingDynamics must be recorded by one process, got "
                f"{world(run.process_group)[1]} ranks"
            )

    def after_record(self, indices: Tensor, losses: Tensor, score: Tensor, extras: Extras) -> None:
        """Record a batch.

        Args:
            indices: [B].
            losses: not used.
            score: not used.
            extras: logits and targets.

        Raises:
            ValueError: the engine did not see the logits.
        """
        if extras.logits is None or extras.targets is None:
            raise ValueError(
                "logits must be seen by TrainingDynamics: call engine.cross_entropy_observe("
                "logits, targets, indices) in place of engine.observe(losses, indices)"
            )
        self.record(indices, extras.logits, extras.targets)

    @lasting
    def record(self, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take in the predictions of some samples; the host does not wait.

        Args:
            indices: [B]; one out of range, or whose target names no class, is left out.
            logits: [B, C].
            targets: [B].

        Raises:
            ValueError: C is not the number of classes that ``tdds`` was made for.
        """
        classes = logits.shape[1]
        if self.policy.num_classes not in (0, classes):
            raise ValueError(
                f"logits must be of num_classes={self.policy.num_classes}, got {classes}"
            )
        values = logits.detach().to(wide_dtype(logits.dtype))
        known = (targets >= 0) & (targets < classes)
        known &= (indices >= 0) & (indices < self.num_samples)
        rows = torch.where(known, indices.to(torch.int64), self.num_samples)
        label = targets.to(torch.int64).clamp(0, classes - 1)[:, None]
        logs = torch.log_softmax(values, dim=1)
        own = values.gather(1, label)[:, 0]
        others = values.scatter(1, label, -torch.inf).amax(dim=1)
        self.margins.index_add_(0, rows, (own - others).double())
        self.seen.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        slot = self.epochs % self.policy.window
        self.chances[slot].index_copy_(0, rows, logs.gather(1, label)[:, 0].exp().float())
        if self.policy.num_classes:
            change = (logs.exp() * (logs - self.logs[rows])).abs().sum(dim=1)
            self.shifts[slot].index_copy_(0, rows, change.float())
            self.logs.index_copy_(0, rows, logs.float())

    @lasting
    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Add the window that ends with this epoch.

        Args:
            buffer: not used.
            epoch: not used.
        """
        self.epochs += 1
        window, decay = self.policy.window, self.policy.decay
        if self.epochs >= window:
            deviation = self.chances.double().std(dim=0, unbiased=True)
            _add(self.uncertainty, self.windows, deviation)
            if self.epochs <= self.policy.first:
                doubt = deviation * (1 - self.chances.double().mean(dim=0))
                _add(self.dual, self.dual_windows, doubt)
        if self.epochs > window and self.policy.num_classes:
            shifts = self.shifts.double()
            length = (shifts - shifts.mean(dim=0)).square().sum(dim=0).sqrt()
            whole = torch.isfinite(length)
            newer = (1 - decay) * self.tdds + decay * length
            self.tdds = torch.where(whole, newer, self.tdds)
            self.tdds_windows = self.tdds_windows + whole
        # A sample that the next epoch does not show, for the tail is dropped, is as it was.
        coming, ended = self.epochs % window, (self.epochs - 1) % window
        self.chances[coming] = self.chances[ended]
        if self.policy.num_classes:
            known = torch.isfinite(self.logs[:, 0])
            self.shifts[coming] = torch.where(known, 0.0, torch.nan)

    def scores(self, name: str) -> Tensor:
        """Return a score of every sample, the larger the harder.

        Args:
            name: ``"aum"``, ``"dyn_unc"``, ``"dual"`` or ``"tdds"``.

        Returns:
            float32 [N]; nan where a sample was not shown often enough.

        Raises:
            ValueError: no such score, or ``tdds`` without ``num_classes``.
        """
        if name not in DYNAMICS:
            raise ValueError(f"name must be one of {', '.join(map(repr, DYNAMICS))}, got {name!r}")
        if name == "tdds" and not self.policy.num_classes:
            raise ValueError("num_classes must be given to TrainingDynamics for tdds, got 0")
        if name == "tdds":
            total = torch.where(self.tdds_windows > 0, self.tdds, torch.nan)
        else:
            sums = {
                "aum": (-self.margins, self.seen),
                "dyn_unc": (self.uncertainty, self.windows),
                "dual": (self.dual, self.dual_windows),
            }
            value, count = sums[name]
            total = torch.where(count > 0, value / count, torch.nan)
        return total[:-1].float()

    def state_dict(self) -> dict[str, Any]:
        """Return everything, on the cpu."""
        arrays = {name: getattr(self, name).cpu().clone() for name in (*self.NAMES, *self.TDDS)}
        return {"epochs": self.epochs, **arrays}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        expected = {name: getattr(self, name) for name in (*self.NAMES, *self.TDDS)}
        return int_problems(state, {"epochs": MAX_EPOCH}) + tensor_problems(state, expected)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state without problems.

        Args:
            state: what ``state_dict`` returned.
        """
        self.epochs = state["epochs"]
        for name in (*self.NAMES, *self.TDDS):
            setattr(self, name, state[name].to(self.margins.device).clone())


def _add(total: Tensor, count: Tensor, values: Tensor) -> None:
    """Add a window where it is whole."""
    whole = torch.isfinite(values)
    total += torch.where(whole, values, 0)
    count += whole
