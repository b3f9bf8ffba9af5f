# SPDX-License-Identifier: Apache-2.0
"""How hard a sample is, from its logits: for users who have logits and a loss of their own.

Every score is detached, unweighted, float32 (float64 for float64 logits) and **low means easy**, as
the policies take it: margin and least confidence are the papers' quantities taken from 1.
``PruneEngine.cross_entropy_observe(score=...)`` computes them with the loss in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prune_engine.losses.reduce import wide_dtype

# What cross_entropy_observe can record; the position is the number the kernels take.
SCORES = ("loss", "el2n", "margin", "least_confidence", "entropy", "forgetting")

RIGHT, WRONG, NEVER = 0, 1, 2  # a sample at its last presentation; NEVER: not learned so far
MAX_EVENTS = 2**20 - 1  # 20 bits of events and 4 of states are the 24 bits of a float32


def score_kind(score: str) -> int:
    """Return the number of a score's name.

    Args:
        score: one of ``SCORES``.

    Returns:
        Its position in ``SCORES``.

    Raises:
        ValueError: no such score.

    Example:
        >>> score_kind("el2n")
        1
    """
    if score not in SCORES:
        words = ", ".join(map(repr, SCORES))
        raise ValueError(f"score must be one of {words}, got {score!r}")
    return SCORES.index(score)


def check_classes(targets: Tensor, num_classes: int) -> None:
    """Refuse what names no class; on a device its range is not looked at: the host would wait."""
    if not isinstance(targets, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"targets must be a tensor, got {type(targets).__name__}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if targets.is_cpu and targets.numel():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_classes:
            wrong = low if low < 0 else high
            raise IndexError(f"targets must be in 0..{num_classes - 1}, got {wrong}")


def _labels(logits: Tensor, targets: Tensor) -> Tensor:
    """Return labels as a column; fewer than logits would give fewer scores, without a word."""
    if not isinstance(targets, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"targets must be a tensor, got {type(targets).__name__}")
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"targets must be [{logits.shape[0]}], got {tuple(targets.shape)}")
    check_classes(targets, logits.shape[1])
    return targets.to(torch.int64)[:, None]


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    if logits.dim() != 2:
        raise ValueError(f"logits must be [B, C], got shape {tuple(logits.shape)}")


def check_last_layer(logits: Tensor, targets: Tensor, features: Tensor) -> None:
    """Refuse what a last, linear layer does not give and take."""
    if not isinstance(features, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"features must be a tensor, got {type(features).__name__}")
    _check_logits(logits)
    _labels(logits, targets)
    if features.dim() != 2 or features.shape[0] != logits.shape[0]:
        raise ValueError(
            f"features must be [{logits.shape[0]}, D], got shape {tuple(features.shape)}"
        )


def _probabilities(logits: Tensor) -> Tensor:
    _check_logits(logits)
    return torch.softmax(logits.detach().to(wide_dtype(logits.dtype)), dim=1)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the target: the unsmoothed, unweighted loss.

    ``-log p[y]`` with ``p = softmax(logits)`` (InfoBatch, ICLR 2024, section 2.2, scores by it).

    Args:
        logits: [B, C] floating.
        targets: [B] int64 in 0..C-1.

    Returns:
        [B] in batch order, at least 0.

    Raises:
        TypeError: an argument is no tensor, or of another kind of numbers.
        ValueError: logits are not [B, C], or targets not [B].
        IndexError: a target is out of range (on the cpu).

    Example:
        >>> round(nll(torch.zeros(1, 2), torch.tensor([1])).item(), 4)
        0.6931
    """
    _check_logits(logits)
    chances = torch.log_softmax(logits.detach().to(wide_dtype(logits.dtype)), dim=1)
    return -chances.gather(1, _labels(logits, targets))[:, 0]


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Length of the error vector.

    ``|| p - onehot(y) ||_2`` (EL2N: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet",
    NeurIPS 2021, definition 2.2, for one set of weights; average over models yourself).

    Args:
        logits: [B, C] floating.
        targets: [B] int64 in 0..C-1.

    Returns:
        [B] in batch order, in 0..sqrt(2).

    Raises:
        TypeError: an argument is no tensor, or of another kind of numbers.
        ValueError: logits are not [B, C], or targets not [B].
        IndexError: a target is out of range (on the cpu).

    Example:
        >>> round(el2n(torch.zeros(1, 2), torch.tensor([1])).item(), 4)
        0.7071
    """
    error = _probabilities(logits)
    ones = torch.ones((error.shape[0], 1), dtype=error.dtype, device=error.device)
    error = error.scatter_add(1, _labels(logits, targets), -ones)
    return error.square().sum(dim=1).sqrt()


def margin(logits: Tensor) -> Tensor:
    """One minus the lead of the likeliest class over the second.

    ``1 - (p(1) - p(2))``, p(k) the k-th largest probability (margin sampling: Scheffer, Decomain
    and Wrobel, IDA 2001, section 3: small margins are the informative ones). No label is used.

    Args:
        logits: [B, C] floating, C at least 1; with C = 1 the second is 0.

    Returns:
        [B] in batch order, in 0..1.

    Raises:
        ValueError: logits are not [B, C].

    Example:
        >>> margin(torch.zeros(1, 2)).item()
        1.0
    """
    chances = _probabilities(logits)
    if chances.shape[1] == 1:
        return 1 - chances[:, 0]
    top = torch.topk(chances, 2, dim=1).values
    return 1 - (top[:, 0] - top[:, 1])


def least_confidence(logits: Tensor) -> Tensor:
    """One minus the largest probability.

    ``1 - max_c p[c]`` (Lewis and Gale, SIGIR 1994; as a coreset score: Coleman et al., "Selection
    via Proxy", ICLR 2020, section 3). No label is used.

    Args:
        logits: [B, C] floating.

    Returns:
        [B] in batch order, in 0..1.

    Raises:
        ValueError: logits are not [B, C].

    Example:
        >>> least_confidence(torch.zeros(1, 4)).item()
        0.75
    """
    return 1 - _probabilities(logits).amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted distribution, in nats.

    ``-sum_c p[c] log p[c]``, with 0 log 0 = 0 (Shannon 1948; as a coreset score: Coleman et al.,
    "Selection via Proxy", ICLR 2020, section 3). No label is used.

    Args:
        logits: [B, C] floating.

    Returns:
        [B] in batch order, in 0..log(C).

    Raises:
        ValueError: logits are not [B, C].

    Example:
        >>> round(entropy(torch.zeros(1, 4)).item(), 4)
        1.3863
    """
    chances = _probabilities(logits)
    return -torch.xlogy(chances, chances).sum(dim=1)


def grand(logits: Tensor, targets: Tensor, features: Tensor, *, bias: bool = True) -> Tensor:
    """Gradient norm of the last, linear layer.

    ``|| d nll / d (W, b) ||_2 = || p - onehot(y) ||_2 * sqrt(|| h ||_2^2 + 1)`` for logits
    ``W h + b``, without the 1 where there is no bias (GraNd: Paul, Ganguli and Dziugaite, NeurIPS
    2021, definition 2.1, restricted to the last layer, where it is this product: no backward pass).

    Args:
        logits: [B, C] floating.
        targets: [B] int64 in 0..C-1.
        features: [B, D], what the last layer was given.
        bias: whether the layer has one.

    Returns:
        [B] in batch order, at least 0.

    Raises:
        ValueError: logits are not [B, C] or features not [B, D].

    Example:
        >>> round(grand(torch.zeros(1, 2), torch.tensor([1]), torch.ones(1, 3)).item(), 4)
        1.4142
    """
    check_last_layer(logits, targets, features)
    error = el2n(logits, targets)
    squares = features.detach().to(error.dtype).square().sum(dim=1)
    return error * (squares + 1 if bias else squares).sqrt()


def mean(runs: Iterable[Tensor]) -> Tensor:
    """Mean of a score over several trainings, or several epochs of one.

    EL2N and GraNd are expectations over the weights (Paul, Ganguli and Dziugaite, NeurIPS 2021,
    definitions 2.1 and 2.2, ten runs in their experiments): one run is one draw of them.

    Args:
        runs: scores [N] each, of the same samples in the same order; at least one.

    Returns:
        float64 [N]. inf where a run has inf.

    Raises:
        TypeError: a run is no floating tensor.
        ValueError: no runs, or one of another shape, or with a nan (a sample never seen).

    Example:
        >>> mean([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])]).tolist()
        [2.0, 2.0]
    """
    total: Tensor | None = None
    count = 0
    for run in runs:
        if not isinstance(run, Tensor) or not run.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"runs must be floating tensors, got {type(run).__name__}")
        if total is not None and run.shape != total.shape:
            raise ValueError(f"runs must be {tuple(total.shape)} each, got {tuple(run.shape)}")
        if bool(torch.isnan(run).any()):
            raise ValueError(f"runs must not be nan, got one in run {count} (a sample never seen)")
        values = run.detach().to(torch.float64)
        total = values if total is None else total + values
        count += 1
    if total is None:
        raise ValueError("runs must be at least one, got none")
    return total / count


def forgetting(correct: Tensor, last: Tensor, last_epoch: Tensor, epoch: Tensor | int) -> Tensor:
    """Count forgetting events: presentations where a sample is wrong that was right the last time.

    ``events += (right at the last presentation) and (wrong now)`` (Toneva et al., "An Empirical
    Study of Example Forgetting", ICLR 2019, definition of section 3). A sample that was never right
    has, in the paper, infinitely many; here ``epoch + 1``, as if forgotten each time, which is as
    high among the others but finite. The memory is in the score itself, so there is no other:
    ``events + now / 4 + before / 16`` with 0 = right, 1 = wrong, 2 = not learned so far; the
    fractions order equal counts. Keeping ``before`` makes a second presentation in one epoch start
    where the first did: whatever the order, the larger of the two stays.

    Args:
        correct: [B] bool, whether the target's logit is the largest (or as large).
        last: [B] float32, the last such score, nan where never seen.
        last_epoch: [B] int64, the epoch of that score.
        epoch: the current one; a tensor [1] or a number.

    Returns:
        [B] float32 in batch order, in 0..2^20; ``forgetting_events`` reads it.

    Example:
        >>> unseen, zero = torch.tensor([torch.nan]), torch.tensor([0])
        >>> first = forgetting(torch.tensor([True]), unseen, zero, 0)
        >>> forgetting_events(forgetting(torch.tensor([False]), first, zero, 1)).item()
        1.0
    """
    unseen = torch.isnan(last)
    packed = (torch.nan_to_num(last.detach()).clamp(0, MAX_EVENTS) * 16).to(torch.int64)
    events, state, before = packed >> 4, (packed >> 2) & 3, packed & 3
    again = last_epoch >= epoch  # presented in this epoch already: go back to where that started
    events = events - (again & (state == WRONG) & (before == RIGHT)).to(torch.int64)
    start = torch.where(unseen, NEVER, torch.where(again, before, state)).clamp(max=NEVER)
    never = start == NEVER
    forgotten = torch.where(never, epoch + 1, events + (start == RIGHT))
    kept = torch.where(never, 0, events)
    total = torch.where(correct, kept, forgotten).clamp(0, MAX_EVENTS)
    now = torch.where(correct, RIGHT, torch.where(never, NEVER, WRONG))
    return ((total << 4) + (now << 2) + start).to(torch.float32) / 16


def forgetting_events(scores: Tensor) -> Tensor:
    """Read the number of forgetting events from scores that ``forgetting`` made.

    Args:
        scores: [N] float32, such as ``engine.scores()``.

    Returns:
        [N] float32 in the same order: a count; inf where a sample was seen but never right (Toneva
        et al., ICLR 2019, section 3); nan where it was never seen.

    Example:
        >>> forgetting_events(torch.tensor([3.25, 7.625])).tolist()
        [3.0, inf]
    """
    events = scores.floor()
    return torch.where((scores - events) >= NEVER / 4, torch.inf, events)


def reward_spread(rewards: Tensor, *, right: float = 0.98) -> Tensor:
    """The spread of each prompt's rewards, for ``ZeroVariance``: above 0, or which way all went.

    A group of rollouts whose rewards are all alike has no advantage, and so no gradient (DAPO,
    arXiv 2503.14476; GRESO, arXiv 2506.02177).

    Args:
        rewards: [B, G] floating, G rollouts of each of B prompts.
        right: a reward that counts as right.

    Returns:
        float32 [B]: the standard deviation where rewards differ; 0.0 where all are alike and right;
        -1.0 where all are alike and not.

    Raises:
        TypeError: rewards are not a floating tensor.
        ValueError: rewards are not [B, G] with at least one rollout.

    Example:
        >>> reward_spread(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])).tolist()
        [0.5, 0.0, -1.0]
    """
    if not isinstance(rewards, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"rewards must be a tensor, got {type(rewards).__name__}")
    if not rewards.is_floating_point():
        raise TypeError(f"rewards must be floating, got {rewards.dtype}")
    if rewards.dim() != 2 or rewards.shape[1] == 0:
        raise ValueError(f"rewards must be [B, G], got shape {tuple(rewards.shape)}")
    wide = rewards.detach().to(torch.float64)
    alike = (wide == wide[:, :1]).all(dim=1)
    spread = wide.std(dim=1, correction=0).clamp(min=torch.finfo(torch.float32).tiny)
    one_way = torch.where(wide[:, 0] >= right, 0.0, -1.0).to(torch.float64)
    return torch.where(alike, one_way, spread).to(torch.float32)
