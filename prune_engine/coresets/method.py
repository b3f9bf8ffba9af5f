# SPDX-License-Identifier: Apache-2.0
"""What a method of selection is, what it is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from prune_engine.coresets.pairs import Products
from prune_engine.losses.reduce import wide_dtype

Report = Callable[[int], None]  # how many more are chosen; what it raises ends the selection
# What select() can be given, as methods name what they need.
INPUTS = ("features", "logits", "targets", "scores", "head", "validation")
TOGETHER = 2**13  # samples that are scored at a time


def quiet(chosen: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Coreset:
    """A subset that a method chose.

    Attributes:
        indices: int64 [k], ascending.
        weights: float32 [k], of ``indices``: 1, unless the method has weights.
        order: int64 [k], the same samples as they were chosen; a balanced choice takes turns among
            the classes, so that each beginning of it is about balanced too.

    Example:
        >>> Coreset(torch.tensor([1, 4]), torch.ones(2), torch.tensor([4, 1])).indices.tolist()
        [1, 4]
    """

    indices: Tensor
    weights: Tensor
    order: Tensor

    def __len__(self) -> int:
        """Return k."""
        return len(self.indices)

    @property
    def effective(self) -> float:
        """How many samples of equal weight would be as many: ``(sum w)^2 / sum w^2`` (Kish 1965).

        Far below k, a few samples make most of every step, and a training is as noisy as one of
        batches that much smaller.
        """
        weights = self.weights.double()
        squares = float(weights.square().sum())
        return float(weights.sum()) ** 2 / squares if squares else 0.0

    def normalised(self, cap: float | None = None) -> tuple[Tensor, Tensor | None]:
        """Return what ``pe.policies.Subset`` takes: weights of mean 1: a step keeps its size.

        Args:
            cap: no weight above it, at least 1: ``min(c w, cap)``, with the c that makes the mean
                1 again; 1 trains the same samples without weights.

        Returns:
            The indices whose weight is above 0, and their weights; None where all are alike.

        Raises:
            ValueError: all weights are 0, or the cap is below 1.

        Example:
            >>> made = Coreset(torch.tensor([1, 4]), torch.tensor([3.0, 1.0]), torch.tensor([1, 4]))
            >>> made.normalised()[1].tolist()
            [1.5, 0.5]
        """
        check_cap("cap", cap)
        above = self.weights > 0
        if len(self) and not bool(above.any()):
            raise ValueError("weights must not all be 0")
        indices, weights = self.indices[above], self.weights[above].double()
        if bool((weights == weights[:1]).all()):
            return indices, None
        scaled = weights / weights.mean() if cap is None else _capped(weights, cap)
        return indices, None if bool((scaled == scaled[:1]).all()) else scaled.float()


def check_cap(name: str, cap: float | None) -> None:
    """Refuse a cap that no weights of mean 1 can keep to."""
    if cap is not None and not cap >= 1:
        raise ValueError(f"{name} must be at least 1, the mean of the weights, got {cap}")


def _capped(weights: Tensor, cap: float) -> Tensor:
    """Scale weights so that, cut at a cap, their mean is 1."""
    ordered = torch.sort(weights, descending=True).values
    above = torch.arange(len(ordered), dtype=torch.float64)  # that many are at the cap
    rest = ordered.flip(0).cumsum(0).flip(0)
    scales = (len(ordered) - cap * above) / rest
    fits = (scales * ordered <= cap).nonzero()
    if not len(fits):  # a cap of 1: all of them are at it
        return torch.ones_like(weights)
    return (scales[fits[0, 0]] * weights).clamp(max=cap)


class Pick(NamedTuple):
    """What a method chose of the samples that it was given: positions, first things first.

    Args:
        order: int64 [k].
        weights: [k], of ``order``; None: 1 each.

    Example:
        >>> Pick(torch.tensor([3, 1])).weights is None
        True
    """

    order: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """The samples that a method chooses from: a whole data set, or one class of it.

    Args:
        rank: int64 [n], the samples' places in the draw that all chance comes from.
        features: [n, d], what the last layer was given.
        logits: [n, C].
        targets: int64 [n].
        scores: [n].
        head: [C, d], the weights of the last layer.
        validation: other samples, whose loss counts.
        gradients: factors that stand in the place of those of the last layer.
        report: is told of each choice.

    Example:
        >>> samples = Samples(torch.arange(3), features=torch.eye(3))
        >>> len(samples.take(torch.tensor([2, 0])))
        2
    """

    rank: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    scores: Tensor | None = None
    head: Tensor | None = None
    validation: Samples | None = None
    gradients: Products | None = None
    report: Report = quiet

    def __len__(self) -> int:
        """Return n."""
        return len(self.rank)

    def take(self, positions: Tensor | slice) -> Samples:
        """Return some of the samples, in the order of the positions."""
        rows = {
            name: value[positions]
            for name in ("features", "logits", "targets", "scores")
            if (value := getattr(self, name)) is not None
        }
        gradients = None if self.gradients is None else self.gradients.take(positions)
        return replace(self, rank=self.rank[positions], gradients=gradients, **rows)

    def log_chances(self) -> Tensor:
        """Return log softmax of the logits, in float32 or float64."""
        logits = needed(self.logits, "logits")
        return torch.log_softmax(logits.to(wide_dtype(logits.dtype)), dim=1)

    def errors(self) -> Tensor:
        """Return softmax less the one-hot target: the gradient of the loss by the logits."""
        labels = needed(self.targets, "targets")[:, None]
        others = self.log_chances().exp_().scatter_(1, labels, 0.0)
        # 1 - p is what all others have together: p itself rounds to 1 long before that is 0.
        return others.scatter_(1, labels, -others.sum(dim=1, keepdim=True))

    def last_layer(self) -> Products:
        """Return the products of the last layer's gradients, factored."""
        if self.gradients is not None:
            return self.gradients
        return Products((self.errors(), needed(self.features, "features")), (0.0, 1.0))


def needed(value: Tensor | None, name: str) -> Tensor:
    """Return what ``select`` has checked to be there."""
    if value is None:
        raise ValueError(f"{name} must be given")
    return value


class Method(ABC):
    """A way to choose k samples: a frozen dataclass whose fields are its parameters.

    A subclass with ``needs`` and ``pick`` is a method that ``select`` takes as it takes those of
    the table.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, samples: Samples) -> Samples:
        """Look at all samples once, before they are parted into classes.

        Args:
            samples: of the whole data set.

        Returns:
            What ``pick`` is to be given, class by class.
        """
        return samples

    @abstractmethod
    def pick(self, samples: Samples, k: int) -> Pick:
        """Choose.

        Args:
            samples: n of them.
            k: in 1..n.

        Returns:
            k different positions in 0..n-1 as they were chosen, and weights where there are any.
        """


class Scored(Method):
    """A method that takes the samples with the largest, or the smallest, of one score each.

    ``keep`` says which; ``alone`` that a sample's score asks for no other sample, so that a large
    data set is scored a part at a time.
    """

    keep: ClassVar[Literal["hard", "easy"]] = "hard"
    alone: ClassVar[bool] = False

    @abstractmethod
    def score(self, samples: Samples) -> Tensor:
        """Return the score [n] of each sample."""

    def prepare(self, samples: Samples) -> Samples:
        """Score all samples, unless scores were given."""
        if samples.scores is not None:
            return samples
        if not self.alone or len(samples) <= TOGETHER:
            return replace(samples, scores=self.score(samples))
        starts = range(0, len(samples), TOGETHER)
        parts = [self.score(samples.take(slice(start, start + TOGETHER))) for start in starts]
        return replace(samples, scores=torch.cat(parts))

    def pick(self, samples: Samples, k: int) -> Pick:
        """Take the k first by their scores, ties to the smaller index."""
        scores = needed(self.prepare(samples).scores, "scores").to(torch.float64)
        ranking = torch.sort(scores, stable=True, descending=self.keep == "hard").indices
        samples.report(k)
        return Pick(ranking[:k])
