# SPDX-License-Identifier: Apache-2.0
"""Losses as they come: from tokens, pixels, mixed pairs or one scalar to a loss per sample.

A reducer is an argument of ``engine.observe(losses, indices, reducer=...)``. Each says what is
trained, what is recorded as the score (always detached and unweighted), and how weights act.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.bands import check_fraction, decimal_fraction
from prune_engine.lasting import saveable
from prune_engine.losses.reduce import wide_dtype
from prune_engine.losses.scores import check_classes
from prune_engine.plain import plain, store_plain

Average = Literal["samples", "elements"]
__all__ = [
    "BatchScalar",
    "MixedPairs",
    "Pixels",
    "Reduced",
    "Reducer",
    "Tokens",
    "TopTokens",
    "mix_targets",
]


@dataclass(frozen=True)
class Reduced:
    """What a reducer makes of a batch.

    Args:
        losses: [B] floating, differentiable: what is weighted and trained. Sums of half-precision
            losses belong in float32: what ``observe`` returns has the dtype it was given.
        score: [B] floating, what is recorded; nan leaves a sample's last score as it is.
        denom: what ``reduction="mean"`` divides by instead of B, or None.

    Example:
        >>> Reduced(torch.ones(2), torch.ones(2)).denom is None
        True
    """

    losses: Tensor
    score: Tensor
    denom: Tensor | None = None


class Reducer(ABC):
    """From a batch's losses, in whatever shape, to one loss and one score per sample."""

    @abstractmethod
    def reduce(self, losses: Tensor, size: int, last: Callable[[], Tensor]) -> Reduced:
        """Return a loss and a score per sample.

        Args:
            losses: as the training loop has them.
            size: B, the number of indices of the batch.
            last: gives the members' last scores, float32 [B], nan where never seen.

        Returns:
            Losses and scores, in batch order.
        """

    def share(self, weights: Tensor) -> Tensor:
        """Return the weights that the losses get, from those that the plan gives: here the same.

        Args:
            weights: [B] float32.

        Returns:
            [B] float32.
        """
        return weights


def _averaged(
    losses: Tensor,
    mask: Tensor | None,
    auxiliary: Sequence[tuple[float, Tensor]],
    average: Average,
    size: int,
) -> Reduced:
    """Sum each sample's elements, wide, and count them; what is masked is not read, be it nan."""
    if mask is not None and not isinstance(mask, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"mask must be a bool tensor, got {type(mask).__name__}")
    if losses.dim() < 2 or losses.shape[0] != size:
        raise ValueError(f"losses must be [{size}, ...], got shape {tuple(losses.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != losses.shape):
        raise ValueError(
            f"mask must be bool {tuple(losses.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    mask = None if mask is None else saveable(mask)

    def sums(values: Tensor) -> Tensor:
        if values.shape != losses.shape:
            raise ValueError(
                f"auxiliary losses must be {tuple(losses.shape)}, got {tuple(values.shape)}"
            )
        taken = values if mask is None else torch.where(mask, values, 0.0)
        return taken.flatten(1).sum(dim=1, dtype=wide_dtype(values.dtype))

    total = sums(losses)
    for weight, values in auxiliary:
        factor = saveable(weight) if isinstance(weight, Tensor) else weight
        total = total + factor * sums(values)
    if mask is None:
        each = losses[0].numel() if size else 0
        count = torch.full((size,), each, dtype=torch.int64, device=losses.device)
    else:
        count = mask.flatten(1).sum(dim=1)
    mean = total / count.clamp(min=1)
    score = torch.where(count == 0, torch.nan, mean.detach())
    if average == "elements":
        return Reduced(total, score, count.sum().clamp(min=1))
    return Reduced(mean, score)


def _check_average(average: str) -> None:
    if average not in ("samples", "elements"):
        raise ValueError(f"average must be 'samples' or 'elements', got {average!r}")


@dataclass(frozen=True)
class Tokens(Reducer):
    """Token losses [B, T] with a mask: sequences of any length.

    ``sum_i w_i sum_t m_it l_it / sum_it m_it`` with ``average="elements"``, which at weight 1 is
    the language-model loss of one mean over all tokens (the cross-entropy of Hugging Face's models;
    with gradient accumulation pass ``denom=`` the step's number of tokens); ``1/B sum_i w_i mean_t
    l_it`` with ``"samples"``. The score is the mean over the sequence's own tokens, so that long
    sequences are not hard for being long (SEMANTICS 3.10). A sequence without a token has no score:
    its record stays, it counts among the non-finite, its loss is 0.

    Args:
        mask: bool [B, T], True where a token counts; None: all.
        average: ``"elements"`` or ``"samples"``.

    Raises:
        ValueError: the average, or in ``observe`` a shape, does not fit.

    Example:
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> reduced = Tokens(mask).reduce(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), 2, list)
        >>> reduced.losses.tolist(), reduced.score.tolist(), reduced.denom.item()
        ([4.0, 5.0], [2.0, 5.0], 3)
    """

    mask: Tensor | None = None
    average: Average = "elements"

    def __post_init__(self) -> None:
        store_plain(self, "average")
        _check_average(self.average)

    def reduce(self, losses: Tensor, size: int, last: Callable[[], Tensor]) -> Reduced:
        """Return sums or means over each sequence's tokens; see the class."""
        return _averaged(losses, self.mask, (), self.average, size)


@dataclass(frozen=True)
class TopTokens(Reducer):
    """The batch's tokens with the largest losses, or the largest excess over a reference's.

    Selective language modelling of Rho-1 (Lin et al., NeurIPS 2024, arXiv 2404.07965): a token's
    excess is its loss less that of a reference model, and the share ``keep`` of the batch's tokens
    with the largest excess is trained: ``sum over the kept of w_i l_it / number kept``. Without a
    reference the largest losses are, which trains on noise. The edge is exact and found on the
    device (``ops.select``); of tokens that tie with it all are kept. The score is the mean over the
    sequence's own tokens, kept or not, as ``Tokens`` has it. Every token is passed forward: what is
    saved is none of that.

    Args:
        keep: in (0, 1], the share of the tokens that count.
        reference: [B, T] floating, the reference's losses of these tokens, such as
            ``ReferenceLosses.of(indices)``; None: 0.
        mask: bool [B, T], True where a token counts; None: all.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: keep is out of range, or in ``observe`` a shape does not fit.

    Example:
        >>> losses, known = torch.tensor([[1.0, 4.0], [3.0, 2.0]]), torch.tensor([[0.0, 4.0]] * 2)
        >>> reduced = TopTokens(0.5, reference=known).reduce(losses, 2, list)
        >>> reduced.losses.tolist(), reduced.score.tolist(), reduced.denom.item()
        ([1.0, 3.0], [2.5, 2.5], 2)
    """

    keep: float = 0.6
    reference: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        store_plain(self, "keep")
        check_fraction("keep", self.keep, zero=False, one=True)
        if self.reference is not None and not isinstance(self.reference, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"reference must be a tensor, got {type(self.reference).__name__}")

    def reduce(self, losses: Tensor, size: int, last: Callable[[], Tensor]) -> Reduced:
        """Return the sums over each sequence's kept tokens; see the class."""
        everything = _averaged(losses, self.mask, (), "elements", size)
        values, known = losses.detach().to(torch.float32), self.reference
        if known is not None:
            if known.shape != losses.shape:
                raise ValueError(
                    f"reference must be {tuple(losses.shape)}, got {tuple(known.shape)}"
                )
            values = values - known.to(values.device, torch.float32)
        counts = torch.ones_like(values, dtype=torch.bool) if self.mask is None else self.mask
        excess = torch.where(counts, values, torch.nan)
        share = 1 - decimal_fraction(self.keep)
        edge = ops.select(excess.flatten(), [0], [share.numerator], share.denominator)
        # A loss that is not a number must be seen, and not be left out as small.
        kept = (excess >= edge) | (counts & ~values.isfinite())
        chosen = _averaged(losses, kept, (), "elements", size)
        return Reduced(chosen.losses, everything.score, chosen.denom)


@dataclass(frozen=True)
class Pixels(Reducer):
    """Pixel losses [B, H, W] with weighted auxiliary terms: segmentation.

    ``score_i = mean_p l_ip + sum_k a_k mean_p l^k_ip``: one score per image, the weighted sum of
    the heads' losses, and every head's loss gets the image's weight (InfoBatch, ICLR 2024, appendix
    A.1, where the auxiliary head has a = 0.4). Means are over the pixels that count.

    Args:
        mask: bool [B, H, W], False where a pixel is ignored; None: all count.
        auxiliary: (a_k, losses [B, H, W]) of the further heads.
        average: ``"samples"``: the mean over images of each one's mean; ``"elements"``: one mean
            over all pixels of the batch.

    Raises:
        TypeError: ``auxiliary`` is not made of pairs.
        ValueError: the average, or in ``observe`` a shape, does not fit.

    Example:
        >>> main, head = torch.ones(1, 2, 2), torch.full((1, 2, 2), 5.0)
        >>> Pixels(auxiliary=[(0.5, head)]).reduce(main, 1, list).score.tolist()
        [3.5]
    """

    mask: Tensor | None = None
    auxiliary: Sequence[tuple[float, Tensor]] = ()
    average: Average = "samples"

    def __post_init__(self) -> None:
        store_plain(self, "average", "auxiliary")
        for pair in self.auxiliary:
            if not isinstance(pair, tuple | list) or len(pair) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"auxiliary must be pairs (a, losses), got {type(pair).__name__}")
            weight, losses = pair
            if not isinstance(weight, int | float | Tensor) or not isinstance(losses, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    "auxiliary must be pairs (a, losses), a number and a tensor, got "
                    f"({type(weight).__name__}, {type(losses).__name__})"
                )
        _check_average(self.average)

    def reduce(self, losses: Tensor, size: int, last: Callable[[], Tensor]) -> Reduced:
        """Return sums or means over each image's pixels; see the class."""
        return _averaged(losses, self.mask, self.auxiliary, self.average, size)


def mix_targets(targets: Tensor, num_classes: int, lam: Tensor | float) -> Tensor:
    """Return the soft targets of a batch mixed with itself in reverse.

    ``t_i = lam_i onehot(y_i) + (1 - lam_i) onehot(y_j)``, j = B - 1 - i (MixUp: Zhang et al., ICLR
    2018, eq. 1; CutMix: Yun et al., ICCV 2019, eq. 1; the pairing is that of timm's batch mode).

    Args:
        targets: [B] int64 in 0..C-1.
        num_classes: C.
        lam: the share of a row's own sample, a number or [B], in 0..1.

    Returns:
        float32 [B, C], each row summing to 1.

    Raises:
        TypeError: targets are not integers, or lam is neither a number nor a tensor.
        ValueError: lam is a number outside of 0..1.
        IndexError: a target is out of range (on the cpu).

    Example:
        >>> mix_targets(torch.tensor([0, 1]), 2, 0.75).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    lam, num_classes = plain(lam), plain(num_classes)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"num_classes must be an int, got {num_classes!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not isinstance(lam, Tensor):
        if isinstance(lam, bool) or not isinstance(lam, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"lam must be a number in 0..1 or a tensor, got {lam!r}")
        if not 0 <= lam <= 1:
            raise ValueError(f"lam must be in 0..1, got {lam}")
    check_classes(targets, num_classes)
    hot = torch.nn.functional.one_hot(targets.to(torch.int64), num_classes).to(torch.float32)
    share = torch.as_tensor(lam, dtype=torch.float32, device=targets.device)
    share = share.expand(targets.shape[0])[:, None]
    return share * hot + (1 - share) * hot.flip(0)


@dataclass(frozen=True)
class MixedPairs(Reducer):
    """MixUp and CutMix, where row i also holds a part of row j = B - 1 - i.

    ``score_i = | t_i[y_i] - p_i[y_i] | + | t_j[y_i] - p_j[y_i] |``: how far the two rows that show
    sample i are from what they should say of its class (the published code of InfoBatch, ICLR
    2024). The paper's appendix A.3 writes ``P_i[y_i] + P_j[y_i]`` instead, a likelihood: it rises
    as a sample gets easier, while the rule prunes low scores. The form with targets has the sign of
    a loss, 0 for a perfect model, and stays right where two partners share a class. That the paper
    means this sign is our reading. Partners carry equal weights, the mean of their two: both rows
    train both samples, and the pair's weight stays the sum of what the plan gave.

    Args:
        logits: [B, C] of the mixed batch; no gradient flows through the score.
        targets: [B] int64, each sample's own class y_i before mixing.
        mixed: [B, C], the soft targets t that were trained on (``mix_targets``, or timm's).

    Example:
        >>> y = torch.tensor([0, 1])
        >>> pairs = MixedPairs(torch.zeros(2, 2), y, mix_targets(y, 2, 0.75))
        >>> pairs.reduce(torch.ones(2), 2, list).score.tolist()
        [0.5, 0.5]
        >>> pairs.share(torch.tensor([1.0, 2.0])).tolist()
        [1.5, 1.5]
    """

    logits: Tensor
    targets: Tensor
    mixed: Tensor

    def reduce(self, losses: Tensor, size: int, last: Callable[[], Tensor]) -> Reduced:
        """Return the losses as they are and the pairs' score; see the class."""
        for name in ("logits", "targets", "mixed"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name} must be a tensor, got {kind}")
        shape = tuple(self.logits.shape)
        if len(shape) != 2 or shape[0] != size:
            raise ValueError(f"logits must be [{size}, C], got shape {shape}")
        if self.mixed.shape != self.logits.shape:
            raise ValueError(f"mixed must be {shape}, got {tuple(self.mixed.shape)}")
        if self.targets.shape != (size,):
            raise ValueError(f"targets must be [{size}], got shape {tuple(self.targets.shape)}")
        check_classes(self.targets, shape[1])
        chances = torch.softmax(self.logits.detach().to(torch.float32), dim=1)
        error = (self.mixed.detach() - chances).abs()
        own = self.targets.to(torch.int64)[:, None]
        score = error.gather(1, own) + error.flip(0).gather(1, own)
        return Reduced(losses, score[:, 0])

    def share(self, weights: Tensor) -> Tensor:
        """Return equal weights for partners: the mean of the two."""
        return (weights + weights.flip(0)) / 2


@dataclass(frozen=True)
class BatchScalar(Reducer):
    """One loss for the whole batch, where a framework gives no more: every member takes it.

    ``score_i = decay * last_i + (1 - decay) * loss``, the loss itself the first time: a sample's
    score averages the batches it was in (the moving average of Raju, Daruwalla and Lipasti,
    "Accelerating deep learning with dynamic data pruning", 2021, decay 0.8). What is trained is the
    loss times the mean of the members' weights: that is the weighted sum only where all members'
    losses are equal, so the expected gradient is no longer exactly that of the whole data set.

    Args:
        decay: in [0, 1).

    Raises:
        ValueError: decay is out of range, or in ``observe`` the loss is not a scalar.

    Example:
        >>> last = torch.tensor([torch.nan, 1.0])
        >>> BatchScalar(0.5).reduce(torch.tensor(3.0), 2, lambda: last).score.tolist()
        [3.0, 2.0]
    """

    decay: float = 0.8

    def __post_init__(self) -> None:
        store_plain(self)
        if isinstance(self.decay, bool) or not isinstance(self.decay, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"decay must be a number in [0, 1), got {self.decay!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def reduce(self, losses: Tensor, size: int, last: Callable[[], Tensor]) -> Reduced:
        """Return the loss once per member and the members' moving averages; see the class."""
        if losses.numel() != 1:
            raise ValueError(f"losses must be a scalar, got shape {tuple(losses.shape)}")
        everyone = losses.reshape(1).expand(size).contiguous()
        fresh, before = everyone.detach().to(torch.float32), last()
        mixed = self.decay * before + (1 - self.decay) * fresh
        return Reduced(everyone, torch.where(torch.isnan(before), fresh, mixed))
