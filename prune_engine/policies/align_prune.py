# SPDX-License-Identifier: Apache-2.0
"""AlignPrune: prune what does not move with a clean reference, instead of what is easy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import check_fraction
from prune_engine.epoch import ranks
from prune_engine.epoch.fits import int_problems, tensor_problems
from prune_engine.epoch.policy import LATE, Monitor, PolicyMemory, Progress, RunFacts, annealing
from prune_engine.epoch.score_buffer import ScoreBuffer
from prune_engine.epoch.state import check_count
from prune_engine.ops.rule import AnyRule, Selection
from prune_engine.plain import store_plain
from prune_engine.policies.infobatch import InfoBatch
from prune_engine.policies.marks import resized
from prune_engine.policies.score_rule import ScoreRule

MOST_WINDOW = 255
TENSORS = ("ring", "reference")


class CleanReference:
    """The mean loss of samples whose labels are trusted, measured when an epoch ends.

    Args:
        loss: returns the mean loss of one batch of the loader, a scalar tensor, such as ``lambda
            batch: F.cross_entropy(model(batch[0]), batch[1])``; called without a gradient. Put the
            model into evaluation mode in it where that is wanted.
        loader: of the clean samples, about 1% of the data set; iterated once per epoch.

    Raises:
        TypeError: loss cannot be called, or loader cannot be iterated.

    Example:
        >>> CleanReference(lambda batch: batch.mean(), [torch.ones(2)]).take().item()
        1.0
    """

    def __init__(self, loss: Callable[[Any], Tensor], loader: Iterable[Any]) -> None:
        if not callable(loss):
            raise TypeError(f"loss must be a function of a batch, got {type(loss).__name__}")
        if not isinstance(loader, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"loader must be iterable, got {type(loader).__name__}")
        self.loss, self.loader = loss, loader

    def take(self) -> Tensor:
        """Return the mean over the loader's batches, float32 scalar.

        Raises:
            ValueError: the loader is empty.
        """
        with torch.no_grad():
            means = [self.loss(batch).detach().to(torch.float64) for batch in self.loader]
        if not means:
            raise ValueError("loader must have a batch, got none")
        return torch.stack(means).mean().to(torch.float32)


class AlignMemory(PolicyMemory):
    """The last losses of every sample and of the reference: 4 bytes per sample and epoch.

    Args:
        policy: says how many.
        buffer: says how many samples there are and where tensors live.
    """

    def __init__(self, policy: AlignPrune, buffer: ScoreBuffer) -> None:
        self.policy = policy
        shape = (policy.window, buffer.num_samples)
        self.ring = torch.full(shape, torch.nan, device=buffer.device)
        self.reference = torch.full((policy.window,), torch.nan, device=buffer.device)
        self.filled = 0
        self.source: Monitor | None = None
        self.group: Any = None

    def begin_run(self, run: RunFacts) -> None:
        """Take note of the ranks.

        Args:
            run: says which.
        """
        self.group = run.process_group

    def attach(self, monitor: Monitor) -> bool:
        """Take a clean reference.

        Args:
            monitor: a ``CleanReference``, or anything whose ``take()`` returns a scalar.

        Returns:
            True.
        """
        self.source = monitor
        return True

    def before_record(self, indices: Tensor) -> None:
        """Refuse to train without a reference.

        Args:
            indices: not used.

        Raises:
            RuntimeError: none is attached.
        """
        if self.source is None:
            raise RuntimeError(
                "AlignPrune needs a clean reference before the first batch: "
                "engine.attach(CleanReference(loss, loader))"
            )

    def end_epoch(self, buffer: ScoreBuffer, epoch: int) -> None:
        """Take in the last losses, and the reference's as rank 0 has measured it.

        Args:
            buffer: the scores.
            epoch: the epoch that ended.
        """
        if self.source is None:  # only asked about, never trained
            mean = torch.full((1,), torch.nan, device=buffer.device)
        else:
            mean = self.source.take().reshape(1).to(buffer.device, torch.float32)
        mean = ranks.gather(mean, self.group)[0]
        self.ring = torch.cat([self.ring[1:], buffer.scores[None]])
        self.reference = torch.cat([self.reference[1:], mean])
        self.filled = min(self.policy.window, self.filled + 1)

    def alignment(self) -> Tensor:
        """Return Pearson's correlation of each sample's losses with the reference's, float32 [N].

        nan where either does not vary or something was never seen. Each step is one float32
        operation in a fixed order, so that devices agree.
        """
        window = self.policy.window
        mean_of, mean_reference = self.ring[0], self.reference[0]
        for row, value in zip(self.ring[1:], self.reference[1:], strict=True):
            mean_of, mean_reference = mean_of + row, mean_reference + value
        count = torch.full_like(mean_reference, float(window))
        mean_of, mean_reference = mean_of / count, mean_reference / count
        cross, own, other = (torch.zeros_like(mean_of) for _ in range(3))
        for row, value in zip(self.ring, self.reference, strict=True):
            a, b = row - mean_of, value - mean_reference
            cross, own, other = cross + a * b, own + a * a, other + b * b
        return cross / (own.sqrt() * other.sqrt())

    def resize(self, num_samples: int) -> None:
        """Follow a data set that changes: a new sample has no losses.

        Args:
            num_samples: N from the current epoch on.
        """
        rows = [resized(row, num_samples, torch.nan) for row in self.ring]
        self.ring = torch.stack(rows)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything on the cpu."""
        tensors = {name: getattr(self, name).to("cpu", copy=True) for name in TENSORS}
        return {**tensors, "filled": self.filled}

    def state_problems(self, state: Mapping[str, Any]) -> list[str]:
        """List what does not fit in a state.

        Args:
            state: what ``state_dict`` should have returned.

        Returns:
            One phrase per difference.
        """
        problems = tensor_problems(state, {name: getattr(self, name) for name in TENSORS})
        return problems + int_problems(state, {"filled": self.policy.window})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state in which ``state_problems`` found nothing.

        Args:
            state: what ``state_dict`` returned.
        """
        for name in TENSORS:
            setattr(self, name, state[name].to(self.ring.device, copy=True))
        self.filled = int(state["filled"])


@dataclass(frozen=True)
class AlignPrune(ScoreRule):
    """InfoBatch's rule, with each sample's alignment with a clean reference as the score.

    AlignPrune (CVPR 2026 Findings, arXiv 2604.07306), for label noise: the score is Pearson's
    correlation of a sample's last ``window`` losses with the mean losses of clean samples in the
    same epochs; what is below the mean alignment is dropped with probability r, and the kept ones
    of it weigh 1 / (1 - r). Before ``window`` epochs the rule is InfoBatch by the loss; who has no
    alignment later stays, unless ``first_epoch`` is even. Attach a ``CleanReference``. A sample
    that was not trained in an epoch repeats its last loss, which the published notes leave open.

    Args:
        prune_ratio: r, in [0, 1).
        delta: in (0, 1], the share of the run that prunes.
        window: in 2..255.
        first_epoch: ``"full"``, or ``"even"``: epoch 0 drops at random as if half were low, and
            later ones as much of what was never seen or has no alignment, which weighs for it.
        warmup: epochs that keep everything.
        weight_cap: at least 1: no sample weighs more, which biases the gradient; None: no cap.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is out of range.

    Example:
        >>> AlignPrune(prune_ratio=0.3).window
        10
    """

    prune_ratio: float = 0.5
    delta: float = 0.875
    window: int = 10
    first_epoch: str = field(default="full", kw_only=True, metadata=LATE)

    def __post_init__(self) -> None:
        store_plain(self)
        check_fraction("prune_ratio", self.prune_ratio, zero=True, one=False)
        check_fraction("delta", self.delta, zero=False, one=True)
        check_count("window", self.window, needed=True)
        if not 2 <= self.window <= MOST_WINDOW:
            raise ValueError(f"window must be in 2..{MOST_WINDOW}, got {self.window}")
        self.check_beginning()

    @property
    def needs_total(self) -> bool:
        """True unless it prunes to the end."""
        return self.delta < 1

    def savings(self) -> float:
        """Return r / 2: as if half were low."""
        return self.prune_ratio / 2

    def memory(self, buffer: ScoreBuffer, seed: int) -> AlignMemory:
        """Return losses of nobody.

        Args:
            buffer: says how many samples there are and where tensors live.
            seed: not used.

        Returns:
            What the run keeps.
        """
        return AlignMemory(self, buffer)

    def decide(
        self, buffer: ScoreBuffer, progress: Progress, memory: PolicyMemory | None
    ) -> AnyRule:
        """Return InfoBatch's bands, of alignments once there are any.

        Args:
            buffer: the scores.
            progress: where the run is.
            memory: what ``memory`` returned.

        Returns:
            The rule or the decision of the epoch.

        Raises:
            TypeError: the memory is not that of this policy.
        """
        own = AlignMemory.of(memory)
        bands = InfoBatch(self.prune_ratio, self.delta)
        if annealing(self.delta, progress) or own.filled < self.window:
            return bands.decide(buffer, progress, None)
        aligned = ScoreBuffer(buffer.num_samples, device=buffer.device, backend=buffer.backend)
        numbers = torch.arange(buffer.num_samples, device=buffer.device)
        aligned.observe(own.alignment(), numbers)  # what is nan is not recorded: never seen
        rule = self.dropping_unseen(bands.decide(aligned, progress, None))
        seed, epoch, backend = progress.seed, progress.epoch, buffer.backend
        classes, _ = ops.plan(aligned.records, rule, seed=seed, epoch=epoch, backend=backend)
        return Selection(classes, rule.weight_table, rule.thresholds)
